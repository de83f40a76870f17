"""The norms' scale and shift as Triton kernels: one launch where torch's operations take about thirty small ones.

Importing this module imports Triton, which not every system has. norms.py says what each function computes, and
computes it without Triton.
"""

from typing import Any

import torch
import triton
import triton.language as tl

# What a program of the first kernel works on: channels, and values of these at a time whose moments it adds up.
AFFINE_CHANNELS, AFFINE_ROWS = 16, 64
# Pixels and channels of the latents' size that a program of the second kernel works on.
PIXELS, CHANNELS = 16, 128
WARPS = 4


def fused_affine(
    moments: torch.Tensor,
    shares: torch.Tensor,
    offset: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor],
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See norms.torch_affine. moments [parts, 2, C], shares [parts], offset [C]: fp32. norm: weight and bias [C]."""
    parts, _, channels = moments.shape
    affine = moments.new_empty(2, channels)
    kernel: Any = _affine_kernel
    # Triton launches on the current device, which need not be the one that the moments are on.
    with torch.cuda.device_of(moments):
        kernel[(triton.cdiv(channels, AFFINE_CHANNELS),)](
            *(moments, shares, offset, *norm, affine),
            *(parts, channels, channels // groups, eps),
            AFFINE_ROWS,
            AFFINE_CHANNELS,
            num_warps=WARPS,
        )
    return affine[0], affine[1]


@triton.jit(do_not_specialize=["parts"])  # else it is compiled again for each kind of value
def _affine_kernel(
    moments,
    shares,
    offset,
    weight,
    bias,
    affine,
    parts,
    channels,
    group_size,
    eps,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    first = (channel // group_size * group_size)[None, :]  # of the channel's group
    row = tl.arange(0, ROWS)[:, None]
    # All moments of the channel's group, ROWS at a time: first for the mean, then for the variance around it.
    mean = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, parts * group_size, ROWS):
        index = start + row
        there = (index < parts * group_size) & inside[None, :]
        part, other = index // group_size, first + index % group_size
        share = tl.load(shares + part, mask=index < parts * group_size, other=0.0)
        value = tl.load(moments + part * 2 * channels + other, mask=there, other=0.0)
        value += tl.load(offset + other, mask=there, other=0.0)
        mean += tl.sum(value * share, axis=0)
    mean = mean / group_size
    variance = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, parts * group_size, ROWS):
        index = start + row
        there = (index < parts * group_size) & inside[None, :]
        part, other = index // group_size, first + index % group_size
        share = tl.load(shares + part, mask=index < parts * group_size, other=0.0)
        value = tl.load(moments + part * 2 * channels + other, mask=there, other=0.0)
        value += tl.load(offset + other, mask=there, other=0.0) - mean[None, :]
        value = tl.load(moments + (part * 2 + 1) * channels + other, mask=there, other=0.0) + value * value
        variance += tl.sum(value * share, axis=0)
    variance = variance / group_size
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    mean -= tl.load(offset + channel, mask=inside, other=0.0)
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - mean * scale
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
    for k in tl.static_range(DEPTH):
        value = tl.load(where + k * latent_channel, mask=in_frame, other=0.0).to(tl.float32)
        y += value * tl.load(weight_y + channel * DEPTH + k, mask=inside, other=0.0).to(tl.float32)
        b += value * tl.load(weight_b + channel * DEPTH + k, mask=inside, other=0.0).to(tl.float32)
    # (x * scale + shift) * y + b, as one scale and one shift of x
    out = made + pixel.to(tl.int64) * channels + channel
    tl.store(out, y * tl.load(scale + channel, mask=inside, other=0.0), mask=in_frame & inside)
    b += y * tl.load(shift + channel, mask=inside, other=0.0)
    tl.store(out + pixels.to(tl.int64) * channels, b, mask=in_frame & inside)
