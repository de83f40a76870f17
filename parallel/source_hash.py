"""Which code of this pack a process runs."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("host", "model_loaders", "parallel", "sockets", "samplers", "transformer", "vae")
_imported: list[tuple[str, int, int]] = []


def note_imported() -> None:
    """Called when the pack is imported: from then on its files may change, and this process goes on with what they
    were. Takes a millisecond, for it reads none of them."""
    _imported[:] = _stamps()


def source_hash() -> str:
    """Of this pack's code, which two installations of one version may differ in; a sentence's words where the files
    have changed since this process has imported them."""
    if _imported and _imported != _stamps():
        return "the one before an update"
    digest = hashlib.sha256()
    for file in _files():
        digest.update(f"{file.relative_to(_ROOT).as_posix()}\n".encode())
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def _files() -> Iterator[Path]:
    for room in _ROOMS:
        yield from sorted((_ROOT / room).rglob("*.py"))


def _stamps() -> list[tuple[str, int, int]]:
    """(name, time of the last change in ns, bytes) of each file."""
    found = ((str(file), file.stat()) for file in _files())
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in found]
