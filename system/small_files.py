"""Small text files of a model or a dataset: read only where they are small."""

import stat
from pathlib import Path

from ..errors import UserError


def read_small_text(path: Path, most_bytes: int) -> str:
    """The text of a UTF-8 file, with or without a byte order mark (some editors on Windows write one).

    A file of gigabytes that is called config.json would fill the memory, and a device or a FIFO of that name would be
    read for ever.

    Raises UserError for a file that is larger than `most_bytes`, or no regular one; OSError and UnicodeDecodeError.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a regular file. Put the file itself there.")
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)  # the size that a file announces may be that of another moment
    if len(data) > most_bytes:
        raise UserError(
            f"{path} has more than {most_bytes} bytes, which no file of that name needs. Put the right one there."
        )
    return data.decode("utf-8-sig")
