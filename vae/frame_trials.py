"""The first launch of the VAE's kernels on a device, for each type: on a few random values, against fp64.

Importing this module imports Triton, which not every system has.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from ..host.trials import Draw, require_exact
from .fused import fused_modulated_silu
from .fused_norms import STATISTICS_AT_ONCE, fused_affine, fused_modulation
from .fused_statistics import fused_statistics
from .modulation import Modulation

# Several programs in each direction, of which the last is not full.
_CHANNELS, _ROWS, _WIDTH = 256, 18, 40
_LATENT = (16, 5, 9)
# The network's, each of which is compiled for itself.
_GROUPS, _EPS, _GROUPED = 32, 1e-6, (128, 256, 512)
Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]  # what was found, and what is exact, in fp64


def try_kernels(module: str, device: torch.device, dtype: torch.dtype) -> None:
    """Try the kernels of a module of this folder. Raises RuntimeError where one is wrong."""
    require_exact(_TRIALS[module](Draw(device, dtype)))


def _activation(draw: Draw) -> Pairs:
    x, zoom, top = draw.rows(1, _CHANNELS, _ROWS, _WIDTH), 2, 1
    scale, shift = (draw.rows(1, _CHANNELS, _ROWS // zoom + 1, _WIDTH // zoom).float() for _ in range(2))
    out = torch.empty_like(x)
    fused_modulated_silu(x, Modulation(scale, shift, zoom, zoom), top, out)
    large = [values.double().repeat_interleave(zoom, 2).repeat_interleave(zoom, 3) for values in (scale, shift)]
    factor, term = (values[:, :, top : top + _ROWS] for values in large)
    yield out, F.silu(x.double() * factor + term)


def _statistics(draw: Draw) -> Pairs:
    rows, added = (draw.rows(1, _CHANNELS, _ROWS, _WIDTH) + 1 for _ in range(2))
    wanted = rows.double() + added.double()
    means, variances, weights = fused_statistics(rows, added, times=2).double().unbind(1)
    yield rows, wanted
    total = weights.sum(dim=0)
    mean = (means * weights).sum(dim=0) / total
    variance = ((variances + (means - mean).square()) * weights).sum(dim=0) / total
    # The statistics are of the rows as they were rounded, in fp32 whatever their type.
    values = rows.double().flatten(2)[0]
    yield mean.float(), values.mean(dim=1)
    yield variance.float(), values.var(dim=1, correction=0)
    yield total.float(), torch.full_like(mean, 2 * values.shape[1])


def _norms(draw: Draw) -> Pairs:
    for channels in _GROUPED:
        yield from _affine(draw, channels)
    yield from _modulation(draw)


def _affine(draw: Draw, channels: int) -> Pairs:
    # More statistics than the kernel adds up at once.
    parts = draw(STATISTICS_AT_ONCE // (channels // _GROUPS) + 3, 3, channels).float().abs() + 0.5
    parts[:, 2] = torch.arange(len(parts), device=draw.device)[:, None] % 7 + 1
    offset, weight, bias = draw(channels).float(), draw(channels), draw(channels)
    scale, shift = fused_affine(parts, offset, (weight, bias), _GROUPS, _EPS)
    means, variances, weights = (values.double().unflatten(1, (_GROUPS, -1)) for values in parts.unbind(1))
    means = means + offset.double().unflatten(0, (_GROUPS, -1))
    total = weights.sum(dim=(0, 2))
    mean = (means * weights).sum(dim=(0, 2)) / total
    variance = ((variances + (means - mean[:, None]).square()) * weights).sum(dim=(0, 2)) / total
    mean, deviation = (v.repeat_interleave(channels // _GROUPS) for v in (mean, (variance + _EPS).sqrt()))
    exact = weight.double() / deviation
    yield scale, exact
    yield shift, bias.double() - (mean - offset.double()) * exact


def _modulation(draw: Draw) -> Pairs:
    latent, scale, shift = draw(*_LATENT), draw(_CHANNELS).float(), draw(_CHANNELS).float()
    y, b = ((draw(_CHANNELS, _LATENT[0], 1, 1, 1), draw(_CHANNELS)) for _ in range(2))
    made = fused_modulation(scale, shift, y, b, latent)
    factor, term = (F.conv2d(latent.double()[None], w.double()[:, :, 0], bias.double()) for w, bias in (y, b))
    scale, shift = (values.double().view(1, -1, 1, 1) for values in (scale, shift))
    yield made[0], factor * scale
    yield made[1], factor * shift + term


_TRIALS: dict[str, Callable[[Draw], Pairs]] = {
    "fused": _activation,
    "fused_statistics": _statistics,
    "fused_norms": _norms,
}
