"""The parts that encoder and decoder are made of, on the frames of one chunk.

A norm needs the statistics of all frames of its chunk before it can begin. Each part therefore collects them from its
results as these pass, so that the norm after it does not have to read the frames once more.

Source: diffusers autoencoder_kl_cogvideox.py, upsampling.py, downsampling.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .causal import causal_convolution
from .frames import KeptFrames, UpsampledFrames, downsampled_sources, joined, own_copy, upsampled_sources
from .modules import Norm, Resample, ResnetBlock
from .norms import GroupStatistics, group_norm, spatial_norm
from .stream import Stream


@dataclass
class Chunk:
    """Frames of one chunk, the statistics that the next norm needs of them, and what is still to be added to them.

    offset: [C], fp32: the biases of the convolutions that the frames come from. Libraries add a bias in a pass of its
    own over the result. A norm that follows adds it to a mean and to a shift of a few values.
    """

    frames: KeptFrames | UpsampledFrames
    statistics: GroupStatistics = field(default_factory=GroupStatistics)
    offset: torch.Tensor | None = None

    def add_bias(self, bias: torch.Tensor | None) -> None:
        """Include a bias [C] of any type in the offset."""
        if self.offset is None:
            self.offset = own_copy(bias)
        elif bias is not None:
            self.offset = self.offset + bias  # a new tensor: another chunk may have this one

    def known_offset(self) -> torch.Tensor:
        """The offset of frames that have been computed."""
        assert self.offset is not None, "every chunk comes from a convolution"
        return self.offset


def convolve(stream: Stream, conv: torch.nn.Conv3d, video: torch.Tensor) -> Chunk:
    """A causal convolution of a chunk [1, C, T, H, W], without a norm before it.

    video: with the rows of other processes next to these (Stream.reach).
    """
    low, high = stream.reach(0)
    count, height, width = video.shape[2], video.shape[3] - (high - low), video.shape[4]
    frames = _between_blocks(stream, count, height, width)
    result = Chunk(frames)

    def fill(t: int, start: int, last: bool, out: torch.Tensor) -> None:
        out.copy_(video[:, :, t, start - low : start - low + out.shape[2]])

    for t, start, rows in causal_convolution(stream, conv, fill, (count, height, width), result.add_bias):
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
    # the sum overwrites them, which saves a chunk of frames at the peak. It is safe because norm1 has read all of them
    # before the second loop writes the first. Otherwise the frames, or the shortcut of them, go to `residual` while
    # norm1 reads them, and each frame is released after its last use there.
    if isinstance(frames, KeptFrames) and not widens:
        residual, separate_residual = frames, False
    else:
        residual, separate_residual = _between_blocks(stream, *size), True

    result = Chunk(residual, offset=None if widens else chunk.offset)

    def keep_residual(t: int, start: int, rows: torch.Tensor) -> None:
        residual.write(t, start, _shortcut(stream, block.conv_shortcut, rows, chunk, result) if widens else rows)

    on_rows = keep_residual if separate_residual else None
    for t, start, rows in normalise_and_convolve(
        stream, block.norm1, block.conv1.conv, chunk, latents, on_rows, separate_residual, hidden_chunk.add_bias
    ):
        hidden_chunk.statistics.add(rows)
        hidden.write(t, start, rows)
    for t, start, rows in normalise_and_convolve(
        stream, block.norm2, block.conv2.conv, hidden_chunk, latents, on_bias=result.add_bias
    ):
        # In place: rows are the convolution's own result.
        result.statistics.add(rows, added=residual.read(t, start, start + rows.shape[2]))
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
    on_bias: Callable[[torch.Tensor], None] | None = None,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Norm, SiLU and causal convolution of a chunk, yielded as causal_convolution does.

    latents: [1, 16, T, h, w] that a decoder's norms depend on; None in an encoder.
    on_rows(t, first row, rows): called with each row of the frames once, before they are released.
    release: let go of each frame after its last use here.
    on_bias: see causal_convolution.
    """
    frames, offset = chunk.frames, chunk.known_offset()
    frames.share_edges()
    if isinstance(norm, torch.nn.GroupNorm):
        modulation_of = group_norm(stream, norm, chunk.statistics, offset, frames.height, frames.width)
    else:
        assert latents is not None, "a decoder's norms need the latents"
        modulation_of = spatial_norm(stream, norm, chunk.statistics, offset, frames.count, frames.height, latents)
    # By frame: the first row that on_rows was not called with. A band is read with one row more on either side, for the
    # 3 x 3 window, so that the bands overlap by two rows; on_rows has to see each row once.
    next_row = [0] * frames.count

    def fill(t: int, start: int, last: bool, out: torch.Tensor) -> None:
        modulation = modulation_of(t)
        for first, rows in frames.pieces(t, start, start + out.shape[2]):
            part = out[:, :, first - start : first - start + rows.shape[2]]
            stream.activation(rows, modulation, first + modulation.above, part)
            new_rows = rows[:, :, next_row[t] - first : frames.height - first]
            if on_rows is not None and new_rows.shape[2]:
                on_rows(t, next_row[t], new_rows)
                next_row[t] += new_rows.shape[2]
        if release and last:
            frames.release(t)

    yield from causal_convolution(stream, conv, fill, (frames.count, frames.height, frames.width), on_bias)


def upsample(stream: Stream, upsampler: Resample, chunk: Chunk, widest: bool) -> Chunk:
    """A CogVideoXUpsample3D; `chunk` is used up.

    widest: no frames of the network are larger than its result. A plan with `recompute` does not keep those: every
    reader computes the rows that it needs from the frames before the upsampler, which are a quarter of the size.
    """
    source = chunk.frames
    assert isinstance(source, KeptFrames), "only the widest frames are recomputed, and nothing follows those"
    sources = upsampled_sources(source.count, upsampler.compress_time)
    computed = UpsampledFrames(stream, source, chunk.known_offset(), sources, upsampler.conv)
    # Even where nothing is kept, the frames are computed once here, for the statistics of the norm that follows.
    kept = None
    if not (widest and stream.plan.recompute):
        kept = _between_blocks(stream, computed.count, computed.height, computed.width)
    result = Chunk(kept or computed)
    for start, stop in stream.bands(computed.height, computed.width, upsampler.conv.out_channels):
        for t in range(computed.count):
            if not computed.repeats(t):
                rows = computed.read(t, start, stop)
                # Equal frames are computed once and counted as often as they occur.
                result.statistics.add(rows, times=sources.count(sources[t]))
                if kept:
                    kept.write(t, start, rows)
            elif kept:
                kept.repeat(t)
            # Without `kept`, whoever reads the result releases its frames and with them what they are computed from.
            if kept and stop == computed.height:
                computed.release(t)
    result.offset = computed.bias
    return result


def downsample(stream: Stream, downsampler: Resample, chunk: Chunk) -> Chunk:
    """A CogVideoXDownsample3D; `chunk` is used up."""
    frames = chunk.frames
    sources = downsampled_sources(frames.count, downsampler.compress_time)
    # diffusers adds one row of zeros below and one column on the right, then convolves with a 3 x 3 window and a stride
    # of 2, without padding on the other two sides.
    height, width = ((side - 2) // 2 + 1 for side in (frames.height, frames.width))
    frames.share_edges()
    _, high = stream.reach(frames.height)
    kept = _between_blocks(stream, len(sources), height, width)
    result = Chunk(kept)
    with stream.weights(downsampler.conv) as (weight, bias):
        result.add_bias(bias)
        # The plan limits the pixels that are worked on at once, and each pixel of the result comes from 2 x 2 of the
        # frames.
        for start, stop in stream.bands(height, 4 * width, downsampler.conv.in_channels):
            top, bottom = 2 * start, min(2 * stop + 1, high)
            for t, group in enumerate(sources):
                rows = joined(frames.pieces(group[0], top, bottom))
                # The mean is a new tensor: what was read may be the kept frame itself.
                if len(group) == 2:
                    rows = (rows + joined(frames.pieces(group[1], top, bottom))).mul_(0.5)
                rows = _padded(rows, chunk.known_offset(), 2 * stop + 1 - bottom)
                rows = F.conv2d(rows, weight, stride=2)
                result.statistics.add(rows)
                kept.write(t, start, rows)
                if stop == height:
                    for source in group:
                        frames.release(source)
    return result


def _padded(rows: torch.Tensor, offset: torch.Tensor, below: int) -> torch.Tensor:
    """rows [1, C, r, W] + offset [C], with a column of zeros on the right and `below` rows of them: a new tensor."""
    height, width = rows.shape[2:]
    padded = F.pad(rows, (0, 1, 0, below))
    inside = padded[:, :, :height, :width]
    inside += offset.view(1, -1, 1, 1)  # in fp32, and rounded once
    return padded


def _between_blocks(stream: Stream, count: int, height: int, width: int) -> KeptFrames:
    """Room for the frames that one block hands to the next."""
    return KeptFrames(stream, count, height, width, on_host=stream.plan.blocks_on_host)


def _shortcut(stream: Stream, conv: torch.nn.Conv3d, rows: torch.Tensor, chunk: Chunk, result: Chunk) -> torch.Tensor:
    """A convolution over nothing but channels of rows of `chunk`: its kernel is 1 x 1 x 1. result: what is made of it,
    which gets its offset with the first rows."""
    with stream.weights(conv) as (weight, bias):
        weight = weight[:, :, 0]
        if result.offset is None:
            result.offset = F.conv2d(chunk.known_offset().view(1, -1, 1, 1), weight.float()).flatten()
            result.add_bias(bias)
        return F.conv2d(rows, weight)
