"""The norms' scale and shift as Triton kernels: one launch where torch's operations take about thirty small ones.

Importing this module imports Triton, which not every system has. norms.py says what each function computes, and
computes it without Triton.
"""

from typing import Any

import torch
import triton
import triton.language as tl

# How many values of a group's statistics a program of the first kernel adds up at a time.
STATISTICS_AT_ONCE = 2048
# Pixels and channels of the latents' size that a program of the second kernel works on.
PIXELS, CHANNELS = 16, 128
WARPS = 4


def fused_affine(
    parts: torch.Tensor, offset: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor], groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See norms.torch_affine. parts [n, 3, C]: of fused_statistics. offset [C]: fp32. norm: weight and bias [C]."""
    count, _, channels = parts.shape
    affine = parts.new_empty(2, channels)
    group_size = channels // groups
    size = triton.next_power_of_2(group_size)
    kernel: Any = _affine_kernel
    # Triton launches on the current device, which need not be the one that the statistics are on.
    with torch.cuda.device_of(parts):
        kernel[(groups,)](
            *(parts, offset, *norm, affine),
            *(count, channels, eps),
            group_size,
            max(1, STATISTICS_AT_ONCE // size),
            size,
            num_warps=WARPS,
        )
    return affine[0], affine[1]


@triton.jit(do_not_specialize=["count"])  # else it is compiled again for each kind of value
def _affine_kernel(
    parts,
    offset,
    weight,
    bias,
    affine,
    count,
    channels,
    eps,
    GROUP_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    lane = tl.arange(0, SIZE)
    channel, inside = tl.program_id(0) * GROUP_SIZE + lane, lane < GROUP_SIZE
    added = tl.load(offset + channel, mask=inside, other=0.0)
    # The group's statistics, ROWS parts at a time: first for the mean, then for the variance around it.
    means = tl.zeros([ROWS, SIZE], tl.float32)
    totals = tl.zeros([ROWS, SIZE], tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        there = (row < count) & inside[None, :]
        where = parts + row * 3 * channels + channel[None, :]
        share = tl.load(where + 2 * channels, mask=there, other=0.0)
        totals += share
        means += share * (tl.load(where, mask=there, other=0.0) + added[None, :])
    total = tl.sum(tl.sum(totals, axis=0), axis=0)
    mean = tl.sum(tl.sum(means, axis=0), axis=0) / total  # type: ignore
    variances = tl.zeros([ROWS, SIZE], tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        there = (row < count) & inside[None, :]
        where = parts + row * 3 * channels + channel[None, :]
        share = tl.load(where + 2 * channels, mask=there, other=0.0)
        change = tl.load(where, mask=there, other=0.0) + added[None, :] - mean
        variances += share * (tl.load(where + channels, mask=there, other=0.0) + change * change)
    variance = tl.sum(tl.sum(variances, axis=0), axis=0) / total  # type: ignore
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - (mean - added) * scale
    tl.store(affine + channel, scale, mask=inside)
    tl.store(affine + channels + channel, shift, mask=inside)


def fused_modulation(
    scale: torch.Tensor,
    shift: torch.Tensor,
    y: tuple[torch.Tensor, torch.Tensor],
    b: tuple[torch.Tensor, torch.Tensor],
    latent: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See norms.torch_modulation. scale, shift [C]: fp32. y, b: weight [C, L] and bias. latent [L, h, w]."""
    channels = scale.shape[0]
    depth, height, width = latent.shape
    made = torch.empty(2, channels, height, width, device=scale.device, memory_format=torch.channels_last)
    kernel: Any = _modulation_kernel
    with torch.cuda.device_of(scale):
        kernel[(triton.cdiv(height * width, PIXELS), triton.cdiv(channels, CHANNELS))](
            *(scale, shift, *y, *b, latent, made),
            *(channels, height * width, width, *latent.stride()),
            depth,
            PIXELS,
            CHANNELS,
            num_warps=WARPS,
        )
    return made[:1], made[1:]


@triton.jit(do_not_specialize=["pixels", "width", "latent_channel", "latent_row", "latent_column"])
def _modulation_kernel(
    scale,
    shift,
    weight_y,
    bias_y,
    weight_b,
    bias_b,
    latent,
    made,
    channels,
    pixels,
    width,
    latent_channel,
    latent_row,
    latent_column,
    DEPTH: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    in_frame, inside = pixel < pixels, channel < channels
    y = tl.load(bias_y + channel, mask=inside, other=0.0).to(tl.float32) + tl.zeros([PIXELS, CHANNELS], tl.float32)
    b = tl.load(bias_b + channel, mask=inside, other=0.0).to(tl.float32) + tl.zeros([PIXELS, CHANNELS], tl.float32)
    where = latent + pixel // width * latent_row + pixel % width * latent_column
    for k in tl.static_range(DEPTH):  # type: ignore
        value = tl.load(where + k * latent_channel, mask=in_frame, other=0.0).to(tl.float32)
        y += value * tl.load(weight_y + channel * DEPTH + k, mask=inside, other=0.0).to(tl.float32)
        b += value * tl.load(weight_b + channel * DEPTH + k, mask=inside, other=0.0).to(tl.float32)
    # (x * scale + shift) * y + b, as one scale and one shift of x
    out = made + pixel.to(tl.int64) * channels + channel
    tl.store(out, y * tl.load(scale + channel, mask=inside, other=0.0), mask=in_frame & inside)
    b += y * tl.load(shift + channel, mask=inside, other=0.0)
    tl.store(out + pixels.to(tl.int64) * channels, b, mask=in_frame & inside)
