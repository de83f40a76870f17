"""Whether two machines have the same weights and the same code."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch

from ..host.compat import comfyui_version
from ..model_loaders.file_stamps import files_read
from .source_hash import source_hash

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


def versions() -> dict[str, str]:
    """What has to be the same in this process and in all ranks, lest they compute different things."""
    return {
        "this pack": source_hash(),
        "ComfyUI": comfyui_version(),
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
    }
