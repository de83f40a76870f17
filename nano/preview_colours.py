"""Fit the colours of live previews to CogVideoX-nano's VAE: python -m cogvideox.nano.preview_colours

It prints the table of sockets/toy_colours.py. Needs COMFYUI_PATH; after every change of the VAE.
"""

import numpy as np
import torch
import torch.nn.functional as F

from cogvideox.host.standalone import comfyui_from_environment, use_comfyui

from .toy_settings import TEXT
from .world import draw_scene, render

CLIPS, SEED = 64, 20


def fit(clips: int = CLIPS, seed: int = SEED) -> tuple[torch.Tensor, torch.Tensor]:
    """(factors [16, 3], bias [3]) by least squares: colours in -1 .. 1 of a latent pixel as the transformer sees it.

    Each latent pixel of `clips` drawn clips is compared with the mean colour of the pixels that it stands for: 8 x 8
    of one frame for the first latent frame, and of four for each that follows. Both are rounded to four decimals.
    """
    latents, colours = [], []
    for clip in drawn_clips(clips, seed):
        z, seen = latent_and_colours(clip)
        latents.append(z.flatten(1).T)  # [16, T, h, w] -> [T h w, 16]
        colours.append(seen.flatten(1).T)
    columns = F.pad(torch.cat(latents), (0, 1), value=1.0).double()
    solution = torch.linalg.lstsq(columns, torch.cat(colours).double()).solution.float()
    return (solution[:-1] * 1e4).round() / 1e4, (solution[-1] * 1e4).round() / 1e4


def drawn_clips(count: int, seed: int) -> list[torch.Tensor]:
    """Clips of the toy's world, each [F, H, W, 3] in 0 .. 1."""
    rng = np.random.default_rng(seed)
    clips = [render(draw_scene(rng), rng, TEXT.frames, TEXT.width, TEXT.height) for _ in range(count)]
    return [torch.from_numpy(np.asarray(clip)).float() / 255 for clip in clips]


def latent_and_colours(clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(latent [16, T, h, w] as the transformer sees it, the colours under it [3, T, h, w] in -1 .. 1) of a clip."""
    from cogvideox.host.toy import find_toy
    from cogvideox.model_loaders.load_vae import load_vae

    from .vae import SCALING_FACTOR

    path = find_toy("CogVideoX-nano", "vae")
    assert path is not None
    latent = load_vae(path).encode(clip)[0].float() * SCALING_FACTOR
    # [F, H, W, 3] -> [3, F, h, w]
    small = F.avg_pool2d(clip.movedim(-1, 1), 8).movedim(1, 0) * 2 - 1
    later = small[:, 1:].unflatten(1, (-1, 4)).mean(2)
    return latent.cpu(), torch.cat([small[:, :1], later], 1)


def main() -> None:
    """Print the table."""
    comfyui_from_environment()
    use_comfyui(cpu=True)
    factors, bias = fit()
    print("TOY_RGB_FACTORS = [")
    for row in factors.tolist():
        print(f"    [{', '.join(f'{value:.4f}' for value in row)}],")
    print(f"]\nTOY_RGB_BIAS = [{', '.join(f'{value:.4f}' for value in bias.tolist())}]")


if __name__ == "__main__":
    main()
