"""Random numbers in the order in which diffusers draws them."""

import torch


def draw_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Unit normal noise for latents of `shape` [B, C, T, H, W], fp32 on the CPU.

    Drawn as [B, T, C, H, W], the layout of diffusers' pipelines, so that one seed gives one video in both.
    """
    batch, channels, frames, height, width = shape
    noise = torch.randn((batch, frames, channels, height, width), generator=generator)
    return noise.transpose(1, 2)


# LATENT key: (seed, count). So many normal numbers were drawn from this seed's stream before the noise.
DRAWN = "cogvideox_drawn"


def drawn_before(latent: dict, seed: int) -> int:
    """How far the stream of `seed` is used up: diffusers takes a sample of the VAE's posterior before the noise."""
    drawn_seed, count = latent.get(DRAWN, (None, 0))
    return count if drawn_seed == seed else 0


def seeded_noise(
    shape: torch.Size | tuple[int, ...], seed: int, batch_index: list[int] | None = None, drawn: int = 0
) -> torch.Tensor:
    """The noise that a run with `seed` starts from: [B, C, T, H, W], fp32 on the CPU.

    batch_index: which members of a larger batch these latents are (ComfyUI's LatentFromBatch); each keeps the noise
        it had there.
    drawn: numbers that were drawn from the stream before, a multiple of 16.
    """
    generator = start_stream(seed, drawn)
    if batch_index is None:
        return draw_noise(shape, generator)
    whole = draw_noise((max(batch_index) + 1, *shape[1:]), generator)
    return whole[batch_index]


def start_stream(seed: int, drawn: int = 0) -> torch.Generator:
    """A run's random stream after its first `drawn` numbers."""
    generator = torch.Generator().manual_seed(seed)
    if drawn:
        torch.randn(drawn, generator=generator)
    return generator
