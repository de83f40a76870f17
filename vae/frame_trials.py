"""The first launch of the VAE's kernels on a device, for each type and number of channels: on random values, against
fp64.

What a kernel is given differs from what it might be taken for: strides from those of a tensor of its own, one zoom from
the other, and there are several programs in each direction, of which the last is not full. Importing this module
imports Triton, which not every system has.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from ..host.trials import Draw, require_exact
from .fused import fused_modulated_silu
from .fused_norms import STATISTICS_AT_ONCE, fused_affine, fused_modulation
from .fused_statistics import LEAST_ROUNDS, MOST_PARTS, PIXELS, fused_statistics
from .modulation import Modulation

_EPS = 0.5  # large enough to be missed
Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]  # what was found, and what is exact, in fp64


def try_frame_kernel(kernel: str, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
    """size: channels and groups. Raises RuntimeError where the kernel is wrong."""
    require_exact(_TRIALS[kernel](Draw(device, dtype), *size))


def _activation(draw: Draw, channels: int, _: int) -> Pairs:
    rows, zoom_y, zoom_x, top = 9, 2, 4, 1
    # More pixels than a program takes, which are the more the fewer the channels are.
    width = 4 * (1024 // min(channels, 128) + 1)
    x = draw.rows(1, channels, rows, width)
    scale, shift = (draw.rows(1, channels, rows // zoom_y + 1, width // zoom_x).float() for _ in range(2))
    # A slot in a larger frame, as that of a convolution's padded input.
    out = draw.rows(1, channels, rows + 2, width + 2)[:, :, 1:-1, 1:-1]
    fused_modulated_silu(x, Modulation(scale, shift, zoom_y, zoom_x), top, out)
    large = [values.double().repeat_interleave(zoom_y, 2).repeat_interleave(zoom_x, 3) for values in (scale, shift)]
    factor, term = (values[:, :, top : top + rows] for values in large)
    yield out, F.silu(x.double() * factor + term)


def _statistics(draw: Draw, channels: int, _: int) -> Pairs:
    yield from _statistics_of(draw, channels, (18, 40), adds=True, times=3)
    yield from _statistics_of(draw, channels, (18, 40), adds=False, times=1)
    # Of a large frame, whose parts are longer; the kernel is the same for any number of channels.
    pixels = PIXELS * LEAST_ROUNDS * MOST_PARTS
    yield from _statistics_of(draw, 8, (257, pixels // 256), adds=False, times=1)


def _statistics_of(draw: Draw, channels: int, size: tuple[int, int], adds: bool, times: int) -> Pairs:
    rows, added = (draw.rows(1, channels, *size) + 1 for _ in range(2))
    wanted = rows.double() + added.double() if adds else rows.double()
    means, variances, weights = fused_statistics(rows, added if adds else None, times).double().unbind(1)
    yield rows, wanted
    total = weights.sum(dim=0)
    mean = (means * weights).sum(dim=0) / total
    variance = ((variances + (means - mean).square()) * weights).sum(dim=0) / total
    # The statistics are of the rows as they were rounded, in fp32 whatever their type.
    values = rows.double().flatten(2)[0]
    yield mean.float(), values.mean(dim=1)
    yield variance.float(), values.var(dim=1, correction=0)
    yield total.float(), torch.full_like(mean, times * values.shape[1])


def _affine(draw: Draw, channels: int, groups: int) -> Pairs:
    # More statistics than the kernel adds up at once.
    parts = draw(STATISTICS_AT_ONCE // (channels // groups) + 3, 3, channels).float().abs() + 0.5
    parts[:, 2] = torch.arange(len(parts), device=draw.device)[:, None] % 7 + 1
    offset, weight, bias = draw(channels).float(), draw(channels), draw(channels)
    scale, shift = fused_affine(parts, offset, (weight, bias), groups, _EPS)
    means, variances, weights = (values.double().unflatten(1, (groups, -1)) for values in parts.unbind(1))
    means = means + offset.double().unflatten(0, (groups, -1))
    total = weights.sum(dim=(0, 2))
    mean = (means * weights).sum(dim=(0, 2)) / total
    variance = ((variances + (means - mean[:, None]).square()) * weights).sum(dim=(0, 2)) / total
    mean, deviation = (v.repeat_interleave(channels // groups) for v in (mean, (variance + _EPS).sqrt()))
    exact = weight.double() / deviation
    yield scale, exact
    yield shift, bias.double() - (mean - offset.double()) * exact


def _modulation(draw: Draw, channels: int, _: int) -> Pairs:
    # One frame of several, and a part of its rows.
    latent, scale, shift = draw(1, 16, 3, 7, 9)[0, :, 1, 1:6], draw(channels).float(), draw(channels).float()
    y, b = ((draw(channels, 16, 1, 1, 1), draw(channels)) for _ in range(2))
    made = fused_modulation(scale, shift, y, b, latent)
    factor, term = (F.conv2d(latent.double()[None], w.double()[:, :, 0], bias.double()) for w, bias in (y, b))
    scale, shift = (values.double().view(1, -1, 1, 1) for values in (scale, shift))
    yield made[0], factor * scale
    yield made[1], factor * shift + term


_TRIALS: dict[str, Callable[[Draw, int, int], Pairs]] = {
    "fused_modulated_silu": _activation,
    "fused_statistics": _statistics,
    "fused_affine": _affine,
    "fused_modulation": _modulation,
}
