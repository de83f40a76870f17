"""Check the index of an MP4 or QuickTime file before FFmpeg reads it: FFmpeg makes an entry of each sample that the
index counts, whether or not the file has its bytes. A file of a thousand bytes can take gigabytes.

Source of the format: ISO/IEC 14496-12; which boxes hold others: FFmpeg's libavformat/mov.c.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..host.compat import throw_if_interrupted

_OTHERS = (b"\x1aE\xdf\xa3", b"RIFF", b"GIF8")  # first bytes of Matroska and WebM, AVI and WebP, GIF
_HOLDERS = b"moov trak mdia minf stbl moof traf mvex edts dinf udta wave sinf schi tref tapt iprp ipco".split()
_MOST_SAMPLES = 1 << 22  # of all tracks that are no sound; of sound as many as the file has bytes for
_MOST_BOXES = 1 << 18
_MOST_DEPTH = 12


class Box(NamedTuple):
    """kind: four letters. start, end: of what it holds, in bytes of the file."""

    kind: bytes
    start: int
    end: int


def check_mp4(path: Path) -> None:
    """Raises ValueError where the index of `path` counts more samples than the file has bytes for, or than any clip
    has. A file of another container is left to FFmpeg."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4).startswith(_OTHERS):
            return
        samples, is_sound = 0, False
        for box in _boxes(file, size):
            if box.kind == b"cmov":
                raise ValueError("its index is compressed")
            if box.kind == b"trak":
                is_sound = False
            # QuickTime has a second one, "dhlr", for where the data is, which says nothing of the kind of track.
            elif box.kind == b"hdlr" and _read(file, box.start + 4, 4) != b"dhlr":
                is_sound = _read(file, box.start + 8, 4) == b"soun"
            elif box.kind in (b"stsz", b"stz2", b"trun"):
                counted = _count(file, box, size)
                samples += 0 if is_sound and box.kind != b"trun" else counted
        if samples > _MOST_SAMPLES:
            raise ValueError(f"its index counts {samples} frames")


def _count(file: BinaryIO, box: Box, size: int) -> int:
    """The samples that a box counts. Raises ValueError where neither it nor the file has room for them."""
    if box.kind == b"trun":  # flags, and of each sample up to four numbers
        flags, count = struct.unpack(">II", _read(file, box.start, 8))
        needed, room = 4 * (flags & 0xF00).bit_count() * count, box.end - box.start
    else:
        (each, count), room = struct.unpack(">II", _read(file, box.start + 4, 8)), size
        if box.kind == b"stz2":  # sizes of 4, 8 or 16 bits
            needed, room = (each & 0xFF) * count // 8, box.end - box.start
        elif each:
            needed = each * count
        else:
            needed, room = 4 * count, box.end - box.start
    if needed > room:
        raise ValueError(f"its index counts {count} samples, for which there is no room")
    return count


def _boxes(file: BinaryIO, size: int) -> Iterator[Box]:
    """Every box of the file, those inside others too."""
    ends, at, count = [size], 0, 0
    while ends:
        if at + 8 > ends[-1]:
            at = ends.pop()
            continue
        throw_if_interrupted()
        count += 1
        if count > _MOST_BOXES:
            raise ValueError("its index has too many parts")
        length, kind = struct.unpack(">I4s", _read(file, at, 8))
        start = at + 8
        if length == 1:
            (length,), start = struct.unpack(">Q", _read(file, start, 8)), start + 8
        # 0: up to the end of the file
        end = min(at + length, ends[-1]) if length else ends[-1]
        if end < start:  # no box: FFmpeg goes on after the one around it
            at = ends.pop()
            continue
        yield Box(kind, start, end)
        if kind in _HOLDERS:
            if len(ends) > _MOST_DEPTH:
                raise ValueError("its index nests too deeply")
            ends.append(end)
            at = start
        else:
            at = end


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise ValueError("its index breaks off")
    return data
