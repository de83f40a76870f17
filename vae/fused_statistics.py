"""The statistics of a frame as one Triton kernel, with what is added to the frame before.

Importing this module imports Triton, which not every system has. norms.py computes the same without Triton.
"""

from typing import Any

import torch
import triton
import triton.language as tl

# A program goes through its pixels PIXELS at a time, for CHANNELS channels, with 32 values for each of its threads.
PIXELS, CHANNELS, WARPS = 64, 128, 8
# A frame is cut into this many parts at most: a program each, and an entry each in the statistics.
MOST_PARTS, LEAST_ROUNDS = 256, 4


def fused_statistics(rows: torch.Tensor, added: torch.Tensor | None, times: int) -> torch.Tensor:
    """Of each part of `rows` [1, C, r, W]: each channel's mean and variance, and the part's values, `times` times.

    added: rows of the same shape and type that are added to these first, in place, and rounded. Both are contiguous
    with channels last. Returns [parts, 3, C], fp32.
    """
    _, channels, height, width = rows.shape
    pixels = height * width
    rounds = max(LEAST_ROUNDS, triton.cdiv(pixels, PIXELS * MOST_PARTS))
    parts = triton.cdiv(pixels, rounds * PIXELS)
    made = rows.new_empty(parts, 3, channels, dtype=torch.float32)
    kernel: Any = _statistics_kernel
    # Triton launches on the current device, which need not be the one that the rows are on.
    with torch.cuda.device_of(rows):
        kernel[(parts, triton.cdiv(channels, CHANNELS))](
            *(rows, rows if added is None else added, made),
            *(pixels, channels, rounds, times),
            added is not None,
            PIXELS,
            CHANNELS,
            num_warps=WARPS,
        )
    return made


@triton.jit(do_not_specialize=["pixels", "rounds", "times"])  # else it is compiled again for each kind of value
def _statistics_kernel(
    rows,
    added,
    made,
    pixels,
    channels,
    rounds,
    times,
    ADD: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    part = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    first = part * rounds * PIXELS
    # Welford 1962, by lane: a sum of squares would lose the digits of a variance that is small next to the mean.
    mean = tl.zeros([PIXELS, CHANNELS], tl.float32)
    squares = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for number in range(0, rounds):
        pixel = first + number * PIXELS + tl.arange(0, PIXELS)[:, None]
        inside = (pixel < pixels) & (channel < channels)
        # Offsets are int64, because a large frame has more than 2^31 values.
        where = pixel.to(tl.int64) * channels + channel
        value = tl.load(rows + where, mask=inside, other=0.0).to(tl.float32)
        if ADD:
            value += tl.load(added + where, mask=inside, other=0.0).to(tl.float32)
            rounded = value.to(rows.dtype.element_ty)
            tl.store(rows + where, rounded, mask=inside)
            value = rounded.to(tl.float32)
        change = tl.where(inside, value - mean, 0.0)
        mean += change / (number + 1)
        squares += change * tl.where(inside, value - mean, 0.0)
    # Chan et al. 1979, for all lanes at once.
    lane = first + tl.arange(0, PIXELS)[:, None]
    count = tl.minimum(tl.maximum((pixels - lane + PIXELS - 1) // PIXELS, 0), rounds).to(tl.float32)
    total = tl.sum(count, axis=0)[None, :]  # type: ignore
    common = tl.sum(mean * count, axis=0)[None, :] / total  # type: ignore
    squares += count * (mean - common) * (mean - common)
    variance = tl.sum(squares, axis=0)[None, :] / total  # type: ignore
    out = made + part * 3 * channels + channel
    there = channel < channels
    tl.store(out, common, mask=there)
    tl.store(out + channels, variance, mask=there)
    tl.store(out + 2 * channels, tl.zeros([1, CHANNELS], tl.float32) + total * times, mask=there)
