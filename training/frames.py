"""Clips frame by frame: when each is shown, which are taken, and their pixels at the size of a bucket."""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from PIL import Image, ImageOps, ImageSequence

from ..media.pictures import fit_pictures
from ..vae.geometry import SIZE_STEP
from .clips import DatasetSpec, UnusableClipError, pictures_in

_LEAST_FRAMES = 9  # of a clip that is shorter than asked: one picture does not move
_CLOCK_S = 0.002  # webm and gif round times to 1 and 10 ms; no frame is shown so shortly
_PILLOW = (".gif", ".webp")  # ffmpeg reads no animated webp


@dataclass(frozen=True)
class Source:
    """A clip before anything is taken of it. times: in seconds, when each frame is shown; None for pictures."""

    width: int
    height: int
    frames: int
    times: tuple[float, ...] | None


@dataclass(frozen=True)
class Segment:
    """What is taken of a clip. indices: of its frames, ascending.

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


def shown_frames(times: Sequence[float] | None, frames: int, fps: float) -> list[int]:
    """Which of a clip's frames is shown at 0, 1 / fps, 2 / fps ... seconds; all of them where fps is 0.

    times: when each frame is shown; the last one stays for as long as the one before it. None: one after the other.
    """
    if not fps or times is None or frames == 1:
        return list(range(frames))
    end = 2 * times[-1] - times[-2]
    count = max(1, math.ceil((end - times[0] - _CLOCK_S) * fps))
    return [bisect.bisect_right(times, times[0] + k / fps + _CLOCK_S) - 1 for k in range(count)]


def choose_size(spec: DatasetSpec, source: Source, available: int) -> tuple[int, int, int] | None:
    """(width, height, frames) of the bucket that a clip of `available` frames goes to; None where it fills none."""
    aspect = math.log(source.width / source.height)
    sizes = spec.sizes()
    if spec.buckets == "auto":
        own = _own_aspect(spec.width, spec.height, aspect)
        sizes = [(*own, frames) for _, _, frames in sizes]
    off = {size: abs(math.log(size[0] / size[1]) - aspect) for size in sizes}
    nearest = [size for size in sizes if off[size] <= min(off.values()) + 1e-6]
    filled = [size for size in nearest if size[2] <= available]
    if filled:
        return max(filled, key=lambda size: (size[2], size[0] * size[1]))
    if spec.shorter == "skip" or available < _LEAST_FRAMES:
        return None
    width, height, _ = min(nearest, key=lambda size: size[2])
    return width, height, (available - 1) // 8 * 8 + 1


def cut_segments(spec: DatasetSpec, source: Source, crop_offset: tuple[float, float]) -> list[Segment]:
    """What is taken of a clip, in order; nothing where it is too short. crop_offset: see Segment."""
    shown = shown_frames(source.times, source.frames, spec.fps)
    size = choose_size(spec, source, len(shown))
    if size is None:
        return []
    width, height, frames = size
    room = len(shown) - frames
    count = min(spec.segments, len(shown) // frames)
    starts = [round(i * room / (count - 1)) for i in range(count)] if count > 1 else [0]
    return [Segment(tuple(shown[start : start + frames]), width, height, crop_offset) for start in starts]


def read_segment(path: Path, segment: Segment) -> torch.Tensor:
    """Frames [F, height, width, 3] in 0 .. 1, one frame of the file in memory at a time.

    Raises UnusableClipError where the file is damaged.
    """
    out = torch.empty(len(segment.indices), segment.height, segment.width, 3)
    done, number = 0, -1
    with _readable(path):
        for number, frame in enumerate(_frames_of(path)):
            if number == segment.indices[done]:
                pixels = _window(torch.from_numpy(frame()), segment)[None].float() / 255
                again = segment.indices.count(number)
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
    """What decoders raise for a file that they cannot read, as UnusableClipError."""
    try:
        yield
    except (FFmpegError, OSError, ValueError, LookupError, EOFError, SyntaxError, Image.DecompressionBombError) as e:
        raise UnusableClipError(f"it cannot be read ({e}). Replace the file, or take it out of the dataset.") from e


def _frames_of(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    """For each frame a function that gives it as [H, W, 3], 0 .. 255: not all are wanted, and colours cost time."""
    if path.is_dir():
        return (partial(_picture, file) for file in pictures_in(path))
    return _animation_frames(path) if path.suffix.lower() in _PILLOW else _video_frames(path)


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


def _animation_frames(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    with Image.open(path) as picture:
        for frame in ImageSequence.Iterator(picture):
            yield lambda frame=frame: np.array(frame.convert("RGB"))


def _picture_times(path: Path) -> tuple[float, ...]:
    times = [0.0]
    with Image.open(path) as picture:
        for frame in ImageSequence.Iterator(picture):
            frame.load()  # webp knows a frame's time once it is decoded
            times.append(times[-1] + (frame.info.get("duration") or 100) / 1000)
    return tuple(times[:-1])


def _video_frames(path: Path) -> Iterator[Callable[[], np.ndarray]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise ValueError(f"frame {number + 1} is damaged")
            yield partial(_upright, frame)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """Phones film on their side and note by how many degrees to turn the picture back, to the left."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _video_times(path: Path) -> tuple[float, ...]:
    """From the packets alone: nothing is decoded."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size and not getattr(p, "is_discard", False)]
        times = [p.pts * p.time_base for p in packets if p.pts is not None and p.time_base is not None]
        if len(times) < len(packets):
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return tuple(number / rate for number in range(len(packets)))
        return tuple(sorted(float(time) for time in times))
