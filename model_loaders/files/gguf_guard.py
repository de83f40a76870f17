"""Walk through a GGUF header before the `gguf` package does, which trusts every length in it and may count for ever.

Source of the format: ggml's docs/gguf.md (ggml-org/ggml).
"""

import struct
from pathlib import Path
from typing import BinaryIO

_STRING, _ARRAY = 8, 9
# bytes of the other types of a note's value, by their number
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# the package keeps every element of an array as an object of its own; the largest tokenizers have a quarter of this
_MOST_ELEMENTS = 1_000_000
_MOST_DIMENSIONS = 8


def check_gguf_header(path: Path) -> None:
    """Raises ValueError where the header of `path` promises more than there are bytes for."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(4)
        version, tensors, notes = _unpack(file, "<IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format")
        for _ in range(_counted(notes, file, size)):
            _skip_string(file, size)
            _skip_value(file, size, *_unpack(file, "<I"))
        for _ in range(_counted(tensors, file, size)):
            _skip_string(file, size)
            (dimensions,) = _unpack(file, "<I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            _skip(file, size, 8 * dimensions + 4 + 8)  # shape, type, offset


def _skip_value(file: BinaryIO, size: int, kind: int) -> None:
    if kind == _STRING:
        _skip_string(file, size)
    elif kind == _ARRAY:
        inner, count = _unpack(file, "<IQ")
        if inner == _ARRAY or count > _MOST_ELEMENTS:
            raise ValueError(f"a list of {count} elements of type {inner}")
        for _ in range(_counted(count, file, size) if inner == _STRING else 0):
            _skip_string(file, size)
        _skip(file, size, 0 if inner == _STRING else count * _SIZES[inner])
    else:
        _skip(file, size, _SIZES[kind])


def _skip_string(file: BinaryIO, size: int) -> None:
    _skip(file, size, *_unpack(file, "<Q"))


def _skip(file: BinaryIO, size: int, length: int) -> None:
    if file.tell() + length > size:
        raise ValueError("a length that leads out of the file")
    file.seek(length, 1)


def _counted(count: int, file: BinaryIO, size: int) -> int:
    """`count` things follow, which take a byte each at the least."""
    if count > size - file.tell():
        raise ValueError(f"a count of {count} in a file of {size} bytes")
    return count


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
