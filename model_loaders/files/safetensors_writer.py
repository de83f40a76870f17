"""Write .safetensors files of any size: one tensor in memory at a time, whole or not there at all."""

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ...errors import UserError

# names of the types in the format's header (the safetensors repository's README)
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

    shapes: what will be written, by name. tensor(name) is called once for each, in order, when its turn has come.
    on_progress(bytes done, bytes in all) is called after each and may raise to stop: nothing is left behind then.

    overwrite: take the place of a file that is there, once the new one is whole.

    Raises UserError where `path` is taken and `overwrite` is not set, or the disk has no room, before the first
    tensor is asked for.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    header = _header(shapes, sizes, metadata)
    total = len(header) + sum(sizes.values())
    if not overwrite:
        refuse_taken(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path, total)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:
            file.write(header)
            for name, (shape, dtype) in shapes.items():
                _write_tensor(file, name, tensor(name), shape, dtype)
                on_progress(file.tell(), total)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            refuse_taken(path)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return total


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], overwrite: bool = False
) -> int:
    """write_safetensors for tensors that are there already."""
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return write_safetensors(path, shapes, tensors.__getitem__, metadata, overwrite=overwrite)


def refuse_taken(path: Path) -> None:
    """Raises UserError where `path` is there already."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} is there already and is not overwritten. Choose another name, or move it away.")


def require_space(path: Path, size_bytes: int) -> None:
    """Raises UserError where the disk of `path` has no room for a file of `size_bytes`."""
    free = shutil.disk_usage(path.parent).free
    if size_bytes > free:
        raise UserError(
            f"{path.parent} has {free / 1e9:.1f} GB left and {path.name} needs {size_bytes / 1e9:.1f} GB. Free some "
            "space, or choose a smaller weight_dtype."
        )


def _header(shapes: Shapes, sizes: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (shape, dtype) in shapes.items():
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + sizes[name]]}
        end += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the numbers where they lie: aligned
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: object, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise ValueError(f"{name} was announced as {dtype} {shape} and is {tensor.dtype} {tuple(tensor.shape)}")
    data = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for start in range(0, len(data), _CHUNK_BYTES):
        file.write(data[start : start + _CHUNK_BYTES])
