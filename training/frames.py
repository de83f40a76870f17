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
from PIL import Image, ImageOps, ImageSequence

from ..errors import TrainingError
from ..media.pictures import fit_pictures
from ..vae.geometry import SIZE_STEP
from .clips import DatasetSpec, pictures_in

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
class Piece:
    """What is taken of a clip. indices: of its frames, ascending. place: what the crop keeps, 0 .. 1 of the room."""

    indices: tuple[int, ...]
    width: int
    height: int
    place: tuple[float, float]


def probe_clip(path: Path) -> Source:
    """Raises TrainingError where nothing can be read from it."""
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


def take_pieces(spec: DatasetSpec, source: Source, place: tuple[float, float]) -> list[Piece]:
    """What is taken of a clip, in order; nothing where it is too short. place: see Piece."""
    shown = shown_frames(source.times, source.frames, spec.fps)
    size = choose_size(spec, source, len(shown))
    if size is None:
        return []
    width, height, frames = size
    room = len(shown) - frames
    pieces = min(spec.segments, len(shown) // frames)
    starts = [round(i * room / (pieces - 1)) for i in range(pieces)] if pieces > 1 else [0]
    return [Piece(tuple(shown[start : start + frames]), width, height, place) for start in starts]


def read_piece(path: Path, piece: Piece) -> torch.Tensor:
    """Frames [F, height, width, 3] in 0 .. 1, one frame of the file in memory at a time.

    Raises TrainingError where the file is damaged.
    """
    out = torch.empty(len(piece.indices), piece.height, piece.width, 3)
    done, number = 0, -1
    with _readable(path):
        for number, frame in enumerate(_frames_of(path)):
            if number == piece.indices[done]:
                pixels = _window(torch.from_numpy(frame()), piece)[None].float() / 255
                again = piece.indices.count(number)
                out[done : done + again] = fit_pictures(pixels, piece.width, piece.height)
                done += again
                if done == len(out):
                    return out
        raise ValueError(f"it ends after {number + 1} frames, before what is announced")


def _own_aspect(width: int, height: int, log_aspect: float) -> tuple[int, int]:
    """The multiples of 16 of about the same area that come nearest to an aspect ratio."""
    side = math.sqrt(width * height)
    sides = side * math.exp(log_aspect / 2), side * math.exp(-log_aspect / 2)
    return tuple(max(SIZE_STEP, round(s / SIZE_STEP) * SIZE_STEP) for s in sides)


def _window(pixels: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The part of a frame [H, W, 3] that has the bucket's aspect ratio, at the piece's place."""
    rows, columns, _ = pixels.shape
    kept_columns = min(columns, max(1, round(rows * piece.width / piece.height)))
    kept_rows = min(rows, max(1, round(columns * piece.height / piece.width)))
    left = int(piece.place[0] * (columns - kept_columns))
    top = int(piece.place[1] * (rows - kept_rows))
    return pixels[top : top + kept_rows, left : left + kept_columns]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What decoders raise for a file that they cannot read, as TrainingError."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, LookupError, EOFError, SyntaxError, Image.DecompressionBombError) as e:
        raise TrainingError(f"it cannot be read ({e}). Replace the file, or take it out of the dataset.") from e


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
        if any(packet.pts is None for packet in packets):
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return tuple(number / rate for number in range(len(packets)))
        return tuple(sorted(float(packet.pts * packet.time_base) for packet in packets))
