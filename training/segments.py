"""Clips frame by frame: when each is shown, which are taken, and their pixels at the size of a bucket."""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from PIL import Image, ImageOps, ImageSequence

from ..host.compat import throw_if_interrupted
from ..media.file_formats import ANIMATION_FORMATS, FRAME_FORMATS, VIDEO_OPTIONS
from ..media.pictures import fit_pictures
from ..vae.geometry import SIZE_STEP
from .clips import DatasetSpec, UnusableClipError, pictures_in
from .mp4_guard import check_mp4

_LEAST_FRAMES = 9  # 8k + 1 below it is 1, a picture, from which no motion can be learnt
# Containers round times: WebM and Matroska to whole milliseconds, by default. A frame that is due at 0.0417 s may be
# marked 0.042, and without a tolerance the frame before would be taken for it.
_CLOCK_S = 0.002
_MAX_PIXELS = 1 << 26  # 8192 x 8192
_LONGEST_STILL_S = 600.0
_ATTACHED_PICTURE = 0x400  # FFmpeg's avformat.h, AV_DISPOSITION_ATTACHED_PIC: the cover of a song, and no clip
_PILLOW = (".gif", ".webp")  # read by Pillow: FFmpeg does not decode animated WebP


@dataclass(frozen=True)
class Source:
    """A clip as it is on disk. times: in seconds, when each frame is shown; None for a folder of pictures."""

    width: int
    height: int
    frames: int
    times: tuple[float, ...] | None


@dataclass(frozen=True)
class Segment:
    """The part of a clip that becomes a sample. indices: of its frames, ascending; a frame is repeated where the clip
    has fewer a second than asked for.

    crop_offset: where the crop begins, from left and from above, as shares 0 .. 1 of what is cut off.
    """

    indices: tuple[int, ...]
    width: int
    height: int
    crop_offset: tuple[float, float]


def probe_clip(path: Path) -> Source:
    """Raises UnusableClipError where nothing can be read from it."""
    with _readable(path):
        if path.is_dir():
            frames = len(pictures_in(path))
            times = None
        else:
            times = _picture_times(path) if path.suffix.lower() in _PILLOW else _video_times(path)
            frames = len(times)
        for first in _frames_of(path):
            height, width, _ = first().shape
            return Source(width, height, frames, times)
        raise ValueError("there is no frame in it")


def count_shown(times: Sequence[float] | None, frames: int, fps: float) -> int:
    """How many frames a clip gives at 0, 1 / fps, 2 / fps ... seconds; all of its `frames` where fps is 0.

    times: when each frame is shown; the last one stays for as long as the one before it. None: one after the other.

    Raises UnusableClipError for a frame that stands still for longer than in any clip: its time is wrong.
    """
    if not fps or times is None or frames == 1:
        return frames
    for number, (before, after) in enumerate(itertools.pairwise(times), 2):
        if after - before > _LONGEST_STILL_S:
            raise UnusableClipError(
                f"its frame {number} is shown {after - before:.0f} s after the one before it. Cut the clip there; if "
                "the times in the file are wrong, convert it to a constant frame rate."
            )
    end = 2 * times[-1] - times[-2]  # when the last frame has been shown: its own duration is not known
    return max(1, math.ceil((end - times[0] - _CLOCK_S) * fps))


def shown_frames(times: Sequence[float] | None, fps: float, moments: range) -> list[int]:
    """Which of a clip's frames is shown at k / fps seconds for each k of `moments`; see count_shown.

    A list of all moments would be as long as the numbers in a file say.
    """
    if not fps or times is None or len(times) == 1:
        return list(moments)
    # At each time the last frame that has begun by then.
    return [bisect.bisect_right(times, times[0] + k / fps + _CLOCK_S) - 1 for k in moments]


def choose_size(spec: DatasetSpec, source: Source, available: int) -> tuple[int, int, int] | None:
    """(width, height, frames) of the bucket that a clip of `available` frames goes to; None where it fills none."""
    # Logarithms: 2:1 and 1:2 are equally far from 1:1.
    aspect = math.log(source.width / source.height)
    sizes = spec.sizes()
    if spec.buckets == "auto":
        own = _own_aspect(spec.width, spec.height, aspect)
        sizes = [(*own, frames) for _, _, frames in sizes]
    off = {size: abs(math.log(size[0] / size[1]) - aspect) for size in sizes}
    # All sizes of the nearest aspect ratio, which may differ in frames or resolution; 1e-6 is for rounding.
    nearest = [size for size in sizes if off[size] <= min(off.values()) + 1e-6]
    filled = [size for size in nearest if size[2] <= available]
    if filled:
        return max(filled, key=lambda size: (size[2], size[0] * size[1]))
    if spec.shorter == "skip" or available < _LEAST_FRAMES:
        return None
    width, height, _ = min(nearest, key=lambda size: size[2])
    return width, height, (available - 1) // 8 * 8 + 1


def cut_segments(spec: DatasetSpec, source: Source, crop_offset: tuple[float, float]) -> list[Segment]:
    """What is taken of a clip, in order; nothing where it is too short. crop_offset: see Segment.

    Raises UnusableClipError as count_shown does.
    """
    available = count_shown(source.times, source.frames, spec.fps)
    size = choose_size(spec, source, available)
    if size is None:
        return []
    width, height, frames = size
    # Evenly spaced from the first frame to the last. As many fit one after the other, no two of them overlap.
    room = available - frames
    count = min(spec.segments, available // frames)
    starts = [round(i * room / (count - 1)) for i in range(count)] if count > 1 else [0]
    taken = (shown_frames(source.times, spec.fps, range(start, start + frames)) for start in starts)
    return [Segment(tuple(indices), width, height, crop_offset) for indices in taken]


def read_segment(path: Path, segment: Segment) -> torch.Tensor:
    """Frames [F, height, width, 3] in 0 .. 1, one frame of the file in memory at a time.

    Raises UnusableClipError where the file is damaged.
    """
    out = torch.empty(len(segment.indices), segment.height, segment.width, 3)
    done, number = 0, -1
    with _readable(path):
        for number, frame in enumerate(_frames_of(path)):
            if number == segment.indices[done]:
                # [H, W, 3] in 0 .. 255 -> [1, rows, columns, 3] in 0 .. 1
                pixels = _window(torch.from_numpy(frame()), segment)[None].float() / 255
                again = segment.indices.count(number)  # more than 1 where the clip has fewer frames a second than asked
                out[done : done + again] = fit_pictures(pixels, segment.width, segment.height)
                done += again
                if done == len(out):
                    return out
        raise ValueError(f"it ends after {number + 1} frames, fewer than it announces")


def _own_aspect(width: int, height: int, log_aspect: float) -> tuple[int, int]:
    """The multiples of 16 of about the same area that come nearest to an aspect ratio."""
    side, stretch = math.sqrt(width * height), math.exp(log_aspect / 2)
    return _nearest_multiple(side * stretch), _nearest_multiple(side / stretch)


def _nearest_multiple(side: float) -> int:
    return max(SIZE_STEP, round(side / SIZE_STEP) * SIZE_STEP)


def _window(pixels: torch.Tensor, segment: Segment) -> torch.Tensor:
    """The part of a frame [H, W, 3] that has the bucket's aspect ratio, at the segment's offset."""
    rows, columns, _ = pixels.shape
    kept_columns = min(columns, max(1, round(rows * segment.width / segment.height)))
    kept_rows = min(rows, max(1, round(columns * segment.height / segment.width)))
    left = int(segment.crop_offset[0] * (columns - kept_columns))
    top = int(segment.crop_offset[1] * (rows - kept_rows))
    return pixels[top : top + kept_rows, left : left + kept_columns]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises UnusableClipError in place of the errors that PyAV and Pillow raise for a file that they cannot read."""
    try:
        yield
    except (FFmpegError, OSError, ValueError, LookupError, EOFError, SyntaxError, Image.DecompressionBombError) as e:
        raise UnusableClipError(f"it cannot be read ({e}). Replace the file, or take it out of the dataset.") from e


def _frames_of(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    """For each frame a function that returns it as [H, W, 3] in 0 .. 255.

    Not every frame is needed, and the conversion to RGB costs time. Call the function before asking for the next frame:
    Pillow decodes all frames of an animation into one object.
    """
    if path.is_dir():
        frames: Iterator[Callable[[], np.ndarray]] = (partial(_picture, file) for file in pictures_in(path))
    else:
        frames = _animation_frames(path) if path.suffix.lower() in _PILLOW else _video_frames(path)
    for frame in frames:
        throw_if_interrupted()
        yield frame


@contextmanager
def _open_picture(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Raises ValueError where it declares more pixels than any clip has: Pillow would reserve them."""
    with Image.open(path, formats=formats) as picture:
        _require_pixels(*picture.size)
        yield picture


def _require_pixels(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise ValueError(f"it declares {width} x {height} pixels")


def _picture(path: Path) -> np.ndarray:
    with _open_picture(path, FRAME_FORMATS) as picture:
        return _rgb(ImageOps.exif_transpose(picture))


def _rgb(picture: Image.Image) -> np.ndarray:
    """[H, W, 3] in 0 .. 255."""
    # 16 bits of grey, "I;16" or in older versions "I": Pillow's conversion cuts all above 255 to white.
    if picture.mode.startswith("I"):
        grey = (np.asarray(picture).astype(np.uint32) + 128) // 257
        return grey.astype(np.uint8)[:, :, None].repeat(3, axis=2)
    return np.array(picture.convert("RGB"))


def _animation_frames(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    with _open_picture(path, ANIMATION_FORMATS) as picture:
        for frame in ImageSequence.Iterator(picture):
            yield lambda frame=frame: np.array(frame.convert("RGB"))


def _picture_times(path: Path) -> tuple[float, ...]:
    times = [0.0]
    with _open_picture(path, ANIMATION_FORMATS) as picture:
        for frame in ImageSequence.Iterator(picture):
            throw_if_interrupted()
            frame.load()  # a WebP frame has its duration only once it is decoded
            # Browsers show a frame without a duration, or with 0, for 100 ms.
            times.append(times[-1] + (frame.info.get("duration") or 100) / 1000)
    return tuple(times[:-1])


def _video_frames(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    check_mp4(path)
    with av.open(str(path), options=VIDEO_OPTIONS) as container:
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:  # FFmpeg conceals damage and returns the frame all the same
                raise ValueError(f"frame {number + 1} is damaged")
            yield partial(_upright, frame)


def _video_stream(container: InputContainer) -> VideoStream:
    """The first video stream. Raises ValueError where there is none that can be decoded, or it declares more pixels
    than any clip has: FFmpeg would reserve them for each of its threads, whatever the file contains."""
    streams = [
        stream for stream in container.streams.video if not int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE
    ]
    if not streams:
        raise ValueError(f"it has no video, only {'sound' if container.streams.audio else 'other streams'}")
    stream = streams[0]
    context: Any = stream.codec_context
    if context is None:
        raise ValueError("its video is of a kind that this version of FFmpeg does not decode")
    _require_pixels(stream.width, stream.height)
    context.options = {"max_pixels": str(_MAX_PIXELS)}  # what the frames declare may differ
    return stream


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3], turned as the file says: a phone that is held upright stores pictures that lie on their side, and
    notes by how many degrees, counterclockwise, they are to be turned."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _video_times(path: Path) -> tuple[float, ...]:
    """When each frame is shown, in seconds, read from the packets alone: nothing is decoded.

    Packets come in the order of decoding, with B frames after those that they are shown before. Those marked as
    discarded were cut off by an edit list and give no frame.
    """
    check_mp4(path)
    with av.open(str(path), options=VIDEO_OPTIONS) as container:
        stream = _video_stream(container)
        times, count = [], 0
        for packet in container.demux(stream):
            throw_if_interrupted()
            if packet.size and not getattr(packet, "is_discard", False):
                count += 1
                if packet.pts is not None and packet.time_base is not None:
                    times.append(packet.pts * packet.time_base)
        if len(times) < count:
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return tuple(number / rate for number in range(count))
        return tuple(sorted(float(time) for time in times))
