"""Files that exist either complete or not at all, whatever interrupts the writing."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError


@contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Turns the system's errors while `path` is written into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Check the free space of the disk and the "
            "permissions of the folder."
        ) from error


@dataclass
class UnfinishedFile:
    """A file that is being written.

    part: where to write it. path: the name that it gets when it is complete; the writer may change it until then.
    """

    part: Path
    path: Path


@contextmanager
def complete_file(path: Path) -> Iterator[UnfinishedFile]:
    """Let the block write a file next to `path`. When the block ends, the file gets that name and replaces what had it.

    Where the block raises, its file is deleted and `path` stays as it was. After a power cut `path` holds either the
    old contents or the new ones, because the new ones are on the disk before they get the name.

    Raises UserError for every error of the system, those of the block included: a disk may be full when the file gets
    its name, after all of it was written.
    """
    # In the same folder, since a file is renamed in one step only within a file system. With a suffix of its own, so
    # that no list of models takes it for one.
    file = UnfinishedFile(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part"), path)
    try:
        with explained_writing(path):
            yield file
            # Opened for writing although nothing is written: Windows flushes no other handles.
            with file.part.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(file.part, file.path)
    finally:
        # After os.replace there is nothing left to delete. Where the block has raised, an error in deleting must not
        # hide that error.
        with suppress(OSError):
            file.part.unlink(missing_ok=True)


def write_complete_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 to `path`, complete or not at all. Raises UserError."""
    with complete_file(path) as file:
        file.part.write_text(text, encoding="utf-8")
