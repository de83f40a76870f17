"""A file that is still being downloaded, under a name that ends in .part, and the hash of its bytes so far."""

import hashlib
import os
from pathlib import Path
from typing import Protocol

from ...system.complete_file import replace_file
from .hub import RemoteFile
from .manifest import part_path, part_size

_SYNC_BYTES = 64 << 20  # bytes between two flushes to the disk, so that none of them takes long


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


def new_digest(file: RemoteFile) -> Digest:
    """The hash by which the hub names this file, before its first byte."""
    if file.digest.startswith("sha256:"):
        return hashlib.sha256()
    # git hashes a blob together with its length
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def equals_digest(digest: Digest, file: RemoteFile) -> bool:
    """Whether the bytes that went into `digest` are those of `file`."""
    return digest.hexdigest() == file.digest.partition(":")[2]


class PartFile:
    """The .part file of `target`; a context manager that closes it. `size`: bytes that are hashed so far."""

    def __init__(self, target: Path, file: RemoteFile):
        self.target, self.path, self.file = target, part_path(target), file
        # Longer than the file will be, so it is not the beginning of it.
        if part_size(target) > file.size:
            self.path.unlink()
        self.out = self.path.open("ab")
        self.digest, self.size, self.synced = new_digest(file), 0, 0

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.out.close()

    def add_existing(self, chunk: bytes) -> None:
        """Hash bytes that an earlier run has written."""
        self.digest.update(chunk)
        self.size += len(chunk)
        self.synced = self.size

    def write(self, chunk: bytes) -> None:
        """Append bytes that the hub has sent."""
        self.out.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)
        if self.size - self.synced >= _SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Flush to the disk."""
        self.out.flush()
        os.fsync(self.out.fileno())
        self.synced = self.size

    def restart(self) -> None:
        """Delete every byte."""
        self.out.truncate(0)  # no seek is needed: a file that is opened for appending is written at its end
        self.digest, self.size, self.synced = new_digest(self.file), 0, 0

    def discard(self) -> None:
        """Delete the file."""
        self.out.close()
        self.path.unlink()

    def matches_digest(self) -> bool:
        """Whether all bytes are there and are the hub's."""
        return self.size == self.file.size and equals_digest(self.digest, self.file)

    def finalize(self) -> None:
        """Give the file its own name. After a power cut the complete file has that name, or there is none of it."""
        # First the bytes, then the name: in the other order a power cut could leave a file of zeros under that name.
        self.sync()
        self.out.close()
        replace_file(self.path, self.target)
