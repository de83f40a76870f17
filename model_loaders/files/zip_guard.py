"""Count the records of a zip file before Python's zipfile makes an object of each.

Source of the format: PKWARE's APPNOTE.TXT, sections 4.3.12 (the directory's records) to 4.3.16 (its end).
"""

import struct
from pathlib import Path

from .headers import MAX_TENSORS, LimitError

_END, _END_64, _LOCATOR_64, _RECORD = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_END_BYTES, _END_64_BYTES, _LOCATOR_BYTES, _MAX_COMMENT = 22, 56, 20, 65535
_MAX_RECORDS = 2 * MAX_TENSORS  # a record for each tensor, and those of the program that wrote the file
_MAX_DIRECTORY_BYTES = 256 * _MAX_RECORDS


def check_directory(path: Path) -> None:
    """Raises LimitError where a zip file has more records than any model's, ValueError where it has no end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END_BYTES - _MAX_COMMENT - _LOCATOR_BYTES - _END_64_BYTES))
        tail = file.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) - at < _END_BYTES:
            raise ValueError("no end of its directory")
        (length,) = struct.unpack_from("<I", tail, at + 12)
        end = size - len(tail) + at
        locator = at - _LOCATOR_BYTES
        if locator >= 0 and tail[locator : locator + 4] == _LOCATOR_64:
            # The locator may point anywhere, and some versions of Python follow it: every writer puts the end's larger
            # form right before it.
            start = locator - _END_64_BYTES
            if start < 0 or tail[start : start + 4] != _END_64:
                raise ValueError("an end of its directory that is not where it belongs")
            (length,) = struct.unpack_from("<Q", tail, start + 40)
            end = size - len(tail) + start
        if length > _MAX_DIRECTORY_BYTES:
            raise LimitError(f"a directory of {length} bytes, where {_MAX_DIRECTORY_BYTES} are allowed")
        file.seek(max(0, end - length))
        records = file.read(length).count(_RECORD)
    if records > _MAX_RECORDS:
        raise LimitError(f"{records} records, where {_MAX_RECORDS} are allowed")
