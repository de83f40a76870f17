"""Small text files of a model or a dataset: read only where they are small."""

import stat
from pathlib import Path

from .errors import UserError


def read_small_text(path: Path, most_bytes: int) -> str:
    """The text of a UTF-8 file, with or without a byte order mark (some editors on Windows write one).

    A file of gigabytes that is called config.json would fill the memory, and a device or a FIFO of that name would be
    read for ever.

    Raises UserError for a file that is larger than `most_bytes`, or no regular one; OSError and UnicodeDecodeError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file. Put the file itself there.")
    if status.st_size > most_bytes:
        raise UserError(
            f"{path} has {status.st_size} bytes. Expected are at most {most_bytes} in a file of that name: put the "
            "right one there."
        )
    return path.read_text(encoding="utf-8-sig")
