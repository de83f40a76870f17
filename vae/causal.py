"""The causal convolutions: three frames in, one out, linked from chunk to chunk by the two frames before."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .stream import Stream

TAPS = 3
Fill = Callable[[int, int, bool, torch.Tensor], None]


def causal_convolution(
    stream: Stream, conv: torch.nn.Conv3d, fill: Fill, size: tuple[int, int, int]
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Convolve a chunk of size (frames, height, width); yields (frame, first row, rows [1, O, r, W]), band by band.

    fill(t, start, last, out) writes rows from `start` on of input frame t to `out` [1, C, r, W].
    last: this frame is not asked for again.

    It is computed as a convolution in the plane over the channels of three frames: libraries' kernels for these are
    faster than those in space and time. No frame is copied within the ring: each new one overwrites the oldest, and
    the weights are rolled to match.
    """
    count, height, width = size
    before, after = stream.caches.pop(conv, None), list[torch.Tensor]()
    first_chunk = before is None
    with stream.weights(conv) as (weight, bias):
        kernels = _ring_kernels(weight, min(count, TAPS), stream.layout)
        for start, stop in stream.bands(height, width):
            ring, slots, top, bottom = _new_ring(stream, conv.in_channels, height, width, start, stop)
            if before:
                _recall(before, slots, top, bottom)
                before = None if stop == height else before
            for t in range(count):
                fill(t, top, stop == height, slots[:, t % TAPS])
                if t == 0 and first_chunk:  # a video begins as if its first frame had been shown twice before
                    slots[:, 1:] = slots[:, :1]
                yield t, start, F.conv2d(ring.flatten(1, 2), kernels[t % TAPS], bias, padding=(0, 1))
            if not stream.last:
                if not after:
                    on_host = stream.plan.caches_on_host
                    after = [stream.empty(conv.in_channels, height, width, on_host) for _ in range(TAPS - 1)]
                for t, frame in enumerate(after, start=count - len(after)):
                    _remember(ring[:, t % TAPS, :, 1:-1], frame[:, :, start:stop], stream.layout)
            del ring, slots  # or they would be alive while the next ones are allocated
    if after:
        stream.caches[conv] = after


def _recall(before: list[torch.Tensor], slots: torch.Tensor, top: int, bottom: int) -> None:
    """Put rows of the two frames before a chunk where its first frame's convolution looks for them."""
    for slot, frame in enumerate(before, start=1):
        slots[:, slot] = frame[:, :, top:bottom].to(slots.device, non_blocking=True)


def _remember(rows: torch.Tensor, cache: torch.Tensor, layout: torch.memory_format) -> None:
    """Copy a ring's rows to their cache."""
    if rows.device != cache.device:
        # In one piece: given a view of other strides, torch would copy it and reorder the axes on the host, slowly.
        rows = rows.contiguous(memory_format=layout)
    cache.copy_(rows, non_blocking=True)


def _new_ring(
    stream: Stream, channels: int, height: int, width: int, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Room for three frames' rows `start` .. `stop` and one more on either side, which is zero where a frame ends.

    Returns it [1, 3, C, stop - start + 2, W], the part of it within the frame, and that part's rows.
    """
    # flatten(1, 2) of the ring stays a view: to the convolution the three frames are one with three times the channels
    ring = stream.empty(TAPS * channels, stop - start + 2, width).unflatten(1, (TAPS, channels))
    top, bottom = max(start - 1, 0), min(stop + 1, height)
    if start == 0:
        ring[..., 0, :] = 0
    if stop == height:
        ring[..., -1, :] = 0
    return ring, ring[..., top - start + 1 : bottom - start + 1, :], top, bottom


def _ring_kernels(weight: torch.Tensor, count: int, layout: torch.memory_format) -> list[torch.Tensor]:
    """[O, C, 3, kh, kw] -> `count` kernels [O, 3 C, kh, kw], number t for a ring whose newest frame is in slot t."""
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
