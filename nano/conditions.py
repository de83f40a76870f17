"""What CogVideoX-nano's image, inpainting and control models get of a clip, concatenated with its noisy latents.

Encoded by diffusers' VAE as the pack's nodes encode it with theirs: the masked pixels are black, the mask is that of
media.masks.fun_mask, the edges are those of ComfyUI's Canny node.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .half_precision import autocast_bf16
from .world import path_box

EDGE_THRESHOLDS = 0.1, 0.3  # of ComfyUI's Canny node in the example workflows
# Which part of the clips shows what: the start; the start and the end; everything but a region; nothing.
_KNOWN_SHARES = {"start": 0.35, "start and end": 0.25, "region": 0.3, "nothing": 0.1}
_START_FRAMES = (1, 1, 1, 5, 9)  # each as likely; more than one continue a clip


def first_frame(autoencoder: Any, pixels: torch.Tensor, _rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """`images` [B, 16, 1, h, w]. pixels: [B, 3, F, H, W] in -1 .. 1, here and below; latents are unscaled."""
    return {"images": _encode(autoencoder, pixels[:, :, :1])}


def masked_clip(autoencoder: Any, pixels: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """`concat` [B, 16, T, h, w] and `known` [B, 1, T, h, w] of a Fun InP model: see
    sockets.conditioning_images.encode_masked_video."""
    from cogvideox.media.masks import fun_mask

    masks = torch.stack([draw_mask(clip, rng) for clip in pixels.cpu()]).to(pixels.device)  # [B, F, H, W]
    latents = _encode(autoencoder, pixels.masked_fill(masks[:, None] > 0.5, -1.0))
    known = torch.cat([fun_mask(mask, *latents.shape[2:]) for mask in masks])
    # Where nothing is known the model gets zeros, not the latents of a black clip.
    some = (masks < 0.5).flatten(1).any(dim=1).view(-1, 1, 1, 1, 1)
    return {"concat": latents * some, "known": known}


def edges(autoencoder: Any, pixels: torch.Tensor, _rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """`concat` [B, 16, T, h, w] of a Fun Control model."""
    return {"concat": _encode(autoencoder, edge_pixels(pixels))}


def packed_edges(_autoencoder: Any, pixels: torch.Tensor, _rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """`guide` [B, F, H, W / 8], eight pixels of a control net's video in a byte."""
    white = edge_pixels(pixels)[:, 0].cpu().numpy() > 0
    return {"guide": torch.from_numpy(np.packbits(white, axis=-1))}


def unpacked_edges(guide: torch.Tensor) -> torch.Tensor:
    """What packed_edges has packed: [B, F, 3, H, W] in -1 .. 1."""
    bits = torch.arange(7, -1, -1, dtype=torch.uint8, device=guide.device)
    white = ((guide[..., None] >> bits) & 1).flatten(-2).float()
    return (white * 2 - 1)[:, :, None].expand(-1, -1, 3, -1, -1)


def edge_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, F, H, W] in -1 .. 1 -> the same of its edges, white on black."""
    from kornia.filters import canny

    batch = pixels.shape[0]
    frames = (pixels.transpose(1, 2).flatten(0, 1) + 1) / 2
    found = canny(frames, *EDGE_THRESHOLDS)[1].unflatten(0, (batch, -1)).transpose(1, 2)
    return found.expand(-1, 3, -1, -1, -1) * 2 - 1


def draw_mask(clip: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """[F, H, W], 1 where the model is to paint. clip: [3, F, H, W] in -1 .. 1."""
    frames, height, width = clip.shape[1:]
    mask = torch.ones(frames, height, width)
    kind = rng.choice(list(_KNOWN_SHARES), p=list(_KNOWN_SHARES.values()))
    if kind in ("start", "start and end"):
        mask[: min(int(rng.choice(_START_FRAMES)), frames - 4)] = 0
    if kind == "start and end":
        mask[-1] = 0
    if kind == "region":
        painted = ((clip.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
        box = path_box(painted) if rng.random() < 0.6 else _random_box(height, width, rng)
        mask[:] = torch.from_numpy(box)
    return mask


def _random_box(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """[height, width], True in a box of 0.3 to 0.8 of each side."""
    sides = [int(side * rng.uniform(0.3, 0.8)) for side in (height, width)]
    top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip((height, width), sides))
    box = np.zeros((height, width), bool)
    box[top : top + sides[0], left : left + sides[1]] = True
    return box


def _encode(autoencoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    with autocast_bf16(pixels.device):
        return autoencoder.encode(pixels).latent_dist.mode().float()


# A task, as sockets.families calls it, or "control net" -> what a model of it is shown of a clip.
CONDITIONS: dict[str, Callable[[Any, torch.Tensor, np.random.Generator], dict[str, torch.Tensor]]] = {
    "image": first_frame,
    "inpaint": masked_clip,
    "control": edges,
    "control net": packed_edges,
}
