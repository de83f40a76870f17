"""The first launch of the VAE's kernels on a device, for each type: on a few random values, against fp64.

Importing this module imports Triton, which not every system has.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..host.trials import Draw, require_exact
from .fused import fused_modulated_silu
from .fused_norms import fused_affine, fused_modulation
from .fused_statistics import fused_statistics
from .modulation import Modulation

# Those of the network's widest frames, so that what is compiled for them serves for these. The pixels fill no program.
_CHANNELS, _GROUPS, _EPS = 128, 32, 1e-6
_ROWS, _WIDTH, _LATENT = 9, 10, 16
Pair = tuple[torch.Tensor, torch.Tensor]  # what was found, and what is exact, in fp64


def try_kernels(module: str, device: torch.device, dtype: torch.dtype) -> None:
    """Try the kernels of a module of this folder. Raises RuntimeError where one is wrong."""
    require_exact(_TRIALS[module](Draw(device, dtype)))


def _activation(draw: Draw) -> list[Pair]:
    x, zoom = draw.rows(1, _CHANNELS, _ROWS, _WIDTH), 2
    scale, shift = (draw.rows(1, _CHANNELS, _ROWS // zoom + 2, _WIDTH // zoom).float() for _ in range(2))
    out, top = torch.empty_like(x), 1
    fused_modulated_silu(x, Modulation(scale, shift, zoom, zoom), top, out)
    large = (
        values.double().repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)[:, :, top : top + _ROWS]
        for values in (scale, shift)
    )
    return [(out, F.silu(x.double() * next(large) + next(large)))]


def _statistics(draw: Draw) -> list[Pair]:
    rows, added = (draw.rows(1, _CHANNELS, _ROWS, _WIDTH) + 1 for _ in range(2))
    wanted = rows.double() + added.double()
    means, variances, weights = fused_statistics(rows, added, times=2).double().unbind(1)
    total = weights.sum(dim=0)
    mean = (means * weights).sum(dim=0) / total
    variance = ((variances + (means - mean).square()) * weights).sum(dim=0) / total
    # The statistics are of the rows as they were rounded, in fp32 whatever their type.
    values = rows.double().flatten(2)[0]
    exact = values.mean(dim=1), values.var(dim=1, correction=0), torch.full_like(mean, 2 * values.shape[1])
    found = (value.float() for value in (mean, variance, total))
    return [(rows, wanted), *zip(found, exact)]


def _norms(draw: Draw) -> list[Pair]:
    # The statistics of two parts of a frame, of 30 and of 60 pixels.
    parts = draw(2, 3, _CHANNELS).float().abs() + 0.5
    parts[:, 2] = torch.tensor([[30.0], [60.0]], device=draw.device)
    offset, weight, bias = draw(_CHANNELS).float(), draw(_CHANNELS), draw(_CHANNELS)
    affine = fused_affine(parts, offset, (weight, bias), _GROUPS, _EPS)
    means, variances, weights = (values.double().unflatten(1, (_GROUPS, -1)) for values in parts.unbind(1))
    means = means + offset.double().unflatten(0, (_GROUPS, -1))
    total = weights.sum(dim=(0, 2))
    mean = (means * weights).sum(dim=(0, 2)) / total
    variance = ((variances + (means - mean[:, None]).square()) * weights).sum(dim=(0, 2)) / total
    mean, deviation = (v.repeat_interleave(_CHANNELS // _GROUPS) for v in (mean, (variance + _EPS).sqrt()))
    scale = weight.double() / deviation
    pairs = [(torch.stack(affine), torch.stack([scale, bias.double() - (mean - offset.double()) * scale]))]

    latent, factor, term = draw(_LATENT, _ROWS, _WIDTH), draw(_CHANNELS).float(), draw(_CHANNELS).float()
    y, b = ((draw(_CHANNELS, _LATENT, 1, 1, 1), draw(_CHANNELS)) for _ in range(2))
    made = fused_modulation(factor, term, y, b, latent)
    by, plus = (F.conv2d(latent.double()[None], w.double()[:, :, 0], bias.double()) for w, bias in (y, b))
    factor, term = (values.double().view(1, -1, 1, 1) for values in (factor, term))
    return [*pairs, (made[0], by * factor), (made[1], by * term + plus)]


_TRIALS: dict[str, Callable[[Draw], list[Pair]]] = {
    "fused": _activation,
    "fused_statistics": _statistics,
    "fused_norms": _norms,
}
