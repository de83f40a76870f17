"""The files of data that come with the pack, and a list of them that tells a changed one from them."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .small_files import read_small_text

# The list of a folder's files, in the folder: in the format of the program sha256sum, with a comment for each file's
# size, which that program passes over.
SUMS = "SHA256SUMS"
# Text, whose lines git on Windows may end in another way than they were published with.
_TEXTS = (".json", ".txt")
_MOST_BYTES = 1 << 20  # of such a list
_SIZE, _DIGEST = r"# ([0-9]{1,15}) (.+)", r"([0-9a-f]{64})  (.+)"


class _Published(NamedTuple):
    """size: in bytes. digest: the sha256. Those of a text are of its lines with one character at the end of each."""

    size: int
    digest: str


def check_published(root: Path, files: Iterable[Path], listed: "dict[str, _Published]") -> None:
    """Raises UserError for the first of `files`, which lie below `root`, that is not the one that was published.

    listed: read_sums(root). What has another size is not read: it may be of any size.
    """
    for file in sorted(files):
        published = listed.get(file.relative_to(root).as_posix())
        if published is None or _sha256(file, published.size) != published.digest:
            raise UserError(
                f"{file} is damaged: its sha256 is not the one in {SUMS}. Install the pack again, or run `git checkout "
                f"-- nano/{root.name}` in its folder."
            )


def files_below(root: Path, place: Path, suffix: str, listed: "dict[str, _Published]") -> set[Path]:
    """The files with `suffix` that are below `place`, a path in `root`, and those that should be."""
    inside = f"{place.relative_to(root).as_posix()}/"
    return {*place.rglob(f"*{suffix}")} | {
        root / name for name in listed if name.startswith(inside) and name.endswith(suffix)
    }


def sums_of(root: Path, files: Iterable[Path]) -> str:
    """The text of SUMS for files below `root`."""
    return "".join(f"# {len(data)} {name}\n{_digest(data)}  {name}\n" for name, data in _contents(root, files))


def read_sums(root: Path) -> dict[str, _Published]:
    """The path of each file below `root` -> what SUMS says of it. A line that is damaged names no file.

    Raises UserError where there is no such list.
    """
    try:
        lines = read_small_text(root / SUMS, _MOST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root / SUMS} cannot be read ({error}), so that the files beside it cannot be checked. Install the pack "
            "again."
        ) from error
    sizes = {found[2]: int(found[1]) for line in lines if (found := re.fullmatch(_SIZE, line))}
    digests = {found[2]: found[1] for line in lines if (found := re.fullmatch(_DIGEST, line))}
    return {name: _Published(sizes[name], digest) for name, digest in digests.items() if name in sizes}


def _contents(root: Path, files: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for name in sorted(file.relative_to(root).as_posix() for file in files):
        yield name, _read(root / name)


def _sha256(file: Path, size: int) -> str:
    """ "" for a file that cannot be read, or cannot be one of this size in bytes."""
    try:
        status = os.stat(file)
        most = 2 * size if file.suffix in _TEXTS else size
        # A pipe would be waited for, and a device never ends.
        if not stat.S_ISREG(status.st_mode) or not size <= status.st_size <= most:
            return ""
        return _sha256_at(file, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    except (OSError, ValueError):  # the latter of a name that no file can have
        return ""


@lru_cache(maxsize=256)
def _sha256_at(file: Path, state: tuple[int, ...]) -> str:
    """Of a file in this state; ComfyUI asks several times a run."""
    return _digest(_read(file))


def _read(file: Path) -> bytes:
    """The contents, a text's with the ends of lines that it was published with."""
    content = file.read_bytes()
    return content.replace(b"\r\n", b"\n") if file.suffix in _TEXTS else content


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
