"""Check the index of an MP4 or QuickTime file before FFmpeg reads it: FFmpeg makes an entry of each sample that the
index counts, whether or not the file has its bytes. A file of a thousand bytes can take gigabytes.

Source of the format: ISO/IEC 14496-12; which boxes hold others: FFmpeg's libavformat/mov.c.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..host.compat import throw_if_interrupted

_OTHERS = (b"\x1aE\xdf\xa3", b"RIFF", b"GIF8")  # first bytes of Matroska and WebM, AVI and WebP, GIF
_HOLDERS = b"moov trak mdia minf stbl moof traf mvex edts dinf udta wave sinf schi tref tapt iprp ipco".split()
_MOST_SAMPLES = 1 << 22  # of all tracks together
_MOST_BOXES = 1 << 18
_MOST_DEPTH = 12


class Box(NamedTuple):
    """kind: four letters. start, end: of what it holds, in bytes of the file."""

    kind: bytes
    start: int
    end: int


@dataclass
class _Track:
    """What the index of a track counts."""

    is_sound: bool = False
    samples: int = 0
    chunks: int = 0
    chunk_samples: list[tuple[int, int]] = field(default_factory=list)
    edits: int = 0  # parts of the track that are played; FFmpeg copies the entries of each

    def index_entries(self) -> int:
        """How many entries FFmpeg makes at most. Uncompressed sound has one for 160 samples of a chunk or more,
        whatever the number of its samples says."""
        entries = self.samples
        if self.is_sound:
            starts = [first for first, _ in self.chunk_samples] + [self.chunks + 1]
            counts = (max(0, after - first) * n for (first, n), after in zip(self.chunk_samples, starts[1:]))
            entries = sum(counts) // 160
        return entries * max(1, self.edits)


def check_mp4(path: Path) -> None:
    """Raises ValueError where the index of `path` counts more samples than the file has bytes for, or than any clip
    has. A file of another container is left to FFmpeg."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4).startswith(_OTHERS):
            return
        tracks, fragments = [_Track()], 0
        for box in _boxes(file, size):
            track = tracks[-1]
            if box.kind == b"cmov":
                raise ValueError("its index is compressed")
            if box.kind == b"trak":
                tracks.append(_Track())
            # QuickTime has a second one, "dhlr", for where the data is, which says nothing of the kind of track.
            elif box.kind == b"hdlr" and _read(file, box.start + 4, 4) != b"dhlr":
                track.is_sound = _read(file, box.start + 8, 4) == b"soun"
            elif box.kind in (b"stsz", b"stz2"):
                track.samples += _count(file, box, size)
            elif box.kind == b"trun":
                fragments += _count(file, box, size)
            elif box.kind in (b"stco", b"co64"):
                track.chunks += _number(file, box)
            elif box.kind == b"stsc":
                if track.chunk_samples:
                    raise ValueError("its index counts the samples of chunks twice")
                track.chunk_samples = _chunk_samples(file, box)
            elif box.kind == b"elst":
                track.edits += _number(file, box)
        entries = fragments + sum(track.index_entries() for track in tracks)
        if entries > _MOST_SAMPLES:
            raise ValueError(f"its index counts {entries} frames")


def _number(file: BinaryIO, box: Box) -> int:
    """The first number of a box that begins with a version: how many entries it has."""
    return struct.unpack(">I", _read(file, box.start + 4, 4))[0]


def _chunk_samples(file: BinaryIO, box: Box) -> list[tuple[int, int]]:
    """(first chunk, samples of it and of each after it), of a "stsc" box."""
    count = _number(file, box)
    if 12 * count > box.end - box.start or count > _MOST_BOXES:
        raise ValueError(f"its index counts {count} kinds of chunks")
    rows = struct.iter_unpack(">III", _read(file, box.start + 8, 12 * count))
    return [(first, samples) for first, samples, _ in rows]


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
