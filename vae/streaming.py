"""Decode and encode a video chunk by chunk, at a memory that does not grow with its length.

The chunks are diffusers' own, and each passes through the whole network before the next begins. Within a chunk the
network is gone through block by block and not frame by frame: every norm needs the statistics of all frames of its
chunk before it can begin.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F

from ..host.compat import free_after_out_of_memory, is_out_of_memory
from .activation import Activation, modulated_silu
from .blocks import Chunk, convolve, downsample, normalise_and_convolve, resnet, upsample
from .geometry import latent_frames, video_frames
from .modules import Autoencoder, Coder
from .plan import OffloadPlan, leaner
from .stream import Stream

# diffusers' num_latent_frames_batch_size and num_sample_frames_batch_size. Other chunks would need more or less memory
# and give another video: a group norm's statistics are those of a whole chunk.
LATENTS_AT_ONCE = 2
FRAMES_AT_ONCE = 8
OnFallback = Callable[[OffloadPlan, OffloadPlan], None]
MakeStream = Callable[[OffloadPlan, torch.device, torch.dtype, Activation], Stream]
Step = Callable[[Autoencoder, Stream, torch.Tensor], torch.Tensor]


def decode_stream(
    network: torch.nn.Module,
    latents: torch.Tensor,
    plan: OffloadPlan,
    device: torch.device,
    dtype: torch.dtype,
    on_fallback: OnFallback | None = None,
    activation: Activation = modulated_silu,
    make_stream: MakeStream = Stream,
) -> Iterator[torch.Tensor]:
    """Latents [1, 16, n, h, w], unscaled, to 4 n - 3 frames [1, 3, t, 8 h, 8 w], about -1 .. 1, at most 9 at a time.

    Computed on `device` in `dtype`. Where memory runs out, on_fallback(plan, leaner plan) is called and the decode goes
    on with the other; with None, or after the leanest, the error is raised. make_stream: see vae/memory.py.

    diffusers decodes an even number n of latents to 4 n frames, because no latent of an even first chunk stands for one
    frame alone. ComfyUI expects 4 n - 3 for any n. So the last latent is repeated here, which makes n odd, and the four
    frames that it adds are left out.
    """
    decoded = _chunk_by_chunk(
        *(network, decode_chunk, latent_chunks(latents), plan, device, dtype, on_fallback, make_stream),
        activation=activation,
    )
    yield from without_repeated(decoded, video_frames(latents.shape[2]))


def latent_chunks(latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The chunks that decode_stream cuts latents into, with the last one repeated where their number is even."""
    if latents.shape[2] > 1 and latents.shape[2] % 2 == 0:
        latents = torch.cat([latents, latents[:, :, -1:]], dim=2)
    return split_chunks(latents, LATENTS_AT_ONCE)


def without_repeated(decoded: Iterator[torch.Tensor], left: int) -> Iterator[torch.Tensor]:
    """The first `left` frames of `decoded` chunks: not those of a repeated latent."""
    for frames in decoded:
        # No name may hold a chunk's frames while those of the next are computed, or both would be on the device at the
        # peak: a generator's names stay alive between its yields.
        new, left, frames = frames[:, :, : max(left, 0)], left - frames.shape[2], None
        if new.shape[2]:
            yield new
        new = None


def encode_stream(
    network: torch.nn.Module,
    pixels: torch.Tensor,
    plan: OffloadPlan,
    device: torch.device,
    dtype: torch.dtype,
    on_fallback: OnFallback | None = None,
    process_input: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels,
    make_stream: MakeStream = Stream,
) -> Iterator[torch.Tensor]:
    """Frames [1, 3, t, H, W] to the moments of their posterior, [1, 32, n, H / 8, W / 8], a few at a time.

    Frames beyond 4 k + 1 are left out at the end; diffusers' chunks would lose some in the middle. process_input:
    brings a few frames to -1 .. 1, so that no copy of the whole video is needed for that.
    device, dtype, on_fallback, make_stream: see decode_stream.
    """
    yield from _chunk_by_chunk(
        network, encode_chunk, pixel_chunks(pixels), plan, device, dtype, on_fallback, make_stream, process_input
    )


def pixel_chunks(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The chunks that encode_stream cuts frames into, without those beyond 4 k + 1."""
    return split_chunks(pixels[:, :, : video_frames(latent_frames(pixels.shape[2]))], FRAMES_AT_ONCE)


def _chunk_by_chunk(
    network: torch.nn.Module,
    step: Step,
    chunks: Sequence[torch.Tensor],
    plan: OffloadPlan,
    device: torch.device,
    dtype: torch.dtype,
    on_fallback: OnFallback | None,
    make_stream: MakeStream,
    prepare: Callable[[torch.Tensor], torch.Tensor] = lambda chunk: chunk,
    activation: Activation = modulated_silu,
) -> Iterator[torch.Tensor]:
    """step(network, stream, prepare(chunk)) of each chunk.

    Out of memory, it starts again with a leaner plan and yields what was not yielded yet. It has to start with the
    first chunk, because each chunk builds on the caches of those before it, and the chunk that failed has already
    consumed some of them.
    """
    done = 0
    while True:
        stream = make_stream(plan, device, dtype, activation)
        try:
            for index, chunk in enumerate(chunks):
                stream.last = index == len(chunks) - 1
                # Not around the yield: a generator that waits inside no_grad leaves its caller without gradients.
                with torch.no_grad():
                    result = step(cast(Autoencoder, network), stream, prepare(chunk).to(device, dtype))
                # In a second try, chunks that were yielded already are computed for their caches alone.
                if index == done:
                    done += 1
                    yield result
                result = None  # its memory is needed for the next chunk, whether this one was yielded or not
            return
        except Exception as error:
            following = leaner(plan) if on_fallback is not None and is_out_of_memory(error) else None
            if on_fallback is None or following is None:
                raise
        # This is not done inside `except`: there the exception's traceback still keeps alive the tensors of every
        # function that it came through.
        del stream
        free_after_out_of_memory()
        on_fallback(plan, following)
        plan = following


def decode_chunk(network: Autoencoder, stream: Stream, latents: torch.Tensor) -> torch.Tensor:
    """One chunk of decode_stream. Where other processes have rows (Stream.rows), latents have one more of each of them.

    Source: diffusers autoencoder_kl_cogvideox.py, CogVideoXDecoder3D."""
    decoder = network.decoder
    if network.post_quant_conv is not None:
        latents = _pointwise(stream, network.post_quant_conv, latents)
    chunk = convolve(stream, decoder.conv_in.conv, latents)
    for block in decoder.mid_block.resnets:
        chunk = resnet(stream, block, chunk, latents)
    # The blocks after the last upsampler work on frames of its size: these are the widest.
    last = max((i for i, up in enumerate(decoder.up_blocks) if up.upsamplers is not None), default=None)
    for i, up in enumerate(decoder.up_blocks):
        for block in up.resnets:
            chunk = resnet(stream, block, chunk, latents)
        for upsampler in up.upsamplers or ():
            chunk = upsample(stream, upsampler, chunk, widest=i == last)
    return _finish(stream, decoder, chunk, latents)


def encode_chunk(network: Autoencoder, stream: Stream, pixels: torch.Tensor) -> torch.Tensor:
    """One chunk of encode_stream. Where other processes have rows (Stream.rows), pixels have one more of each of them.

    Source: diffusers autoencoder_kl_cogvideox.py, CogVideoXEncoder3D."""
    encoder = network.encoder
    chunk = convolve(stream, encoder.conv_in.conv, pixels)
    for down in encoder.down_blocks:
        for block in down.resnets:
            chunk = resnet(stream, block, chunk, None)
        for downsampler in down.downsamplers or ():
            chunk = downsample(stream, downsampler, chunk)
    for block in encoder.mid_block.resnets:
        chunk = resnet(stream, block, chunk, None)
    moments = _finish(stream, encoder, chunk, None)
    return moments if network.quant_conv is None else _pointwise(stream, network.quant_conv, moments)


def _finish(stream: Stream, coder: Coder, chunk: Chunk, latents: torch.Tensor | None) -> torch.Tensor:
    """The last norm and convolution, as one tensor [1, C, T, H, W]."""
    count, height, width = chunk.frames.count, chunk.frames.height, chunk.frames.width
    conv = coder.conv_out.conv
    # [1, C, T H, W] -> [1, C, T, H, W], a view: Stream allocates frames only, and this is one T times as high.
    out = stream.empty(conv.out_channels, count * height, width).unflatten(2, (count, height))
    for t, start, rows in normalise_and_convolve(stream, coder.norm_out, conv, chunk, latents):
        out[:, :, t, start : start + rows.shape[2]] = rows
    return out


def _pointwise(stream: Stream, conv: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """A convolution over nothing but channels of a chunk [1, C, T, H, W]."""
    with stream.weights(conv) as (weight, bias):
        return F.conv3d(x, weight, bias)


def split_chunks(x: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Cut [B, C, T, H, W] in time as chunk_lengths says."""
    return x.split(chunk_lengths(x.shape[2], size), dim=2)


def chunk_lengths(count: int, size: int) -> list[int]:
    """How diffusers cuts `count` frames: chunks of `size`, the remainder joined to the first.

    At size 2, 13 latents are chunks of 3, 2, 2, 2, 2 and 2, and 1, 2 or 3 latents are a single chunk.

    Source: diffusers autoencoder_kl_cogvideox.py, _decode and _encode.
    """
    chunks = max(count // size, 1)
    return [count - (chunks - 1) * size] + [size] * (chunks - 1)
