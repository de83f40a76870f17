"""Clips and lists of captions that declare more than they hold: refused in a sentence, within a second and 512 MB."""

import struct
import zlib
from pathlib import Path
from typing import Any

import av
import comfy.model_management as mm
import numpy as np
import pytest
from PIL import Image

from cogvideox.errors import UserError
from cogvideox.tests.clip_files import write_video
from cogvideox.tests.guard import bounded
from cogvideox.training import clips, segments
from cogvideox.training.mp4_guard import check_mp4

MANY = 150_000_000  # entries of FFmpeg's index: 3.6 GB


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video of nine frames."""
    pictures = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    return write_video(tmp_path_factory.mktemp("clips") / "a.mp4", pictures, "mpeg4").read_bytes()


def box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def with_index(good: bytes, each: int, count: int) -> bytes:
    """`good` with another count of samples, all of `each` bytes and in one chunk."""
    data = bytearray(good)
    size, chunks = data.find(b"stsz"), data.find(b"stsc")
    assert struct.unpack(">III", data[size + 4 : size + 16]) == (0, 0, 9)
    data[size + 8 : size + 16] = struct.pack(">II", each, count)
    data[chunks + 12 : chunks + 20] = struct.pack(">II", 1, count)
    return bytes(data)


def assert_refused(path: Path, words: str) -> None:
    with bounded(), pytest.raises(clips.UnusableClipError, match=f"it cannot be read .*{words}") as caught:
        segments.probe_clip(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("each", "count"), [(1, MANY), (0, MANY), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1)])
def test_an_index_of_more_than_the_file(tmp_path: Path, good: bytes, each: int, count: int) -> None:
    """A file of a thousand bytes that counts 3e7 samples took 1.1 GB and 3.4 s, in a call that nothing interrupts."""
    path = tmp_path / "a.mp4"
    path.write_bytes(with_index(good, each, count))
    assert_refused(path, "for which there is no room")
    with bounded(), pytest.raises(clips.UnusableClipError):
        segments.read_segment(path, segments.Segment((0,), 32, 32, (0.5, 0.5)))


def test_the_index_of_another_suffix(tmp_path: Path, good: bytes) -> None:
    """FFmpeg goes by a file's content."""
    for suffix in (".avi", ".mkv", ".webm", ".mov"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(with_index(good, 1, MANY))
        assert_refused(path, "for which there is no room")


FRAGMENT = struct.pack(">II", 0, MANY)
INDEXES = {
    "a fragment of samples without sizes": box(b"moof", box(b"traf", box(b"trun", FRAGMENT))),
    "a fragment that breaks off": box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0xF00, 1000)))),
    "small sizes": box(
        b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", box(b"stz2", struct.pack(">III", 0, 4, MANY))))))
    ),
    "a compressed index": box(b"moov", box(b"cmov", zlib.compress(bytes(10_000)))),
    "boxes in boxes": b"".join(struct.pack(">I4s", 0, b"moov") for _ in range(1000)),
    "a box that breaks off": box(b"moov", box(b"trak", struct.pack(">I4s", 100, b"stsz"))),
}


@pytest.mark.parametrize("what", INDEXES)
def test_other_indexes(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(box(b"ftyp", b"isom", bytes(4), b"isom") + INDEXES[what])
    assert_refused(path, "its index")


def test_good_files_are_taken(tmp_path: Path, good: bytes) -> None:
    """With an index at its end or in fragments, with bytes after the end, and of other containers."""
    pictures = np.zeros((9, 32, 32, 3), np.uint8)
    path = tmp_path / "a.mp4"
    for data in (good, good + bytes(100), good + b"\0\0\0\5xyz"):
        path.write_bytes(data)
        check_mp4(path)
        assert segments.probe_clip(path).frames == 9
    for name, codec in (("b.mkv", "ffv1"), ("c.avi", "mpeg4"), ("d.mov", "mpeg4"), ("e.webm", "libvpx-vp9")):
        pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        assert segments.probe_clip(write_video(tmp_path / name, pictures, codec, pix_fmt)).frames == 9


def test_long_sound_of_quicktime_is_no_frame(tmp_path: Path) -> None:
    """QuickTime names where a track's data is in a second "hdlr", after that of its kind: sound of 90 s, whose every
    sample is in the index, counted as frames."""
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 90 * 48000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert b"dhlr" in path.read_bytes()
    check_mp4(path)


def png(width: int, height: int) -> bytes:
    """A picture of one byte that declares any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(65535, 65535), (8193, 8192), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_pictures_that_declare_too_much(tmp_path: Path, width: int, height: int) -> None:
    """Half a gigabyte for the pixels of a picture, and four times that as numbers."""
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "1.png").write_bytes(png(width, height))
    assert_refused(folder, "pixels|too large|exceeds")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_that_declare_too_much(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    frames = [Image.fromarray(np.full((40, 40, 3), i * 20, np.uint8)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert segments.probe_clip(path).frames == 3
    if suffix == ".gif":
        data = bytearray(path.read_bytes())
        data[6:10] = struct.pack("<HH", 65535, 65535)
        path.write_bytes(data)
    else:
        monkeypatch.setattr(segments, "_MAX_PIXELS", 1000)
    assert_refused(path, "pixels")


LISTS = {
    "metadata.jsonl": ['{"file_name": "a.mp4", "text": "b", "c": [' + "[]," * 3_000_000 + "0]}", "[" * 2_000_000],
    "metadata.csv": [
        "file_name,text\n" + "a," * 3_000_000,
        "file_name,text\n" + '"\n\n",' * 1_000_000,
        "file_name,text," + "a," * 3_000_000,
    ],
}


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, texts in LISTS.items() for i in range(len(texts))])
def test_rows_without_end(tmp_path: Path, name: str, number: int) -> None:
    """A row of megabytes is read into as many numbers, lists or cells, of fifty bytes each."""
    (tmp_path / name).write_text(LISTS[name][number])
    with bounded(mebibytes=128), pytest.raises(UserError, match="has a row of more than 1048576 characters"):
        clips.find_clips(tmp_path)


def test_long_lists_are_taken(tmp_path: Path) -> None:
    """It is the row that is limited, and not the table."""
    rows = "\n".join(f'"{i}.mp4","{"caption " * 10}\n{i}"' for i in range(3_000))
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}\n")
    assert len(clips.find_clips(tmp_path)[1]) == 3_000


def test_a_way_out_of_the_index(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(good)
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        check_mp4(tmp_path / "a.mp4")


def full(kind: bytes, data: bytes) -> bytes:
    return box(kind, bytes(4) + data)


def track(handler: bytes, entry: bytes, table: bytes, edits: bytes = b"") -> bytes:
    """A track of the kind `handler` (soun or vide) whose tables are `table`."""
    media = full(b"hdlr", b"mhlr" + handler + bytes(13))
    stbl = box(b"stbl", full(b"stsd", struct.pack(">I", 1) + entry) + table)
    return box(b"trak", edits + box(b"mdia", media + box(b"minf", stbl)))


@pytest.mark.parametrize("what", ("chunks of sound", "edits of frames", "tables that are there twice"))
def test_indexes_that_multiply(tmp_path: Path, what: str) -> None:
    """A clip of 2 KB whose six chunks of sound have 2^31 samples each took 7.5 GB; one of 28 KB whose frames are played
    two thousand times did not end."""
    if what == "chunks of sound":
        table = full(b"stsc", struct.pack(">IIII", 1, 1, 0x7FFFFFFF, 1)) + full(b"stsz", struct.pack(">II", 2, 10))
        moov = track(b"soun", bytes(60), table + full(b"stco", struct.pack(">I", 6) + bytes(24)))
    elif what == "tables that are there twice":
        # Which of them counts is FFmpeg's to say: the guard goes by all.
        stsc = [full(b"stsc", struct.pack(">IIII", 1, 1, samples, 1)) for samples in (0x7FFFFFFF, 1)]
        moov = track(b"soun", bytes(60), b"".join(stsc) + full(b"stco", struct.pack(">I", 6) + bytes(24)))
    else:
        edits = box(b"edts", full(b"elst", struct.pack(">I", 2000) + struct.pack(">IiI", 3900, 0, 0x10000) * 2000))
        moov = track(b"vide", bytes(60), full(b"stsz", struct.pack(">II", 1, 3900)), edits)
    path = tmp_path / "a.mov"
    path.write_bytes(box(b"ftyp", b"qt  ") + box(b"mdat", bytes(4000)) + box(b"moov", moov))
    assert_refused(path, "its index counts")
