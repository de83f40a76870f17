"""Read .gguf files through the `gguf` package. Blocks stay packed until a layer is used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ...host.compat import throw_if_interrupted
from ...host.optional_packages import import_package
from .gguf_blocks import GGUF_TYPES, gguf_tensor
from .gguf_guard import MAX_DIMENSIONS, check_gguf_header
from .headers import Entry, Header, damaged

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_PLAIN = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}


def looks_like_gguf(path: Path) -> bool:
    """Whether the file begins with GGUF's magic bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_gguf_header(path: Path) -> Header:
    """The tensors of a GGUF file; their bytes are not read.

    Raises UserError where the file is cut short or damaged, or the `gguf` package is missing or broken.
    """
    reader = _reader(path)
    return Header({t.name: Entry(_shape(reader, t), _torch_type(t)) for t in reader.tensors}, {})


def open_gguf(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF file, memory-mapped. Block types outside gguf_blocks.GGUF_TYPES are unpacked to bf16.

    Raises UserError as read_gguf_header does.
    """
    reader = _reader(path)
    found = {}
    for tensor in reader.tensors:
        throw_if_interrupted()  # some are unpacked
        found[tensor.name] = _open(reader, tensor)
    return found


def _reader(path: Path) -> GGUFReader:
    gguf = import_package("gguf", f"{path} is a GGUF file. Reading it")
    size = path.stat().st_size
    try:
        check_gguf_header(path)
        reader = gguf.GGUFReader(path)
        spans = sorted((int(t.data_offset), int(t.data_offset) + int(t.n_bytes)) for t in reader.tensors)
        shapes = [_shape(reader, tensor) for tensor in reader.tensors]
        if any(side < 1 for shape in shapes for side in shape):
            raise ValueError("a tensor without values")
        alignment = int(reader.alignment)
        if alignment < 1:
            raise ValueError("an alignment of 0")
    # A damaged header makes check_gguf_header and the package raise nearly anything, from struct.error and KeyError to
    # UnicodeDecodeError.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise damaged(path, f"cannot be read as a GGUF file ({reason})", error) from error
    # The package does not compare offsets. Overlaps and gaps would give a layer bytes of another one, without an error.
    end = int(reader.data_offset)
    for first, last in spans:
        if first != _aligned(end, alignment):
            raise damaged(path, "has gaps or overlaps between its tensors")
        end = last
    # Some writers pad after the last tensor and some do not.
    if size not in (end, _aligned(end, alignment)):
        raise damaged(path, f"has {size} bytes and its tensors end at {end}")
    if any(math.prod(shape) != tensor.n_elements for shape, tensor in zip(shapes, reader.tensors)):
        raise damaged(path, "has a tensor whose recorded shape does not fit its size")
    return reader


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _torch_type(tensor: ReaderTensor) -> torch.dtype | str:
    kind = tensor.tensor_type.name
    return torch.bfloat16 if kind == "BF16" else _PLAIN.get(kind, kind)


def _shape(reader: GGUFReader, tensor: ReaderTensor) -> tuple[int, ...]:
    """The logical shape of a tensor.

    GGUF lists dimensions from the innermost one and has at most four. Converters reshape a tensor with more (the VAE's
    5-dimensional convolutions) and record the original shape in the metadata, under the key that city96/ComfyUI-GGUF
    reads as well (loader.py, get_orig_shape).
    """
    field = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
    if field is not None:
        if len(field.data) > MAX_DIMENSIONS:
            raise ValueError(f"a shape of {len(field.data)} dimensions")
        return tuple(int(field.parts[index][0]) for index in field.data)
    return tuple(int(size) for size in reversed(tensor.shape))


def _open(reader: GGUFReader, tensor: ReaderTensor) -> torch.Tensor:
    shape, kind = _shape(reader, tensor), tensor.tensor_type.name
    if kind in _PLAIN:
        return _mapped(tensor.data).reshape(shape)
    if kind == "BF16":  # numpy has no bf16, so the package returns the bytes
        return _mapped(tensor.data).view(torch.bfloat16).reshape(shape)
    # fp32 is the logical dtype at first: model_loaders.quantization sets the compute dtype, which the device decides.
    if kind in GGUF_TYPES and len(shape) == 2:
        return gguf_tensor(_mapped(tensor.data).reshape(shape[0], -1), kind, shape, torch.float32)
    # What no Linear can hold packed: a type that gguf_blocks.py lacks, or a convolution or table.
    from gguf import quants

    return torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type)).reshape(shape).to(torch.bfloat16)


class _Mapping:
    """The memory of a numpy array, for numpy: as one that may be written to."""

    def __init__(self, array: Any):
        self.array = array  # keeps the file mapped
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _mapped(array: Any) -> torch.Tensor:
    """A tensor over the memory of an array that the package maps read-only.

    torch warns of such an array. ComfyUI patches copies of weights, not the mapping; and to ignore a warning is to
    change a setting that all threads of the process share.
    """
    return torch.from_numpy(numpy.asarray(_Mapping(array)))
