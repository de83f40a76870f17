"""The frames of one chunk somewhere in the network: kept, or computed whenever they are looked at."""

import torch
import torch.nn.functional as F

from ..host.ops import weights_on
from .layout import empty_frame, memory_format


class KeptFrames:
    """Frames [1, C, H, W], on the device that computes or on the host. A frame that stands twice is kept once."""

    def __init__(self, count: int, height: int, width: int, device: torch.device, on_host: bool = False):
        self.count, self.height, self.width = count, height, width
        self.device, self.on_host = device, on_host
        self._frames: list[torch.Tensor | None] = [None] * count

    def read(self, t: int, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of frame t, on the device that computes."""
        frame = self._frames[t]
        return (frame if stop - start == self.height else frame[:, :, start:stop]).to(self.device, non_blocking=True)

    def write(self, t: int, start: int, rows: torch.Tensor) -> None:
        """Set rows from `start` on; a whole frame is taken over as it is."""
        if rows.shape[2] == self.height and not self.on_host:
            self._frames[t] = rows
            return
        frame = self._frames[t]
        if frame is None or self._stands_twice(t):
            layout = memory_format(self.device, rows.dtype)
            size = rows.shape[1], self.height, self.width
            fresh = empty_frame(*size, rows.dtype, self.device, layout, self.on_host)
            if frame is not None and rows.shape[2] < self.height:
                fresh.copy_(frame)
            frame = self._frames[t] = fresh
        frame[:, :, start : start + rows.shape[2]].copy_(rows, non_blocking=True)

    def _stands_twice(self, t: int) -> bool:
        near = (other for other in (t - 1, t + 1) if 0 <= other < self.count)
        return any(self._frames[t] is self._frames[other] for other in near)

    def repeat(self, t: int) -> None:
        """Let frame t be frame t - 1."""
        self._frames[t] = self._frames[t - 1]

    def release(self, t: int) -> None:
        """Frame t is no longer needed."""
        self._frames[t] = None


class UpsampledFrames:
    """Frames twice as large, and up to twice as many, as those they are computed from whenever they are read."""

    def __init__(self, source: KeptFrames, sources: list[int], conv: torch.nn.Conv2d):
        self.count, self.height, self.width = len(sources), 2 * source.height, 2 * source.width
        self.device = source.device
        self._source, self._sources, self._conv = source, sources, conv

    def read(self, t: int, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of frame t."""
        # rows of the source that the convolution's 3 x 3 window reaches
        first, last = max(start - 1, 0) // 2, min(stop // 2 + 1, self._source.height)
        rows = F.interpolate(self._source.read(self._sources[t], first, last), scale_factor=2.0)
        with weights_on(self._conv, rows.device, rows.dtype) as (weight, bias):
            rows = F.conv2d(rows, weight, bias, padding=1)
        if stop - start == self.height:
            return rows
        return rows[:, :, start - 2 * first : stop - 2 * first]

    def repeats(self, t: int) -> bool:
        """Whether frame t is frame t - 1."""
        return t > 0 and self._sources[t] == self._sources[t - 1]

    def release(self, t: int) -> None:
        """Frame t is no longer needed: drop what it came from, if no frame after it needs that."""
        if t + 1 == self.count or self._sources[t + 1] != self._sources[t]:
            self._source.release(self._sources[t])


def upsampled_sources(frame_count: int, compress_time: bool) -> list[int]:
    """Which frame each frame after an upsampler comes from; in time, an odd chunk's first frame stays alone.

    Source: diffusers upsampling.py, CogVideoXUpsample3D.
    """
    if not compress_time or frame_count == 1:
        return list(range(frame_count))
    alone = frame_count % 2
    return list(range(alone)) + [t for t in range(alone, frame_count) for _ in range(2)]


def downsampled_sources(frame_count: int, compress_time: bool) -> list[tuple[int, ...]]:
    """Which frames each frame after a downsampler is the mean of; an odd chunk's first frame stays alone.

    Source: diffusers downsampling.py, CogVideoXDownsample3D.
    """
    if not compress_time:
        return [(t,) for t in range(frame_count)]
    alone = frame_count % 2
    return [(t,) for t in range(alone)] + [(t, t + 1) for t in range(alone, frame_count - 1, 2)]
