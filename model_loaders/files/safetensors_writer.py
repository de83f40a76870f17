"""Write .safetensors files of any size: one tensor in memory at a time, and no partial file under the final name."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from ...errors import NameTakenError, UserError
from ...system.complete_file import complete_file, explained_writing

# dtypes as the format's header names them (the safetensors repository's README)
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK_BYTES = 1 << 26
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def write_safetensors(
    path: Path,
    shapes: Shapes,
    tensor: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    overwrite: bool = False,
) -> int:
    """Write `path` and return its size in bytes.

    shapes: name -> (shape, dtype) of every tensor, in the order of writing. tensor(name) is called once for each, when
    it is to be written. on_progress(bytes done, bytes in total) is called after each; it may raise to stop, and then
    no file is left behind. overwrite: replace an existing file, once the new one is complete.

    Raises NameTakenError where `path` exists and `overwrite` is not set, before the first call of `tensor` or when the
    file is written; and UserError where the disk has too little room, or the system cannot write it.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    header = _header(shapes, sizes, metadata)
    total = len(header) + sum(sizes.values())
    if not overwrite:
        refuse_taken(path)
    with explained_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path, total)
    with complete_file(path, replaces=overwrite) as unfinished:
        with unfinished.part.open("xb") as file:
            file.write(header)
            for name, (shape, dtype) in shapes.items():
                _write_tensor(file, name, tensor(name), shape, dtype)
                on_progress(file.tell(), total)
        # complete_file keeps what is made while the block runs. Asked once more, because it would replace a file that
        # was made between the first question and the beginning of the block.
        if not overwrite:
            refuse_taken(path)
    return total


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], overwrite: bool = False
) -> int:
    """write_safetensors for tensors that are all in memory."""
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return write_safetensors(path, shapes, tensors.__getitem__, metadata, overwrite=overwrite)


def refuse_taken(path: Path) -> None:
    """Raises NameTakenError where `path` exists."""
    if path.exists() or path.is_symlink():
        raise NameTakenError(
            f"{path} exists already and is not overwritten. Choose another name, or move the file away."
        )


def require_space(path: Path, size_bytes: int) -> None:
    """Raises UserError where the disk of `path` has too little room for a file of `size_bytes`."""
    free = shutil.disk_usage(path.parent).free
    if size_bytes > free:
        raise UserError(
            f"The disk of {path.parent} has {free / 1e9:.1f} GB free, and {path.name} needs {size_bytes / 1e9:.1f} GB. "
            "Free some space, or choose a smaller weight_dtype."
        )


def _header(shapes: Shapes, sizes: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (shape, dtype) in shapes.items():
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + sizes[name]]}
        end += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Readers map the tensors in place, which therefore have to be aligned. The format allows spaces after the JSON.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise ValueError(f"{name} was announced as {dtype} {shape} and is {tensor.dtype} {tuple(tensor.shape)}")
    # As bytes, because numpy has neither bf16 nor fp8.
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(data), _CHUNK_BYTES):
        file.write(data[start : start + _CHUNK_BYTES].data)
