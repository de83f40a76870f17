"""Clips as cameras, cutters and converters leave them: times that lie, deep greys, sound without a picture."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.tests.clip_files import write_video
from cogvideox.tests.guard import bounded
from cogvideox.training import clips, dataset, segments

SPEC = clips.DatasetSpec(width=64, height=64, frames=9)
CENTRE = (0.5, 0.5)
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


def write_timed(path: Path, times: list[float], codec: str = "ffv1", pix_fmt: str = "bgr0") -> Path:
    """A clip whose frames are shown at these seconds."""
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, base
        for picture, time in zip(PIXELS, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("last", [1e4, 1e5, 1e6, 1e8])
def test_a_last_frame_in_years(tmp_path: Path, last: float) -> None:
    """One wrong time made a list of as many numbers as frames of its seconds, or a segment of one frame, repeated."""
    path = write_timed(tmp_path / "a.mkv", [*(i / 8 for i in range(8)), last])
    with bounded(mebibytes=256):
        source = segments.probe_clip(path)
        with pytest.raises(clips.UnusableClipError, match=rf"its frame 9 is shown {last - 0.875:.0f} s after .* Cut"):
            segments.cut_segments(SPEC, source, CENTRE)
        # Without a frame rate no time is looked at, and all frames are there.
        every = clips.DatasetSpec(width=64, height=64, frames=9, fps=0.0)
        assert segments.cut_segments(every, source, CENTRE)[0].indices == tuple(range(9))


@pytest.mark.parametrize("where", range(1, 9))
def test_a_wrong_time_anywhere(where: int) -> None:
    times = tuple(i / 8 + (1e8 if i >= where else 0) for i in range(9))
    with bounded(mebibytes=64), pytest.raises(clips.UnusableClipError, match=f"its frame {where + 1} is shown"):
        segments.cut_segments(SPEC, segments.Source(64, 64, 9, times), CENTRE)


def test_a_long_clip_is_no_long_list() -> None:
    """A clip of days gives what is asked for, and no list of all its frames is made."""
    times = tuple(range(0, 400_000, 500))  # five days, a frame in eight minutes
    source = segments.Source(64, 64, len(times), times)
    spec = clips.DatasetSpec(width=64, height=64, frames=9, fps=120.0, segments=3)
    with bounded(mebibytes=64):
        taken = segments.cut_segments(spec, source, CENTRE)
    assert [segment.indices[0] for segment in taken] == [0, 399, 799]


def test_the_other_clips_are_used(tmp_path: Path) -> None:
    """One wrong clip in a thousand is left out and named; it ended the whole dataset."""
    write_timed(tmp_path / "bad.mkv", [*(i / 8 for i in range(8)), 1e8])
    write_timed(tmp_path / "good.mkv", [i / 8 for i in range(9)])
    found = [clips.Clip(name, tmp_path / name, "a caption") for name in ("bad.mkv", "good.mkv")]
    so_far = dataset._Progress()
    planned = dataset._plan(found, SPEC, "vae", tmp_path, so_far)
    assert [plan.clip.name for plan in planned] == ["good.mkv"]
    assert len(so_far.skipped) == 1 and so_far.skipped[0].startswith("bad.mkv: its frame 9 is shown")


def grey(bits: int) -> np.ndarray:
    """[64, 64], from black to white."""
    return (np.arange(64 * 64).reshape(64, 64) / 4095 * (2**bits - 1)).round()


PICTURES: dict[str, Callable[[Path], object]] = {
    "16 bits of grey": lambda path: Image.fromarray(grey(16).astype(np.uint16)).save(path),
    "8 bits of grey": lambda path: Image.fromarray(grey(8).astype(np.uint8)).save(path),
    "grey with alpha": lambda path: Image.fromarray(grey(8).astype(np.uint8)).convert("LA").save(path),
    "palette": lambda path: Image.fromarray(grey(8).astype(np.uint8)).convert("P").save(path),
    "8 bits of colour": lambda path: Image.fromarray(grey(8).astype(np.uint8)).convert("RGBA").save(path),
    "16 bits of colour": lambda path: write_deep(path, "rgb48be"),
    "16 bits of colour with alpha": lambda path: write_deep(path, "rgba64be"),
    "16 bits of grey with alpha": lambda path: write_deep(path, "ya16be"),
}


def write_deep(path: Path, pix_fmt: str) -> None:
    """A PNG by FFmpeg: Pillow writes no colours of 16 bits."""
    with av.open(str(path), "w", format="image2pipe") as container:
        stream: Any = container.add_stream("png", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = pix_fmt
        frame = av.VideoFrame.from_ndarray(grey(16).astype(np.uint16), format="gray16le")
        container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode())


@pytest.mark.parametrize("what", PICTURES)
def test_pictures_of_every_depth(tmp_path: Path, what: str) -> None:
    """Renderers and scanners write 16 bits of grey, which became a white picture."""
    PICTURES[what](tmp_path / "1.png")
    taken = segments.read_segment(tmp_path, segments.Segment((0,), 64, 64, CENTRE))
    expected = torch.from_numpy(grey(16) / 65535).float()[None, :, :, None].expand(1, 64, 64, 3)
    assert (taken - expected).abs().max() < (0.5 if what == "palette" else 1.5) / 255


def test_deep_grey_of_older_versions() -> None:
    """Pillow read such a PNG in its mode of 32 bits."""
    read = segments._rgb(Image.fromarray(grey(16).astype(np.int32)))
    assert np.abs(read[:, :, 0] - grey(16) / 257).max() <= 0.5


@pytest.mark.parametrize("pix_fmt", ["gray16le", "gray10le", "yuv420p10le", "rgb48le"])
def test_videos_of_every_depth(tmp_path: Path, pix_fmt: str) -> None:
    shown = grey(8).astype(np.uint8)[None, :, :, None].repeat(3, axis=3)
    path = write_video(tmp_path / "a.mkv", shown, "ffv1", pix_fmt)
    taken = segments.read_segment(path, segments.Segment((0,), 64, 64, CENTRE))
    assert (taken - torch.from_numpy(shown).float() / 255).abs().max() < 3 / 255


def write_sound(path: Path, cover: bool) -> Path:
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=48000, layout="mono")
        picture: Any = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuvj420p"
            picture.disposition = 0x400
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        for part in (frame, None):
            container.mux(sound.encode(part))
        if cover:
            for part in (av.VideoFrame.from_ndarray(PIXELS[0], format="rgb24"), None):
                container.mux(picture.encode(part))
    return path


@pytest.mark.parametrize(
    ("suffix", "cover"), [(".mp4", False), (".mkv", False), (".mov", False), (".mp4", True), (".mov", True)]
)
def test_sound_alone(tmp_path: Path, suffix: str, cover: bool) -> None:
    """The reason was "tuple index out of range"."""
    with pytest.raises(clips.UnusableClipError, match=r"cannot be read \(it has no video, only sound\)"):
        segments.probe_clip(write_sound(tmp_path / f"a{suffix}", cover))
