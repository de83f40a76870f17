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
    stream: Stream, conv: torch.nn.Conv3d, fill: Fill, size: tuple[int, int, int]
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Convolve a chunk of size (frames, height, width); yields (frame, first row, rows [1, O, r, W]), band by band.

    fill(t, start, last, out) writes rows from `start` on of input frame t to `out` [1, C, r, W]. For each band it is
    called with the frames in order, and with one row more on either side than the band has, where there is one.
    last: this frame is not asked for again.

    The 3-D convolution is computed as a 2-D convolution over the channels of three frames, because libraries' 2-D
    kernels are faster than their 3-D kernels. The three frames are in a ring of slots: frame t overwrites the oldest
    one, in slot t % 3. The slots are therefore in the order of time only for every third frame, and instead of moving
    frames, each output takes one of three copies of the weights, whose taps are in the order of its slots.
    """
    count, height, width = size
    # Taken out of the stream and not only read, so that the device can free them after the last band of this chunk.
    before, after = stream.caches.pop(conv, None), list[torch.Tensor]()
    first_chunk = before is None
    with stream.weights(conv) as (weight, bias):
        kernels = _ring_kernels(weight, min(count, TAPS), stream.layout)
        channels = max(TAPS * conv.in_channels, conv.out_channels)  # of the ring, or of the result
        for start, stop in stream.bands(height, width, channels):
            ring, slots, top, bottom = _new_ring(stream, conv.in_channels, height, width, start, stop)
            # The ring holds one band only. Each band therefore starts again from the two frames before the chunk.
            if before:
                _recall(stream, before, slots, top, bottom)
                before = None if stop == height else before
            for t in range(count):
                fill(t, top, stop == height, slots[:, t % TAPS])
                # A video begins as if its first frame had been shown twice before.
                if t == 0 and first_chunk:
                    slots[:, 1:] = slots[:, :1]
                # No padding in height: the ring has the rows above and below the band, zeros at a frame's edge.
                yield t, start, F.conv2d(ring.flatten(1, 2), kernels[t % TAPS], bias, padding=(0, 1))
            if not stream.last:
                # For a chunk of one frame the loop begins at t = -1: its slot, -1 % 3 = 2, holds the frame before the
                # chunk.
                if not after:
                    on_host = stream.plan.caches_on_host
                    after = [stream.empty(conv.in_channels, height, width, on_host) for _ in range(TAPS - 1)]
                for t, frame in enumerate(after, start=count - len(after)):
                    _remember(stream, ring[:, t % TAPS, :, 1:-1], frame[:, :, start:stop])
            # Otherwise they would be alive while the next band's are allocated, and two rings would count at the peak.
            del ring, slots
    if after:
        stream.caches[conv] = after


def _recall(stream: Stream, before: list[torch.Tensor], slots: torch.Tensor, top: int, bottom: int) -> None:
    """Copy rows of the two frames before a chunk, the older one first, to the slots of frames -2 and -1: 1 and 2."""
    for slot, frame in enumerate(before, start=1):
        slots[:, slot] = frame[:, :, top:bottom].to(slots.device, non_blocking=stream.copies_ahead)


def _remember(stream: Stream, rows: torch.Tensor, cache: torch.Tensor) -> None:
    """Copy a ring's rows to their cache."""
    if rows.device != cache.device:
        # The rows are a view whose strides are those of the ring. Given such a view, torch would copy it to the host
        # and reorder its axes there, which is slow: here it is made contiguous on the device, and copied in one piece.
        rows = rows.contiguous(memory_format=stream.layout)
    cache.copy_(rows, non_blocking=stream.copies_ahead)


def _new_ring(
    stream: Stream, channels: int, height: int, width: int, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Room for three frames' rows `start` .. `stop` and one more on either side, which is zero where a frame ends.

    Returns the ring [1, 3, C, stop - start + 2, W], the part of it that lies within the frame, [1, 3, C, r, W], and the
    first row and last + 1 of that part in the frame.
    """
    # Allocated as one frame of 3 C channels, so that flatten(1, 2) of the ring is a view in the stream's memory format:
    # the convolution reads the three frames where they are.
    ring = stream.empty(TAPS * channels, stop - start + 2, width).unflatten(1, (TAPS, channels))
    top, bottom = max(start - 1, 0), min(stop + 1, height)
    if start == 0:
        ring[..., 0, :] = 0
    if stop == height:
        ring[..., -1, :] = 0
    return ring, ring[..., top - start + 1 : bottom - start + 1, :], top, bottom


def _ring_kernels(weight: torch.Tensor, count: int, layout: torch.memory_format) -> list[torch.Tensor]:
    """[O, C, 3, kh, kw] -> `count` kernels [O, 3 C, kh, kw], number t for a ring whose newest frame is in slot t."""
    # taps: [O, 3, C, kh, kw]. For channels last its memory is ordered O, kh, kw, 3, C: then the flattened kernels are
    # channels last as well, and no convolution has to convert its weights.
    if layout == torch.channels_last:
        taps = weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 3, 4, 1, 2)
    else:
        taps = weight.transpose(1, 2).contiguous()
    kernels = []
    for t in range(count):
        kernel = torch.empty_like(taps)
        # The last tap is the newest frame's, in slot t. The taps before it belong to the slots before t, cyclically.
        kernel[:, : t + 1], kernel[:, t + 1 :] = taps[:, TAPS - t - 1 :], taps[:, : TAPS - t - 1]
        kernels.append(kernel.flatten(1, 2))
    return kernels
