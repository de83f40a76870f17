"""The parts that encoder and decoder are made of, on the frames of one chunk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .causal import causal_convolution
from .frames import KeptFrames, UpsampledFrames, downsampled_sources, upsampled_sources
from .modules import Norm, Resample, ResnetBlock
from .norms import GroupStatistics, group_norm, spatial_norm
from .stream import Stream


@dataclass
class Chunk:
    """Frames of one chunk, and the statistics that the next norm needs of them."""

    frames: KeptFrames | UpsampledFrames
    statistics: GroupStatistics = field(default_factory=GroupStatistics)


def convolve(stream: Stream, conv: torch.nn.Conv3d, video: torch.Tensor) -> Chunk:
    """A causal convolution of a chunk [1, C, T, H, W] as it comes."""
    count, height, width = video.shape[2:]
    frames = _between_blocks(stream, count, height, width)
    result = Chunk(frames)

    def fill(t: int, start: int, last: bool, out: torch.Tensor) -> None:
        out.copy_(video[:, :, t, start : start + out.shape[2]])

    for t, start, rows in causal_convolution(stream, conv, fill, (count, height, width)):
        result.statistics.add(rows)
        frames.write(t, start, rows)
    return result


def resnet(stream: Stream, block: ResnetBlock, chunk: Chunk, latents: torch.Tensor | None) -> Chunk:
    """A CogVideoXResnetBlock3D; `chunk` is used up. latents: see normalise_and_convolve."""
    frames, widens = chunk.frames, block.in_channels != block.out_channels
    size = frames.count, frames.height, frames.width
    hidden = KeptFrames(stream, *size, on_host=stream.plan.hidden_on_host)
    hidden_chunk = Chunk(hidden)
    # What the block computes is added to the frames that it was given. Where these are kept and have as many channels,
    # the sum takes their place; otherwise they, or the shortcut of them, are kept separately until then.
    if isinstance(frames, KeptFrames) and not widens:
        residual, separate_residual = frames, False
    else:
        residual, separate_residual = _between_blocks(stream, *size), True

    def keep_residual(t: int, start: int, rows: torch.Tensor) -> None:
        residual.write(t, start, _shortcut(stream, block.conv_shortcut, rows) if widens else rows)

    on_rows = keep_residual if separate_residual else None
    for t, start, rows in normalise_and_convolve(
        stream, block.norm1, block.conv1.conv, chunk, latents, on_rows, release=separate_residual
    ):
        hidden_chunk.statistics.add(rows)
        hidden.write(t, start, rows)
    result = Chunk(residual)
    for t, start, rows in normalise_and_convolve(stream, block.norm2, block.conv2.conv, hidden_chunk, latents):
        rows += residual.read(t, start, start + rows.shape[2])
        result.statistics.add(rows)
        residual.write(t, start, rows)
    return result


def normalise_and_convolve(
    stream: Stream,
    norm: Norm,
    conv: torch.nn.Conv3d,
    chunk: Chunk,
    latents: torch.Tensor | None,
    on_rows: Callable[[int, int, torch.Tensor], None] | None = None,
    release: bool = True,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Norm, SiLU and causal convolution of a chunk, yielded as causal_convolution does.

    latents: [1, 16, T, h, w] that a decoder's norms depend on; None in an encoder.
    on_rows(t, first row, rows): called with each row of the frames once, before they are released.
    release: let go of each frame after its last use here.
    """
    frames = chunk.frames
    if isinstance(norm, torch.nn.GroupNorm):
        modulation_of = group_norm(stream, norm, chunk.statistics, frames.height, frames.width)
    else:
        assert latents is not None, "a decoder's norms need the latents"
        modulation_of = spatial_norm(stream, norm, chunk.statistics, frames.count, frames.height, latents)
    next_row = [0] * frames.count  # by frame: the first row that on_rows was not called with

    def fill(t: int, start: int, last: bool, out: torch.Tensor) -> None:
        rows = frames.read(t, start, start + out.shape[2])
        stream.activation(rows, modulation_of(t), start, out)
        new_rows = rows[:, :, next_row[t] - start :]  # bands overlap by the rows that the 3 x 3 window reaches
        if on_rows is not None and new_rows.shape[2]:
            on_rows(t, next_row[t], new_rows)
            next_row[t] = start + out.shape[2]
        if release and last:
            frames.release(t)

    yield from causal_convolution(stream, conv, fill, (frames.count, frames.height, frames.width))


def upsample(stream: Stream, upsampler: Resample, chunk: Chunk, widest: bool) -> Chunk:
    """A CogVideoXUpsample3D; `chunk` is used up. widest: no frames of the network are larger than its result."""
    source = chunk.frames
    assert isinstance(source, KeptFrames), "only the widest frames are recomputed, and nothing follows those"
    sources = upsampled_sources(source.count, upsampler.compress_time)
    computed = UpsampledFrames(stream, source, sources, upsampler.conv)
    kept = None
    if not (widest and stream.plan.recompute):
        kept = _between_blocks(stream, computed.count, computed.height, computed.width)
    result = Chunk(kept or computed)
    for start, stop in stream.bands(computed.height, computed.width):
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


def downsample(stream: Stream, downsampler: Resample, chunk: Chunk) -> Chunk:
    """A CogVideoXDownsample3D; `chunk` is used up."""
    frames = chunk.frames
    sources = downsampled_sources(frames.count, downsampler.compress_time)
    # diffusers pads one row and one column of zeros, then takes every second position of a 3 x 3 window
    height, width = ((side - 2) // 2 + 1 for side in (frames.height, frames.width))
    kept = _between_blocks(stream, len(sources), height, width)
    result = Chunk(kept)
    with stream.weights(downsampler.conv) as (weight, bias):
        for start, stop in stream.bands(height, 4 * width):  # a pixel of the result reads four of the frames
            top, bottom = 2 * start, min(2 * stop + 1, frames.height)
            for t, group in enumerate(sources):
                rows = frames.read(group[0], top, bottom)
                if len(group) == 2:
                    rows = (rows + frames.read(group[1], top, bottom)).mul_(0.5)
                rows = F.conv2d(F.pad(rows, (0, 1, 0, 2 * stop + 1 - bottom)), weight, bias, stride=2)
                result.statistics.add(rows)
                kept.write(t, start, rows)
                if stop == height:
                    for source in group:
                        frames.release(source)
    return result


def _between_blocks(stream: Stream, count: int, height: int, width: int) -> KeptFrames:
    """Room for the frames that one block hands to the next."""
    return KeptFrames(stream, count, height, width, on_host=stream.plan.blocks_on_host)


def _shortcut(stream: Stream, conv: torch.nn.Conv3d, rows: torch.Tensor) -> torch.Tensor:
    """A convolution over nothing but channels: its kernel is 1 x 1 x 1."""
    with stream.weights(conv) as (weight, bias):
        return F.conv2d(rows, weight[:, :, 0], bias)
