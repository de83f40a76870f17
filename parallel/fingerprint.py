"""Whether two machines have the same weights and the same code."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..model_loaders.file_stamps import files_read

# Of a file: its beginning, with a safetensors file's header, its end, and places between. All of a checkpoint takes
# half a minute to read, and a fine-tune differs from its base everywhere.
_BLOCKS, _BLOCK_BYTES = 64, 1 << 18


def fingerprint(path: Path, component: str) -> str:
    """A hash of the names, sizes and spread blocks of the files that loading a `component` from `path` reads."""
    digest = hashlib.sha256()
    for file in sorted({file for file in files_read(path, [component]) if file.is_file()}):
        size = file.stat().st_size
        # Without the folders, which may differ.
        digest.update(f"{file.name} {size}\n".encode(errors="backslashreplace"))
        for block in _blocks(file, size):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        if size <= _BLOCKS * _BLOCK_BYTES:
            yield opened.read()
            return
        for index in range(_BLOCKS):
            opened.seek((size - _BLOCK_BYTES) * index // (_BLOCKS - 1))
            yield opened.read(_BLOCK_BYTES)


def source_hash() -> str:
    """Of this pack's code, which two installations of one version may differ in."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for room in ("host", "model_loaders", "parallel", "sockets", "samplers", "transformer", "vae"):
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]
