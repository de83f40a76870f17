"""Read .safetensors files. A header is trusted only after it has been compared with the length of the file.

Under dynamic VRAM, ComfyUI's load_safetensors (comfy/utils.py) maps a file and makes tensors at the offsets that its
header names. In a file that was cut short they would lie beyond the end, where reading ends the process or gives zeros.

Source of the format: the safetensors repository's README (8 bytes with the length of the header, a JSON header, then
the tensors' bytes without gaps or overlaps).
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, cast

import comfy.utils
import safetensors.torch
import torch

from ...errors import UserError, quoted
from .headers import Entry, Header, LimitError, check_amount, check_count, check_names, damaged

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "BOOL": torch.bool,
}
_MAX_DIMENSIONS = 8
# The format allows 100 MB (huggingface/safetensors, tensor.rs, MAX_HEADER_SIZE), which can be read into gigabytes
# of Python objects. A 5b model that is quantised by torchao has 0.4 MB.
_MAX_HEADER_BYTES = 1 << 24
_SUFFIXES = (".safetensors", ".sft")  # the ones that comfy.utils.load_torch_file takes for safetensors


def looks_like_safetensors(path: Path) -> bool:
    """Whether the file begins with a length that fits into it and a JSON object."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8


def read_safetensors_header(path: Path) -> Header:
    """The tensors of a .safetensors file. Its length is compared with its header; the tensors are not read.

    Raises UserError where the file is cut short, too long, names a tensor twice or contradicts itself.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):  # how Python writes bytes that are no text
        raise UserError(f"{path} has a name that is not UTF-8, which safetensors cannot open. Rename it.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise damaged(path, f"is not a safetensors file, or only its beginning ({size} bytes)")
        if length > _MAX_HEADER_BYTES:
            what = f"announces a header of {length} bytes, where {_MAX_HEADER_BYTES} are allowed"
            raise damaged(path, what, LimitError())
        text = file.read(length)
    try:
        check_amount(text)
        check_count(text.count(b'"data_offsets"'))
        header = json.loads(text, object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        check_names(header)
        entries = {name: Entry(tuple(e["shape"]), _DTYPES[e["dtype"]]) for name, e in header.items()}
        for name, entry in entries.items():
            # The product of a million numbers would take minutes, and one of a negative number means nothing.
            if len(entry.shape) > _MAX_DIMENSIONS or not all(type(side) is int and side >= 0 for side in entry.shape):
                raise ValueError(f"{quoted(name)} has no valid shape")
        # In the order of their offsets, the tensors have to fill the data without a gap or an overlap, each with as
        # many bytes as its shape and dtype need. The format demands this; otherwise a name could stand for bytes of
        # another tensor.
        end = 0
        for first, last, name in sorted((*e["data_offsets"], name) for name, e in header.items()):
            size_bytes = math.prod(entries[name].shape) * _DTYPES[header[name]["dtype"]].itemsize
            if first != end or last - first != size_bytes:
                raise ValueError(f"the bytes of {quoted(name)} do not fit its shape")
            end = last
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise ValueError("its metadata contains values that are not strings")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise damaged(path, f"has no valid safetensors header ({reason})", error) from error
    if size != 8 + length + end:
        raise damaged(path, f"has {size} bytes and should have {8 + length + end}")
    return Header(entries, metadata)


def open_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that read_safetensors_header has accepted, memory-mapped."""
    # Any other suffix would make ComfyUI's function read the file as a pickle.
    if path.suffix.lower() in _SUFFIXES:
        # ComfyUI's own function maps the file in the way that dynamic VRAM needs: each tensor knows its place in the
        # file. Without return_metadata it returns the tensors alone, which its inferred type does not say.
        return cast(dict[str, torch.Tensor], comfy.utils.load_torch_file(str(path), safe_load=True))
    return safetensors.torch.load_file(path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a name occurs twice, of which json.loads would keep the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found
