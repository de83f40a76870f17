"""The causal convolutions: three frames in, one out, linked from chunk to chunk by the two frames before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..host.compat import throw_if_interrupted
from ..host.ops import weights_on
from .activation import Activation, modulated_silu
from .layout import empty_frame, empty_frames, memory_format
from .plan import Plan

TAPS = 3
Fill = Callable[[int, int, bool, torch.Tensor], None]


@dataclass
class Stream:
    """One video's way through one network: how it is done, and what the next chunk needs of the last one."""

    plan: Plan
    device: torch.device
    dtype: torch.dtype
    activation: Activation = modulated_silu
    last: bool = False  # no chunk comes after this one: nothing is kept for it
    # by convolution: the last two frames that it saw, each [1, C, H, W]
    caches: dict[torch.nn.Module, list[torch.Tensor]] = field(default_factory=dict)

    @property
    def layout(self) -> torch.memory_format:
        """How its frames lie in memory."""
        return memory_format(self.device, self.dtype)


def causal_convolution(
    stream: Stream, conv: torch.nn.Conv3d, fill: Fill, size: tuple[int, int, int]
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Convolve a chunk of size (frames, height, width); yields (frame, first row, rows [1, O, r, W]), band by band.

    fill(t, start, last, out) writes rows from `start` on of input frame t to `out` [1, C, r, W].
    last: this frame is not asked for again.

    As a convolution in the plane over three frames' channels: kernels for these are faster than those in space and
    time, and no frame is copied, for each overwrites the oldest one, where the weights expect it.
    """
    count, height, width = size
    before, after = stream.caches.pop(conv, None), []
    first_chunk = before is None
    with weights_on(conv, stream.device, stream.dtype) as (weight, bias):
        kernels = _ring_kernels(weight, min(count, TAPS), stream.layout)
        for start, stop in stream.plan.bands(height, width):
            throw_if_interrupted()
            ring, slots, top, bottom = _new_ring(stream, conv.in_channels, height, width, start, stop)
            if before:
                _recall(before, slots, top, bottom)
                before = None if stop == height else before
            for t in range(count):
                fill(t, top, stop == height, slots[:, t % TAPS])
                if t == 0 and first_chunk:  # the first frame stands for the two before it
                    slots[:, 1:] = slots[:, :1]
                yield t, start, F.conv2d(ring.flatten(1, 2), kernels[t % TAPS], bias, padding=(0, 1))
            if not stream.last:
                after = after or [_new_cache(stream, conv.in_channels, height, width) for _ in range(TAPS - 1)]
                for t, frame in enumerate(after, start=count - len(after)):
                    _remember(ring[:, t % TAPS, :, 1:-1], frame[:, :, start:stop], stream.layout)
            del ring, slots  # before the next ones are made
    if after:
        stream.caches[conv] = after


def _recall(before: list[torch.Tensor], slots: torch.Tensor, top: int, bottom: int) -> None:
    """Put rows of the two frames before a chunk where its first frame's convolution looks for them."""
    for place, frame in enumerate(before, start=1):
        slots[:, place] = frame[:, :, top:bottom].to(slots.device, non_blocking=True)


def _remember(rows: torch.Tensor, cache: torch.Tensor, layout: torch.memory_format) -> None:
    """Copy a ring's rows to where they are kept; to the host as one piece, for else torch turns the axes there."""
    if rows.device != cache.device:
        rows = rows.contiguous(memory_format=layout)
    cache.copy_(rows, non_blocking=True)


def _new_cache(stream: Stream, channels: int, height: int, width: int) -> torch.Tensor:
    on_host = stream.plan.caches_on_host
    return empty_frame(channels, height, width, stream.dtype, stream.device, stream.layout, on_host)


def _new_ring(
    stream: Stream, channels: int, height: int, width: int, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Room for three frames' rows `start` .. `stop` and one more on either side, which is zero where a frame ends.

    Returns it [1, 3, C, stop - start + 2, W], the part of it that lies within the frame, and that part's rows.
    """
    ring = empty_frames(TAPS, channels, stop - start + 2, width, stream.dtype, stream.device, stream.layout)
    top, bottom = max(start - 1, 0), min(stop + 1, height)
    if start == 0:
        ring[..., 0, :] = 0
    if stop == height:
        ring[..., -1, :] = 0
    return ring, ring[..., top - start + 1 : bottom - start + 1, :], top, bottom


def _ring_kernels(weight: torch.Tensor, count: int, layout: torch.memory_format) -> list[torch.Tensor]:
    """[O, C, 3, kh, kw] -> `count` kernels [O, 3 C, kh, kw], number t for a ring whose newest frame is in place t."""
    if layout == torch.channels_last:
        taps = weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 3, 4, 1, 2)
    else:
        taps = weight.transpose(1, 2).contiguous()
    kernels = []
    for t in range(count):
        kernel = torch.empty_like(taps)  # [O, 3, C, kh, kw]
        kernel[:, : t + 1], kernel[:, t + 1 :] = taps[:, TAPS - t - 1 :], taps[:, : TAPS - t - 1]
        kernels.append(kernel.flatten(1, 2))
    return kernels
