"""Random numbers in the order in which diffusers draws them."""

from collections.abc import Sequence

import torch

from ..video_limits import check_latent_amount


def draw_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Unit normal noise for latents of `shape` [B, C, T, H, W], fp32 on the CPU.

    Drawn as [B, T, C, H, W], the layout of diffusers' pipelines, so that one seed gives one video in both. Raises
    UserError where that many are no video that can be made, as a batch_index of a billion would ask for.
    """
    check_latent_amount(shape)
    batch, channels, frames, height, width = shape
    noise = torch.randn((batch, frames, channels, height, width), generator=generator)
    return noise.transpose(1, 2)


def seeded_noise(
    shape: torch.Size | tuple[int, ...], seed: int, batch_index: Sequence[int] | None = None, rng_offset: int = 0
) -> torch.Tensor:
    """The noise that a run with `seed` starts from: [B, C, T, H, W], fp32 on the CPU.

    batch_index: which members of a larger batch these latents are (ComfyUI's LatentFromBatch); each keeps the noise
        that it had there.
    rng_offset: how many numbers were drawn from the stream before, a multiple of 16 (keys.rng_offset).
    """
    # On the CPU even for a card: a card's generator draws other numbers from the same seed.
    generator = start_stream(seed, rng_offset)
    if batch_index is None:
        return draw_noise(shape, generator)
    noise = draw_noise((max(batch_index) + 1, *shape[1:]), generator)
    return noise[list(batch_index)]


def start_stream(seed: int, rng_offset: int = 0) -> torch.Generator:
    """A run's random stream after its first `rng_offset` numbers.

    torch draws normal numbers in blocks of 16. Two draws give the same numbers as one draw of both only where the first
    is a multiple of 16, as the size of all latents is: they have 16 channels.
    """
    generator = torch.Generator().manual_seed(seed)
    if rng_offset:
        torch.randn(rng_offset, generator=generator)
    return generator
