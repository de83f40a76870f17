"""The parts that encoder and decoder are made of, on the frames of one chunk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..host.compat import throw_if_interrupted
from ..host.ops import weights_on
from .causal import Stream, causal_convolution
from .frames import KeptFrames, UpsampledFrames, downsampled_sources, upsampled_sources
from .norms import GroupStatistics, group_norm, spatial_norm


@dataclass
class Chunk:
    """Frames of one chunk, and the statistics that the next norm needs of them."""

    frames: KeptFrames | UpsampledFrames
    statistics: GroupStatistics = field(default_factory=GroupStatistics)

    def put(self, t: int, start: int, rows: torch.Tensor) -> None:
        """Keep rows of frame t, and count them in."""
        self.statistics.add(rows)
        self.frames.write(t, start, rows)


def convolve(stream: Stream, conv: torch.nn.Conv3d, video: torch.Tensor) -> Chunk:
    """A causal convolution of a chunk [1, C, T, H, W] as it comes."""

    def fill(t: int, start: int, last: bool, out: torch.Tensor) -> None:
        out.copy_(video[:, :, t, start : start + out.shape[2]])

    result = Chunk(_room(stream, *video.shape[2:]))
    for t, start, rows in causal_convolution(stream, conv, fill, video.shape[2:]):
        result.put(t, start, rows)
    return result


def resnet(stream: Stream, block: torch.nn.Module, chunk: Chunk, latents: torch.Tensor | None) -> Chunk:
    """A CogVideoXResnetBlock3D; `chunk` is used up. latents: see normalise_and_convolve."""
    frames, widens = chunk.frames, block.in_channels != block.out_channels
    size = frames.count, frames.height, frames.width
    hidden = Chunk(_room(stream, *size, on_host=stream.plan.hidden_on_host))
    # What is added in the end: the frames themselves where they are kept and stay as wide, and then in their place.
    apart = widens or isinstance(frames, UpsampledFrames)
    residual = _room(stream, *size) if apart else frames

    def keep_residual(t: int, start: int, rows: torch.Tensor) -> None:
        residual.write(t, start, _shortcut(block.conv_shortcut, rows) if widens else rows)

    look = keep_residual if apart else None
    for t, start, rows in normalise_and_convolve(stream, block.norm1, block.conv1.conv, chunk, latents, look, apart):
        hidden.put(t, start, rows)
    result = Chunk(residual)
    for t, start, rows in normalise_and_convolve(stream, block.norm2, block.conv2.conv, hidden, latents):
        rows += residual.read(t, start, start + rows.shape[2])
        result.put(t, start, rows)
    return result


def normalise_and_convolve(
    stream: Stream,
    norm: torch.nn.Module,
    conv: torch.nn.Conv3d,
    chunk: Chunk,
    latents: torch.Tensor | None,
    look: Callable[[int, int, torch.Tensor], None] | None = None,
    release: bool = True,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Norm, SiLU and causal convolution of a chunk, yielded as causal_convolution does.

    latents: [1, 16, T, h, w] that a decoder's norms depend on; None in an encoder.
    look(t, first row, rows) sees each row of the frames once before they are released.
    """
    frames = chunk.frames
    if latents is None:
        modulation = group_norm(norm, chunk.statistics, frames.height, frames.width, stream.layout)
    else:
        modulation = spatial_norm(norm, chunk.statistics, frames.count, frames.height, latents, stream.layout)
    seen = [0] * frames.count

    def fill(t: int, start: int, last: bool, out: torch.Tensor) -> None:
        rows = frames.read(t, start, start + out.shape[2])
        stream.activation(rows, modulation(t), start, out)
        new = rows[:, :, seen[t] - start :]  # bands overlap
        if look is not None and new.shape[2]:
            look(t, seen[t], new)
            seen[t] = start + out.shape[2]
        if release and last:
            frames.release(t)

    yield from causal_convolution(stream, conv, fill, (frames.count, frames.height, frames.width))


def upsample(stream: Stream, upsampler: torch.nn.Module, chunk: Chunk, widest: bool) -> Chunk:
    """A CogVideoXUpsample3D; `chunk` is used up. widest: no frames of the network are larger than its result."""
    sources = upsampled_sources(chunk.frames.count, upsampler.compress_time)
    computed = UpsampledFrames(chunk.frames, sources, upsampler.conv)
    kept = None
    if not (widest and stream.plan.recompute):
        kept = _room(stream, computed.count, computed.height, computed.width)
    result = Chunk(kept or computed)
    for start, stop in stream.plan.bands(computed.height, computed.width):
        throw_if_interrupted()
        for t in range(computed.count):
            if not computed.repeats(t):
                rows = computed.read(t, start, stop)
                result.statistics.add(rows, times=sources.count(sources[t]))
                if kept:
                    kept.write(t, start, rows)
            elif kept:
                kept.repeat(t)
            if kept and stop == computed.height:
                computed.release(t)
    return result


def downsample(stream: Stream, downsampler: torch.nn.Module, chunk: Chunk) -> Chunk:
    """A CogVideoXDownsample3D; `chunk` is used up."""
    frames = chunk.frames
    sources = downsampled_sources(frames.count, downsampler.compress_time)
    # one more row and column of zeros, then every second place of a 3 x 3 window
    height, width = ((side - 2) // 2 + 1 for side in (frames.height, frames.width))
    result = Chunk(_room(stream, len(sources), height, width))
    with weights_on(downsampler.conv, stream.device, stream.dtype) as (weight, bias):
        for start, stop in stream.plan.bands(height, 4 * width):  # counted in pixels that are read
            throw_if_interrupted()
            top, bottom = 2 * start, min(2 * stop + 1, frames.height)
            for t, group in enumerate(sources):
                rows = frames.read(group[0], top, bottom)
                if len(group) == 2:
                    rows = (rows + frames.read(group[1], top, bottom)).mul_(0.5)
                rows = F.pad(rows, (0, 1, 0, 2 * stop + 1 - bottom))
                result.put(t, start, F.conv2d(rows, weight, bias, stride=2))
                if stop == height:
                    for source in group:
                        frames.release(source)
    return result


def _room(stream: Stream, count: int, height: int, width: int, on_host: bool | None = None) -> KeptFrames:
    """Room for frames between two blocks, or for others where `on_host` says where."""
    on_host = stream.plan.blocks_on_host if on_host is None else on_host
    return KeptFrames(count, height, width, stream.device, on_host)


def _shortcut(conv: torch.nn.Conv3d, rows: torch.Tensor) -> torch.Tensor:
    """A convolution over nothing but channels."""
    with weights_on(conv, rows.device, rows.dtype) as (weight, bias):
        return F.conv2d(rows, weight[:, :, 0], bias)
