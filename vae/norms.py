"""Group norms of a whole chunk of frames, one frame (or some rows of one) at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..host.ops import weights_on

CPU_VALUES = 1 << 19  # that fit a CPU's cache, and are few enough to add up without losing digits


class GroupStatistics:
    """Mean and variance of each channel of what passes by, in fp32, from which those of a group norm follow."""

    def __init__(self) -> None:
        self._moments: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._weights: list[int] = []

    def add(self, rows: torch.Tensor, times: int = 1) -> None:
        """Count `rows` [1, C, r, W] in, `times` times."""
        step = rows.shape[2]
        if rows.device.type == "cpu":
            step = max(1, CPU_VALUES // (rows.shape[1] * rows.shape[3]))
        for part in rows.split(step, dim=2):
            self._moments.append(_channel_moments(part))
            self._weights.append(times * part.shape[2] * part.shape[3])

    def of_groups(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance [groups] of all that was counted in: Chan et al. 1979, all parts at once."""
        means, variances = (torch.stack(parts).unflatten(1, (groups, -1)) for parts in zip(*self._moments))
        total = sum(self._weights) * means.shape[2]
        weights = means.new_tensor([weight / total for weight in self._weights]).view(-1, 1, 1)
        mean = (means * weights).sum(dim=(0, 2))
        variance = ((variances + (means - mean[:, None]).square()) * weights).sum(dim=(0, 2))
        return mean, variance


def _channel_moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance [C] of [1, C, r, W], fp32. On CPUs torch's own var_mean takes ten times as long."""
    if rows.device.type in ("cuda", "xpu"):
        return torch.batch_norm_update_stats(rows, None, None, 0.0)
    if rows.stride(1) == 1:  # channels last
        pixels = rows.movedim(1, -1).flatten(0, 2).float()
        mean = pixels.mean(dim=0)
        return mean, (pixels - mean).square_().mean(dim=0)
    rows = rows.float()
    mean = rows.mean(dim=(2, 3), keepdim=True)
    variance = torch.linalg.vector_norm(rows - mean, dim=(2, 3)).square() / (rows.shape[2] * rows.shape[3])
    return mean.flatten(), variance.flatten()


@dataclass(frozen=True)
class Modulation:
    """x * scale + shift. scale, shift: [1, C, n, m] fp32, each value for zoom_y x zoom_x pixels."""

    scale: torch.Tensor
    shift: torch.Tensor
    zoom_y: int
    zoom_x: int

    def laid_out(self, layout: torch.memory_format) -> "Modulation":
        """The same, for frames that lie so: with channels first, torch is quick only with a value for each pixel."""
        if layout == torch.channels_last:
            return self
        scale, shift = (values.repeat_interleave(self.zoom_x, dim=3) for values in (self.scale, self.shift))
        return Modulation(scale, shift, self.zoom_y, 1)


def group_norm(
    norm: torch.nn.GroupNorm, statistics: GroupStatistics, height: int, width: int, layout: torch.memory_format
) -> Callable[[int], Modulation]:
    """What `norm` does to frame t of the chunk that `statistics` saw."""
    scale, shift = _channel_affine(norm, statistics)
    modulation = Modulation(scale, shift, height, width).laid_out(layout)
    return lambda t: modulation


def spatial_norm(
    norm: torch.nn.Module,
    statistics: GroupStatistics,
    frame_count: int,
    height: int,
    latents: torch.Tensor,
    layout: torch.memory_format,
) -> Callable[[int], Modulation]:
    """What a CogVideoXSpatialNorm3D does to frame t: a group norm, then scale and shift by the latents.

    latents: [1, 16, T, h, w]. Its two 1 x 1 x 1 convolutions come before the enlargement here, not after: they commute
    with it.
    """
    scale, shift = _channel_affine(norm.norm_layer, statistics)
    device, zoom = latents.device, height // latents.shape[-2]
    modulations: dict[int, Modulation] = {}

    def modulation(t: int) -> Modulation:
        index = latent_of_frame(t, frame_count, latents.shape[2])
        if index not in modulations:
            latent = latents[:, :, index].float().contiguous(memory_format=layout)
            with (
                weights_on(norm.conv_y.conv, device, torch.float32) as (weight_y, bias_y),
                weights_on(norm.conv_b.conv, device, torch.float32) as (weight_b, bias_b),
            ):
                y = F.conv2d(latent, weight_y[:, :, 0], bias_y)
                b = F.conv2d(latent, weight_b[:, :, 0], bias_b)
            modulations[index] = Modulation(y * scale, torch.addcmul(b, y, shift), zoom, zoom).laid_out(layout)
        return modulations[index]

    return modulation


def latent_of_frame(t: int, frame_count: int, latent_count: int) -> int:
    """Which of a chunk's latents frame t belongs to; an odd chunk's first frame has one of its own.

    Source: diffusers autoencoder_kl_cogvideox.py, CogVideoXSpatialNorm3D.
    """
    if frame_count > 1 and frame_count % 2:
        return 0 if t == 0 else 1 + (t - 1) * (latent_count - 1) // (frame_count - 1)
    return t * latent_count // frame_count


def _channel_affine(norm: torch.nn.GroupNorm, statistics: GroupStatistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift [1, C, 1, 1] that are `norm`, given the statistics of what it shall act on."""
    mean, variance = statistics.of_groups(norm.num_groups)
    each = norm.num_channels // norm.num_groups
    rstd = torch.rsqrt(variance + norm.eps).repeat_interleave(each)
    with weights_on(norm, mean.device, torch.float32) as (weight, bias):
        scale = rstd * weight
        shift = bias - mean.repeat_interleave(each) * scale
    return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
