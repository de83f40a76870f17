"""The causal convolutions: each output frame is made of an input frame and the two before it.

They are the only layers that pass something from one chunk of frames to the next: the last two input frames of each.
Source: diffusers autoencoder_kl_cogvideox.py, CogVideoXCausalConv3d.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .stream import Stream

TAPS = 3  # frames that the kernel spans in time
Fill = Callable[[int, int, bool, torch.Tensor], None]


def causal_convolution(
    stream: Stream,
    conv: torch.nn.Conv3d,
    fill: Fill,
    size: tuple[int, int, int],
    on_bias: Callable[[torch.Tensor], None] | None = None,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Convolve a chunk of size (frames, height, width); yields (frame, first row, rows [1, O, r, W]), band by band.

    fill(t, start, last, out) writes rows from `start` on of input frame t to `out` [1, C, r, W]. For each band it is
    called with the frames in order, and with one row more on either side than the band has, where there is one: in this
    process, or in another that shares it (Stream.reach). last: this frame is not asked for again.

    on_bias(bias [O]): called before the first rows, which then come without the bias.

    The 3-D convolution is computed as a 2-D convolution over the channels of three frames, because libraries' 2-D
    kernels are faster than their 3-D kernels. The three frames are in a ring of slots: frame t overwrites the oldest
    one, in slot t % 3. The slots are therefore in the order of time only for every third frame, and instead of moving
    frames, each output takes one of three copies of the weights, whose taps are in the order of its slots.
    """
    count, height, width = size
    low, high = stream.reach(height)
    # Taken out of the stream and not only read, so that the device can free them after the last band of this chunk.
    before, after = stream.caches.pop(conv, None), list[torch.Tensor]()
    first_chunk = before is None
    with stream.weights(conv) as (weight, bias):
        if on_bias is not None and bias is not None:
            on_bias(bias)
            bias = None
        kernels = _ring_kernels(weight, min(count, TAPS), stream.layout)
        channels = max(TAPS * conv.in_channels, conv.out_channels)  # of the ring, or of the result
        for start, stop in stream.bands(height, width, channels):
            ring, slots, top, bottom = _new_ring(stream, conv.in_channels, height, width, start, stop)
            # The ring holds one band only. Each band therefore starts again from the two frames before the chunk.
            if before:
                _recall(stream, before, slots, top - low, bottom - low)
                before = None if stop == height else before
            for t in range(count):
                fill(t, top, stop == height, slots[:, t % TAPS])
                # A video begins as if its first frame had been shown twice before.
                if t == 0 and first_chunk:
                    slots[:, 1:] = slots[:, :1]
                # No padding in height: the ring has the rows above and below the band, zeros at a frame's edge.
                yield t, start, F.conv2d(ring.flatten(1, 2), kernels[t % TAPS], bias, padding=(0, 1))
            if not stream.last:
                if not after:
                    after = _new_caches(stream, conv.in_channels, high - low, width)
                # For a chunk of one frame `first` is -1: its slot, -1 % 3 = 2, holds the frame before the chunk.
                first = count - (TAPS - 1)
                # Each row once, though the bands overlap; those of other processes with the first and the last band.
                kept, end = top if start == 0 else start, bottom if stop == height else stop
                for cache in after:
                    _remember(
                        stream, slots[..., kept - top : end - top, :], first, cache[..., kept - low : end - low, :]
                    )
                    first += cache.shape[1]
            # Otherwise they would be alive while the next band's are allocated, and two rings would count at the peak.
            del ring, slots
    if after:
        stream.caches[conv] = after


def _new_caches(stream: Stream, channels: int, height: int, width: int) -> list[torch.Tensor]:
    """Room for the last two frames of a chunk, [1, n, C, H, W] each, the older one first: both in one tensor on the
    device, where a copy of both takes one kernel; in two on the host, as the device has room for one at a time."""
    on_host = stream.plan.caches_on_host
    at_once = 1 if on_host else TAPS - 1
    return [
        stream.empty(at_once * channels, height, width, on_host).unflatten(1, (at_once, channels))
        for _ in range((TAPS - 1) // at_once)
    ]


def _recall(stream: Stream, before: list[torch.Tensor], slots: torch.Tensor, top: int, bottom: int) -> None:
    """Copy rows of the two frames before a chunk, the older one first, to the slots of frames -2 and -1: 1 and 2.
    top, bottom: first row and last + 1 in the cache."""
    slot = 1
    for cache in before:
        count = cache.shape[1]
        # Without a name for the copy: it would be alive while the next one is made.
        slots[:, slot : slot + count] = cache[..., top:bottom, :].to(slots.device, non_blocking=stream.copies_ahead)
        slot += count


def _remember(stream: Stream, slots: torch.Tensor, first: int, cache: torch.Tensor) -> None:
    """Copy the frames from `first` on to their cache [1, n, C, r, W]; slots: [1, 3, C, r, W], the ring's."""
    slot, count = first % TAPS, cache.shape[1]
    before_end = min(count, TAPS - slot)  # the frames after these are at the ring's beginning
    pieces = [(slots[:, slot : slot + before_end], cache[:, :before_end])]
    if before_end < count:
        pieces.append((slots[:, : count - before_end], cache[:, before_end:]))
    for rows, kept in pieces:
        rows, kept = rows.flatten(0, 1), kept.flatten(0, 1)
        if rows.device != kept.device:
            # The rows are a view whose strides are those of the ring. Given such a view, torch would copy it to the
            # host and reorder its axes there, which is slow: here it is made contiguous on the device, and copied in
            # one piece.
            rows = rows.contiguous(memory_format=stream.layout)
        kept.copy_(rows, non_blocking=stream.copies_ahead)


def _new_ring(
    stream: Stream, channels: int, height: int, width: int, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Room for three frames' rows `start` .. `stop` and one more on either side, which is zero where a frame ends.

    Returns the ring [1, 3, C, stop - start + 2, W], the part of it whose rows are known (Stream.reach),
    [1, 3, C, r, W], and the first row and last + 1 of that part in the frame.
    """
    # Allocated as one frame of 3 C channels, so that flatten(1, 2) of the ring is a view in the stream's memory format:
    # the convolution reads the three frames where they are.
    ring = stream.empty(TAPS * channels, stop - start + 2, width).unflatten(1, (TAPS, channels))
    low, high = stream.reach(height)
    top, bottom = max(start - 1, low), min(stop + 1, high)
    if top == start and bottom == stop:
        ring[..., :: stop - start + 1, :] = 0  # the first row and the last, in one kernel
    elif top == start:
        ring[..., 0, :] = 0
    elif bottom == stop:
        ring[..., -1, :] = 0
    return ring, ring[..., top - start + 1 : bottom - start + 1, :], top, bottom


def _ring_kernels(weight: torch.Tensor, count: int, layout: torch.memory_format) -> list[torch.Tensor]:
    """[O, C, 3, kh, kw] -> `count` kernels [O, 3 C, kh, kw], number t for a ring whose newest frame is in slot t."""
    # In each kernel the last tap is the newest frame's, in slot t, and the taps before it belong to the slots before t,
    # cyclically. Of the taps 0 1 2 0 1 in a row, kernel 2 is therefore the first three, kernel 1 the three after the
    # first, and kernel 0 the last three: two passes over the weights make all of them, and no convolution has to
    # convert its own, whose memory is ordered O, kh, kw, 3, C for channels last.
    last = layout == torch.channels_last
    taps = weight.flatten(3).permute(*((2, 0, 3, 1) if last else (2, 0, 1, 3)))
    row = torch.cat([taps[TAPS - count :], taps[: TAPS - 1]], dim=0)
    # [count + 2, O, ., .] -> [count, O, ., ., 3] -> [count, O, kh kw, 3, C] or [count, O, 3, C, kh kw]
    kernels = row.unfold(0, TAPS, 1).permute(*((0, 1, 2, 4, 3) if last else (0, 1, 4, 2, 3))).contiguous()
    del taps, row
    if last:
        kernels = kernels.flatten(3).unflatten(2, weight.shape[3:]).permute(0, 1, 4, 2, 3)
    else:
        kernels = kernels.flatten(2, 3).unflatten(3, weight.shape[3:])
    return [kernels[count - 1 - t] for t in range(count)]
