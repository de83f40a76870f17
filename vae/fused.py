"""modulated_silu as one Triton kernel, which reads and writes every value of a frame once.

Importing this module imports Triton, which not every system has.
"""

import torch
import triton
import triton.language as tl

from .modulation import Modulation

# A program works on TILE values of one row, MOST_CHANNELS of them at most for each pixel: 16 values for each of the
# threads in its WARPS warps.
TILE, MOST_CHANNELS, WARPS = 4096, 128, 8


def fused_modulated_silu(x: torch.Tensor, modulation: Modulation, top: int, out: torch.Tensor) -> None:
    """See activation.modulated_silu. In x and out the channels of a pixel are contiguous."""
    _, channels, height, width = x.shape
    # The kernel takes no strides for these two: it expects the channels of a patch next to one another.
    scale, shift = (
        values.contiguous(memory_format=torch.channels_last) for values in (modulation.scale, modulation.shift)
    )
    channels_at_once = min(triton.next_power_of_2(channels), MOST_CHANNELS)
    pixels_at_once = TILE // channels_at_once
    grid = triton.cdiv(width, pixels_at_once), triton.cdiv(channels, channels_at_once), height
    sizes = channels, width, scale.shape[3], modulation.zoom_y, modulation.zoom_x, top
    strides = x.stride(2), x.stride(3), out.stride(2), out.stride(3)
    # Triton launches on the current device, which need not be the one that x is on.
    with torch.cuda.device_of(x):
        _kernel[grid](x, scale, shift, out, *sizes, *strides, pixels_at_once, channels_at_once, num_warps=WARPS)  # type: ignore[call-arg]


@triton.jit(
    do_not_specialize=["width", "columns", "zoom_y", "zoom_x", "top"]
)  # else it is compiled again for each value
def _kernel(
    x,
    scale,
    shift,
    out,
    channels,
    width,
    columns,
    zoom_y,
    zoom_x,
    top,
    x_row,
    x_pixel,
    out_row,
    out_pixel,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(2)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (pixel < width) & (channel < channels)
    # Offsets of rows are int64, because a large frame has more than 2^31 values. Those within a row fit into int32.
    patch_row = ((top + row) // zoom_y).to(tl.int64) * columns * channels
    patch = pixel // zoom_x * channels + channel
    factor = tl.load(scale + patch_row + patch, mask=inside)
    term = tl.load(shift + patch_row + patch, mask=inside)
    value = tl.load(x + row.to(tl.int64) * x_row + pixel * x_pixel + channel, mask=inside).to(tl.float32)
    value = value * factor + term
    # SiLU: value * sigmoid(value)
    value = value / (1 + tl.exp(-value))
    tl.store(
        out + row.to(tl.int64) * out_row + pixel * out_pixel + channel, value.to(out.dtype.element_ty), mask=inside
    )
