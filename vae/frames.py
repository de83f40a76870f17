"""The frames of one chunk somewhere in the network: kept, or computed whenever they are looked at."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from .stream import Stream


class KeptFrames:
    """Frames [1, C, H, W], on the device that computes or on the host.

    A frame that an upsampler has repeated is kept once: two neighbours are then the same tensor, until one is written.
    """

    def __init__(self, stream: Stream, count: int, height: int, width: int, on_host: bool):
        self.count, self.height, self.width = count, height, width
        self.on_host = on_host
        self._stream = stream
        self._frames: list[torch.Tensor | None] = [None] * count
        # Of other processes, [1, C, n, W]: the rows above and below; and which of the n is frame t's.
        self._around: tuple[torch.Tensor | None, torch.Tensor | None] = None, None
        self._places: list[int] = []

    def share_edges(self) -> None:
        """Exchange with the processes that have the other rows what a window of 3 x 3 needs of them. To be called
        before `pieces`, each time after the frames have been written."""
        if self._stream.rows is None:
            return
        apart = [t for t in range(self.count) if not t or self._frames[t] is not self._frames[t - 1]]
        self._places = [sum(other <= t for other in apart) - 1 for t in range(self.count)]
        first, last = (torch.cat([self.read(t, row, row + 1) for t in apart], dim=2) for row in (0, self.height - 1))
        self._around = self._stream.rows.neighbours(first, last)

    def pieces(self, t: int, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) that together are rows `start` to `stop` of frame t; row -1 and row `height` are those of
        other processes, from share_edges."""
        above, below = self._around
        if start < 0 and above is not None:
            yield -1, above[:, :, self._places[t], None]
        inside = max(start, 0)
        yield inside, self.read(t, inside, min(stop, self.height))
        if stop > self.height and below is not None:
            yield self.height, below[:, :, self._places[t], None]

    def read(self, t: int, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of frame t, on the device that computes."""
        frame = self._frames[t]
        assert frame is not None, f"frame {t} was released"
        # On the device this is the kept tensor itself or a view of it, not a copy.
        rows = frame if stop - start == self.height else frame[:, :, start:stop]
        return rows.to(self._stream.device, non_blocking=self._stream.copies_ahead)

    def write(self, t: int, start: int, rows: torch.Tensor) -> None:
        """Set rows from `start` on.

        Where frames are on the device, a tensor of all rows is kept itself, without a copy: the caller must not change
        it afterwards.
        """
        if rows.shape[2] == self.height and not self.on_host:
            self._frames[t] = rows
            return
        frame = self._frames[t]
        # Written in place, a shared frame would change its neighbour as well. Rows outside of this band are copied.
        if frame is None or self._is_shared(t):
            own = self._stream.empty(rows.shape[1], self.height, self.width, self.on_host)
            if frame is not None and rows.shape[2] < self.height:
                if self.on_host:
                    self._stream.finish_copies()  # this copy is the host's own, which no order of the device's holds up
                own.copy_(frame)
            frame = self._frames[t] = own
        frame[:, :, start : start + rows.shape[2]].copy_(rows, non_blocking=self._stream.copies_ahead)

    def _is_shared(self, t: int) -> bool:
        """Whether frame t and one next to it are the same tensor."""
        near = (other for other in (t - 1, t + 1) if 0 <= other < self.count)
        return any(self._frames[t] is self._frames[other] for other in near)

    def repeat(self, t: int) -> None:
        """Let frame t be frame t - 1."""
        self._frames[t] = self._frames[t - 1]

    def release(self, t: int) -> None:
        """Frame t is no longer needed."""
        self._frames[t] = None


class UpsampledFrames:
    """Frames twice as large, and up to twice as many, as those they are computed from whenever they are read.

    An upsampler convolves frame by frame, in the plane: the two frames that it makes of one in time are equal.
    """

    def __init__(
        self, stream: Stream, source: KeptFrames, offset: torch.Tensor, sources: list[int], conv: torch.nn.Conv2d
    ):
        """offset [C], fp32: what is still to be added to each channel of `source`."""
        self.bias: torch.Tensor | None = None  # [O], fp32, of the convolution, which the frames come without; once read
        self.count, self.height, self.width = len(sources), 2 * source.height, 2 * source.width
        self._stream, self._source, self._sources, self._conv = stream, source, sources, conv
        self._offset = offset
        source.share_edges()

    def share_edges(self) -> None:
        """As KeptFrames: the rows of other processes are computed here from those of the source."""

    def pieces(self, t: int, start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        """As KeptFrames."""
        yield start, self.read(t, start, stop)

    def read(self, t: int, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of frame t; see KeptFrames.pieces for row -1 and row `height`."""
        # Source rows that the convolution's 3 x 3 window reaches. At a cut within the frame they give at least one row
        # more than is asked for, in which the convolution's own zero padding is wrong, and which is cut off below.
        low, high = self._stream.reach(self._source.height)
        first, last = max((start - 1) // 2, low), min(stop // 2 + 1, high)
        rows = F.interpolate(self._with_offset(self._sources[t], first, last), scale_factor=2.0)
        with self._stream.weights(self._conv) as (weight, bias):
            if self.bias is None:
                self.bias = own_copy(bias)
            rows = F.conv2d(rows, weight, padding=1)
        if rows.shape[2] == stop - start:
            return rows
        return rows[:, :, start - 2 * first : stop - 2 * first]

    def _with_offset(self, t: int, start: int, stop: int) -> torch.Tensor:
        """Rows of frame t of the source with the offset added, rounded once: a new tensor, as the source keeps its."""
        rows = joined(self._source.pieces(t, start, stop))
        return torch.add(rows, self._offset.view(1, -1, 1, 1), out=torch.empty_like(rows))

    def repeats(self, t: int) -> bool:
        """Whether frame t is frame t - 1."""
        return t > 0 and self._sources[t] == self._sources[t - 1]

    def release(self, t: int) -> None:
        """Frame t is no longer needed: drop what it came from, if no frame after it needs that."""
        if t + 1 == self.count or self._sources[t + 1] != self._sources[t]:
            self._source.release(self._sources[t])


def joined(pieces: Iterator[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """The rows of KeptFrames.pieces as one tensor; what is a single piece is not copied."""
    parts = [rows for _, rows in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def own_copy(bias: torch.Tensor | None) -> torch.Tensor:
    """A layer's bias in fp32, to be used after Stream.weights has let go of it: its memory may be used again there."""
    assert bias is not None, "every convolution of the VAE has one"
    return bias.to(torch.float32, copy=True)


def upsampled_sources(frame_count: int, compress_time: bool) -> list[int]:
    """Which frame each frame after an upsampler comes from.

    With compress_time every frame is repeated, except for the first of an odd chunk (the first chunk of a video of
    4 k + 1 frames) and a chunk's only frame.

    Source: diffusers upsampling.py, CogVideoXUpsample3D.
    """
    if not compress_time or frame_count == 1:
        return list(range(frame_count))
    alone = frame_count % 2
    return list(range(alone)) + [t for t in range(alone, frame_count) for _ in range(2)]


def downsampled_sources(frame_count: int, compress_time: bool) -> list[tuple[int, ...]]:
    """Which frames each frame after a downsampler is the mean of.

    With compress_time these are two, except for the first frame of an odd chunk, which stays alone.

    Source: diffusers downsampling.py, CogVideoXDownsample3D.
    """
    if not compress_time:
        return [(t,) for t in range(frame_count)]
    alone = frame_count % 2
    return [(t,) for t in range(alone)] + [(t, t + 1) for t in range(alone, frame_count - 1, 2)]
