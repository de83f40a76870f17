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
from .file_names import is_system_file
from .small_files import read_small_text

# The list of a folder's files, in the folder: in the format of the program sha256sum, with a comment for each file's
# size, which that program passes over.
SUMS = "SHA256SUMS"
# Text, whose lines git on Windows may end in another way than they were published with.
_TEXTS = (".json", ".txt")
_MOST_BYTES = 1 << 20  # of such a list
# What follows is a path that any system can have.
_SIZE, _DIGEST = r"# ([0-9]{1,15}) ([^\0]+)", r"([0-9a-f]{64})  ([^\0]+)"


class _Published(NamedTuple):
    """size: in bytes. digest: the sha256. Those of a text are of its lines with one character at the end of each."""

    size: int
    digest: str


def check_published(root: Path, files: Iterable[Path], listed: "dict[str, _Published]") -> None:
    """Raises UserError for the first of `files`, which lie below `root`, that is not the one that was published: it is
    missing, cannot be read, has been changed, or is one too many.

    listed: read_sums(root). What has another size is not read: it may be of any size.
    """
    for file in sorted(files):
        published = listed.get(file.relative_to(root).as_posix())
        if published is None:
            raise UserError(
                f"{file} does not belong to the pack: {SUMS} does not name it, and it would be read with the files "
                "that do. Move it to another folder, or delete it."
            )
        _check_file(file, published, root.name)


def files_below(root: Path, place: Path, suffix: str, listed: "dict[str, _Published]") -> set[Path]:
    """The files with `suffix` that are below `place`, a path in `root`, and those that should be."""
    inside = f"{place.relative_to(root).as_posix()}/"
    return {*published_below(place, suffix)} | {
        root / name for name in listed if name.startswith(inside) and name.endswith(suffix)
    }


def published_below(place: Path, suffix: str) -> list[Path]:
    """What a publication of a folder has with `suffix`: all below `place` that no system has left there."""
    return [path for path in place.rglob(f"*{suffix}") if not is_system_file(path.name)]


def sums_of(root: Path, files: Iterable[Path]) -> str:
    """The text of SUMS for files below `root`."""
    return "".join(f"# {len(data)} {name}\n{_digest(data)}  {name}\n" for name, data in _contents(root, files))


def read_sums(root: Path) -> dict[str, _Published]:
    """The path of each file below `root` -> what SUMS says of it.

    Raises UserError where there is no such list, or a damaged one: by half a list, files of the pack would be too many.
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
    if not sizes or sizes.keys() != digests.keys() or len(lines) != 2 * len(sizes):
        raise UserError(
            f"{root / SUMS} is damaged, so that the files beside it cannot be checked. Install the pack again, or run "
            f"`git checkout -- nano/{root.name}` in its folder."
        )
    return {name: _Published(sizes[name], digest) for name, digest in digests.items()}


def _contents(root: Path, files: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for name in sorted(file.relative_to(root).as_posix() for file in files):
        yield name, _read(root / name)


def _check_file(file: Path, published: _Published, folder: str) -> None:
    """Raises UserError where a file is not the published one. folder: its place in the pack's nano."""
    try:
        status = os.stat(file)
        # A pipe would be waited for, and a device never ends.
        if not stat.S_ISREG(status.st_mode):
            raise UserError(
                f"{file} is not a file, and the pack has one of that name. Delete it, and install the pack again, or "
                f"run `git checkout -- nano/{folder}` in its folder."
            )
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        most = 2 * published.size if file.suffix in _TEXTS else published.size
        if published.size <= status.st_size <= most and _sha256_at(file, state) == published.digest:
            return
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{file} is a part of the pack, and it is missing. Install the pack again, or run `git checkout -- "
            f"nano/{folder}` in its folder."
        ) from error
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}). Let the user that ComfyUI runs as read it, or install the pack "
            f"again, or run `git checkout -- nano/{folder}` in its folder."
        ) from error
    raise UserError(
        f"{file} has been changed: its sha256 is not the one in {SUMS}. Install the pack again, or run `git checkout "
        f"-- nano/{folder}` in its folder."
    )


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
