"""Files that are there complete or not at all, whatever ends the writing of them."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class UnfinishedFile:
    """A file that is being written.

    part: where to write it. path: the name that it gets in the end; it may be changed until then.
    """

    part: Path
    path: Path


@contextmanager
def complete_file(path: Path) -> Iterator[UnfinishedFile]:
    """Let the block write a file next to `path`, and give it that name when the block ends, in place of what had it.

    Where the block raises, its file is deleted and `path` stays as it was. After a power cut `path` holds the old
    contents or the new: they are on the disk before the name is given. Raises OSError.
    """
    file = UnfinishedFile(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part"), path)
    try:
        yield file
        with file.part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(file.part, file.path)
    finally:
        with suppress(OSError):  # what ended the writing matters more
            file.part.unlink(missing_ok=True)


def write_complete_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 as complete_file does. Raises OSError."""
    with complete_file(path) as file:
        file.part.write_text(text, encoding="utf-8")
