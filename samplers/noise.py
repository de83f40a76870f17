"""Random numbers in the order in which diffusers draws them."""

import torch


def draw_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Unit normal noise for latents of `shape` [B, C, T, H, W], fp32 on the CPU.

    Drawn as [B, T, C, H, W], the layout of diffusers' pipelines, so that one seed gives one video in both.
    """
    batch, channels, frames, height, width = shape
    noise = torch.randn((batch, frames, channels, height, width), generator=generator)
    return noise.transpose(1, 2)


def seeded_noise(
    shape: torch.Size | tuple[int, ...], seed: int, batch_index: list[int] | None = None
) -> torch.Tensor:
    """The noise that a run with `seed` starts from: [B, C, T, H, W], fp32 on the CPU.

    batch_index: which members of a larger batch these latents are (ComfyUI's LatentFromBatch); each keeps the noise
        it had there.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return draw_noise(shape, generator)
    whole = draw_noise((max(batch_index) + 1, *shape[1:]), generator)
    return whole[batch_index]
