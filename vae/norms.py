"""Group norms of a whole chunk of frames, one frame (or some rows of one) at a time.

Statistics of single frames, bands or tiles would be simpler and would give another video: ComfyUI's own VAE class for
CogVideoX, which cuts a video into other chunks than diffusers, decodes frames that are 0.02 to 0.5 away from diffusers'
(RMS of the difference over that of the reference).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .kernels import try_kernel
from .modulation import Modulation
from .modules import SpatialNorm
from .shared_rows import SharedRows
from .stream import Stream

# Values whose moments a CPU computes at once: they fit its cache, and they are few enough to be summed in fp32 without
# losing digits.
CPU_VALUES = 1 << 19
Weights = tuple[torch.Tensor, torch.Tensor | None]  # of a layer: weight and bias


class GroupStatistics:
    """Mean and variance of each channel of all rows that were added, in fp32: a group norm's follow from them.

    They are kept by channel, because the number of groups is only known to the norm that reads them.
    """

    def __init__(self) -> None:
        # Of torch's operations; or of the kernel, which gives several parts at a time, with the weight of each.
        self._moments: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._weights: list[int] = []
        self._parts: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor, times: int = 1, added: torch.Tensor | None = None) -> None:
        """Include `rows` [1, C, r, W], `times` times. added: rows that are added to these first, in place."""
        parts = None
        if rows.is_cuda and _in_one_piece(rows) and (added is None or _in_one_piece(added)):
            size = rows.shape[1], 0
            parts = try_kernel(rows, "fused_statistics", size, lambda run: run(rows, added, times))
        if parts is not None:
            self._parts.append(parts)
            return
        if added is not None:
            rows += added
        step = rows.shape[2]
        if rows.device.type == "cpu":
            step = max(1, CPU_VALUES // (rows.shape[1] * rows.shape[3]))
        for part in rows.split(step, dim=2):
            self._moments.append(_channel_moments(part))
            self._weights.append(times * part.shape[2] * part.shape[3])

    def parts(self) -> torch.Tensor | None:
        """The kernel's statistics of all rows, [parts, 3, C]: see fused_statistics. None of rows that torch saw."""
        return torch.cat(self._parts) if self._parts and not self._moments and self._parts[0].is_cuda else None

    def collected(self, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each part that was added, [parts, 2, C], and each part's share of all values, [parts].

        The shares are few and come again and again: the stream keeps them on the device.
        """
        if not self._parts:
            total = sum(self._weights)
            moments = torch.stack([values for pair in self._moments for values in pair]).unflatten(0, (-1, 2))
            return moments, stream.numbers(tuple(weight / total for weight in self._weights))
        parts = self._weighted()
        return parts[:, :2], parts[:, 2, 0] / parts[:, 2, 0].sum(dim=0)

    def _weighted(self) -> torch.Tensor:
        """Of each part mean, variance and how many values it has, [parts, 3, C]."""
        # Both kinds where a kernel that worked for some rows has failed since, or rows were not in one piece.
        seen = [
            torch.stack([*pair, torch.full_like(pair[0], weight)])[None]
            for pair, weight in zip(self._moments, self._weights)
        ]
        return torch.cat(self._parts + seen, dim=0)

    def of_all_rows(self, rows: SharedRows) -> "GroupStatistics":
        """Those of the processes that have the other rows with these, merged as torch_affine merges parts."""
        parts = self._weighted()
        means, variances, weights = parts[:, 0], parts[:, 1], parts[:, 2]
        total = weights.sum(dim=0)
        mean = (means * weights).sum(dim=0) / total
        variance = ((variances + (means - mean).square()) * weights).sum(dim=0) / total
        out = GroupStatistics()
        out._parts.append(rows.gathered(torch.stack([mean, variance, total])))
        return out


def _in_one_piece(rows: torch.Tensor) -> bool:
    """Whether rows are contiguous in the order that the kernel of statistics reads them in."""
    return rows.is_contiguous(memory_format=torch.channels_last)


def _channel_moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance [C] of [1, C, r, W], fp32; torch's own var_mean takes ten times as long on a CPU."""
    # What batch norm uses in training: one kernel, which accumulates in fp32 whatever the type of the rows. Without
    # running statistics to update, the momentum of 0 has no effect.
    if rows.device.type in ("cuda", "xpu"):
        return torch.batch_norm_update_stats(rows, None, None, 0.0)
    # Channels last: [1, C, r, W] -> [r W, C], a view of contiguous pixels where whole rows were given.
    if rows.stride(1) == 1:
        pixels = rows.movedim(1, -1).flatten(0, 2).float()
        mean = pixels.mean(dim=0)
        return mean, (pixels - mean).square_().mean(dim=0)
    rows = rows.float()
    mean = rows.mean(dim=(2, 3), keepdim=True)
    variance = torch.linalg.vector_norm(rows - mean, dim=(2, 3)).square() / (rows.shape[2] * rows.shape[3])
    return mean.flatten(), variance.flatten()


def group_norm(
    stream: Stream,
    norm: torch.nn.GroupNorm,
    statistics: GroupStatistics,
    offset: torch.Tensor,
    height: int,
    width: int,
) -> Callable[[int], Modulation]:
    """What `norm` does to frame t of the chunk of which `statistics` are: the same to each, one value a channel.

    offset: see channel_affine.
    """
    scale, shift = (values.view(1, -1, 1, 1) for values in channel_affine(stream, norm, statistics, offset))
    low, high = stream.reach(height)
    modulation = Modulation(scale, shift, high - low, width, above=-low).in_layout(stream.layout)
    return lambda t: modulation


def spatial_norm(
    stream: Stream,
    norm: SpatialNorm,
    statistics: GroupStatistics,
    offset: torch.Tensor,
    frame_count: int,
    height: int,
    latents: torch.Tensor,
) -> Callable[[int], Modulation]:
    """What a CogVideoXSpatialNorm3D does to frame t: a group norm, then scale and shift by the latents.

    offset: see channel_affine.

    latents: [1, 16, T, h, w], with the rows of other processes next to these (Stream.reach).

    The reference enlarges the latents to the frame's size and then applies two 1 x 1 x 1 convolutions, conv_y and
    conv_b. The enlargement repeats values (nearest neighbour) and commutes with these. Here they come first, at the
    latents' size: a fraction of the work, and no tensor of the frame's size. Their class is CogVideoXCausalConv3d, but
    a kernel that spans one frame needs nothing of the chunk before.
    """
    scale, shift = channel_affine(stream, norm.norm_layer, statistics, offset)
    low, high = stream.reach(0)
    zoom = height // (latents.shape[-2] - (high - low))
    modulations: dict[int, Modulation] = {}

    def modulation_of(t: int) -> Modulation:
        index = latent_of_frame(t, frame_count, latents.shape[2])
        if index not in modulations:
            values = _by_latent(stream, norm, scale, shift, latents[:, :, index])
            modulations[index] = Modulation(*values, zoom, zoom, above=-low * zoom).in_layout(stream.layout)
        return modulations[index]

    return modulation_of


def _by_latent(
    stream: Stream, norm: SpatialNorm, scale: torch.Tensor, shift: torch.Tensor, latent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x * scale + shift) * conv_y(latent) + conv_b(latent), as one scale and one shift of x, [1, C, h, w] each.

    scale, shift: [C]. latent: [1, 16, h, w]. In fp32 whatever the stream's type: activation.modulated_silu rounds once,
    after everything.
    """
    if scale.is_cuda:
        with stream.weights(norm.conv_y.conv) as y, stream.weights(norm.conv_b.conv) as b:
            size = len(scale), 0
            fused = try_kernel(y[0], "fused_modulation", size, lambda run: run(scale, shift, y, b, latent[0]))
        if fused is not None:
            return fused
    with (
        stream.weights(norm.conv_y.conv, torch.float32) as y,
        stream.weights(norm.conv_b.conv, torch.float32) as b,
    ):
        return torch_modulation(scale, shift, y, b, latent.float().contiguous(memory_format=stream.layout))


def torch_modulation(
    scale: torch.Tensor, shift: torch.Tensor, y: Weights, b: Weights, latent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See _by_latent. y, b: weight [C, 16, 1, 1, 1] and bias [C] of conv_y and conv_b. All in fp32."""
    factor, term = (F.conv2d(latent, weight[:, :, 0], bias) for weight, bias in (y, b))
    return factor * scale.view(1, -1, 1, 1), torch.addcmul(term, factor, shift.view(1, -1, 1, 1))


def latent_of_frame(t: int, frame_count: int, latent_count: int) -> int:
    """Which of a chunk's latents frame t belongs to; an odd chunk's first frame has one of its own.

    Source: diffusers autoencoder_kl_cogvideox.py, CogVideoXSpatialNorm3D. It enlarges latents in time as
    F.interpolate's nearest mode does: position t of `frame_count` takes the source floor(t * sources / frame_count).
    """
    if frame_count > 1 and frame_count % 2:
        return 0 if t == 0 else 1 + (t - 1) * (latent_count - 1) // (frame_count - 1)
    return t * latent_count // frame_count


def channel_affine(
    stream: Stream, norm: torch.nn.GroupNorm, statistics: GroupStatistics, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift [C], fp32, that `norm` comes to on frames with these statistics.

    offset [C], fp32: what is still to be added to each channel of these frames, and is not in their statistics.
    """
    if stream.rows is not None:
        statistics = statistics.of_all_rows(stream.rows)
    parts, rest = statistics.parts(), (norm.num_groups, norm.eps)
    if parts is not None:
        with stream.weights(norm) as weights:
            size = len(offset), norm.num_groups
            fused = try_kernel(weights[0], "fused_affine", size, lambda run: run(parts, offset, weights, *rest))
        if fused is not None:
            return fused
    with stream.weights(norm, torch.float32) as weights:
        return torch_affine(*statistics.collected(stream), offset, weights, *rest)


def torch_affine(
    moments: torch.Tensor, shares: torch.Tensor, offset: torch.Tensor, weights: Weights, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See channel_affine. moments, shares: of GroupStatistics.collected. weights: the norm's weight and bias [C], fp32.

    Source: Chan et al. 1979, updating formulae for sample variances, for all parts at once: the variance of the whole
    is the weighted mean of the parts' variances, plus that of their means around the common mean. Sums of x and of x^2
    would be simpler, but their difference loses the digits of a variance that is small next to the mean.
    """
    # [parts, groups, channels of a group]
    means, variances = (values.unflatten(1, (groups, -1)) for values in (moments[:, 0] + offset, moments[:, 1]))
    group_size = means.shape[2]
    shares = shares.view(-1, 1, 1) / group_size
    mean = (means * shares).sum(dim=(0, 2))
    variance = ((variances + (means - mean[:, None]).square()) * shares).sum(dim=(0, 2))
    # (x + offset - mean) * rstd * weight + bias, as one scale and one shift of x
    rstd = torch.rsqrt(variance + eps).repeat_interleave(group_size)
    weight, bias = weights
    assert bias is not None, "a group norm has one"
    scale = rstd * weight
    return scale, bias - (mean.repeat_interleave(group_size) - offset) * scale
