"""Check a GGUF header before the `gguf` package reads it: the package trusts every length and can loop for hours.

Source of the format: ggml's docs/gguf.md (ggml-org/ggml).
"""

import struct
from pathlib import Path
from typing import BinaryIO

from .headers import MAX_NAME, MAX_TENSORS, LimitError

_STRING, _ARRAY = 8, 9
# Metadata value type (ggml's enum gguf_metadata_value_type) -> bytes; strings and arrays have lengths of their own.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# The package takes ten microseconds for each element of an array. llama.cpp writes T5's tokenizer as three arrays of
# 32,128 and one of 237,539 bytes (precompiled_charsmap).
_MAX_ELEMENTS = 600_000  # of all arrays together
_MAX_FIELDS = 1 << 15
MAX_DIMENSIONS = 8  # ggml itself has 4 (GGML_MAX_DIMS)


def check_gguf_header(path: Path) -> None:
    """Raises ValueError where the header of `path` announces more data than the file has bytes, and LimitError where it
    announces more than any model has.

    Nothing is kept: the header is walked through by its lengths alone. A header that breaks off or has an unknown value
    type raises struct.error or KeyError.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(4)  # past the magic bytes, see looks_like_gguf
        version, tensors, fields = _unpack(file, "<IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format")
        if fields > _MAX_FIELDS or tensors > MAX_TENSORS:
            raise LimitError(f"{tensors} tensors and {fields} metadata entries, where {MAX_TENSORS} are allowed")
        left = _MAX_ELEMENTS
        for _ in range(fields):
            _skip_string(file, size, MAX_NAME + 100)  # some are named after a tensor
            left -= _skip_value(file, size, left, *_unpack(file, "<I"))
        for _ in range(tensors):
            _skip_string(file, size, MAX_NAME)
            (dimensions,) = _unpack(file, "<I")
            if dimensions > MAX_DIMENSIONS:
                raise LimitError(f"a tensor of {dimensions} dimensions")
            _skip(file, size, 8 * dimensions + 4 + 8)  # shape, type, offset


def _skip_value(file: BinaryIO, size: int, most: int, kind: int) -> int:
    """Returns the elements of the array that was skipped, of at most `most`; 0 for another value."""
    if kind == _STRING:
        _skip_string(file, size)
    elif kind == _ARRAY:
        inner, count = _unpack(file, "<IQ")
        # Arrays of arrays are in the format but in no model's file; refused, because they could nest without end.
        if inner == _ARRAY or count > most:
            raise LimitError(f"a list of {count} elements of type {inner}")
        for _ in range(count if inner == _STRING else 0):
            _skip_string(file, size)
        _skip(file, size, 0 if inner == _STRING else count * _SIZES[inner])
        return count
    else:
        _skip(file, size, _SIZES[kind])
    return 0


def _skip_string(file: BinaryIO, size: int, most: int = 1 << 63) -> None:
    (length,) = _unpack(file, "<Q")
    if length > most:
        raise LimitError(f"a name of {length} bytes")
    _skip(file, size, length)


def _skip(file: BinaryIO, size: int, length: int) -> None:
    if file.tell() + length > size:
        raise ValueError("a length beyond the end of the file")
    file.seek(length, 1)


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
