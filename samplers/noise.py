"""Random numbers in the order in which diffusers draws them."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..host.compat import throw_if_interrupted
from ..video_limits import check_latent_amount

_BLOCK = 1 << 22  # a multiple of 16, see start_stream
_STREAM = "cogvideox_stream"  # of a noise tensor that was drawn here


def draw_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Unit normal noise for latents of `shape` [B, C, T, H, W], fp32 on the CPU.

    Drawn as [B, T, C, H, W], the layout of diffusers' pipelines, so that one seed gives one video in both. Raises
    UserError where that many are no video that can be made, as a batch_index of a billion would ask for.
    """
    check_latent_amount(shape)
    batch, channels, frames, height, width = shape
    noise = torch.randn((batch, frames, channels, height, width), generator=generator)
    return noise.transpose(1, 2)


class NoiseStream(NamedTuple):
    """Where a run's noise comes from, which its values do not tell."""

    seed: int
    # Which members of a larger batch the latents are (ComfyUI's LatentFromBatch): each keeps the noise that it had
    # there. A number may occur twice (LatentBatchSeedBehavior).
    batch_index: tuple[int, ...] | None = None
    rng_offset: int = 0  # how many numbers were drawn from the stream before, a multiple of 16 (keys.rng_offset)

    def draw(self, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """The noise that a run on latents of `shape` starts from: [B, C, T, H, W], fp32 on the CPU.

        The tensor remembers its stream as long as it is handed on as it is, which is until the run begins:
        read_stream.
        """
        noise = self._draw(shape, start_stream(self.seed, self.rng_offset))
        setattr(noise, _STREAM, self)
        return noise

    def draw_steps(self, shape: torch.Size | tuple[int, ...]) -> Callable[[], torch.Tensor]:
        """Draws the noise of one step after another, shaped like `draw`'s. It goes on where `draw` has stopped:
        diffusers draws both from one generator."""
        generator = start_stream(self.seed, self.rng_offset)
        self._draw(shape, generator)
        return lambda: self._draw(shape, generator)

    def _draw(self, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        if self.batch_index is None:
            return draw_noise(shape, generator)
        return draw_noise((max(self.batch_index) + 1, *shape[1:]), generator)[list(self.batch_index)]


def adds_noise(noise: torch.Tensor) -> bool:
    """Whether a run with this `noise` adds any. ComfyUI gives zeros to a run that goes on from a noisy latent."""
    return bool(torch.count_nonzero(noise))


def read_stream(noise: torch.Tensor) -> NoiseStream | None:
    """The stream that NoiseStream.draw has drawn `noise` from; None for noise of another origin."""
    return getattr(noise, _STREAM, None)


def start_stream(seed: int, rng_offset: int = 0) -> torch.Generator:
    """A run's random stream after its first `rng_offset` numbers.

    On the CPU even for a card, whose generator draws other numbers from the same seed. torch draws normal numbers in
    blocks of 16. Two draws give the same numbers as one draw of both only where the first is a multiple of 16, as the
    size of all latents is: they have 16 channels.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, rng_offset, _BLOCK):  # all at once would take the memory of a video
        throw_if_interrupted()
        torch.randn(min(_BLOCK, rng_offset - start), generator=generator)
    return generator
