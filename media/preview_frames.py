"""A clip that is still being sampled as small pictures, one for each latent frame."""

import torch
import torch.nn.functional as F

from ..vae.geometry import video_frames
from ..vae.tiny_decoder import TinyDecoder

MAX_FRAMES = 24  # of a preview, which ComfyUI sends picture by picture


def rgb_frames(x0: torch.Tensor, factors: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Latents [B, 16, n, h, w] as the model sees them -> the first video's frames, uint8 [t, h, w, 3], on the CPU.

    factors: [16, 3], one row a channel. bias: [3], added to each colour. Every latent pixel is one pixel; at most
    MAX_FRAMES frames.
    """
    # One by one: a list of indices would be copied to a card, for which the host waits.
    latents = torch.stack([x0[0, :, index] for index in shown_frames(x0.shape[2])], dim=1).float()  # [16, t, h, w]
    colours = torch.einsum("ctyx,cr->tyxr", latents, factors.to(latents))
    if bias is not None:
        colours = colours + bias.to(colours)
    # The colours are in -1 .. 1, as those that ComfyUI's Latent2RGBPreviewer computes.
    return _to_bytes((colours + 1) / 2).cpu()


def tiny_frames(decoder: TinyDecoder, latents: torch.Tensor, max_side_px: int) -> torch.Tensor:
    """Unscaled latents [B, 16, n, h, w] -> the first video's frames, uint8 [t, H, W, 3], on the CPU.

    decoder: one that gives one frame for each latent. The frames' longer side is at most `max_side_px`; there are at
    most MAX_FRAMES.
    """
    shown = set(shown_frames(latents.shape[2]))
    with torch.no_grad():
        return torch.cat(
            [
                # [3, H, W] -> [1, H, W, 3]
                _to_bytes(_shrink(frame, max_side_px).movedim(0, -1)[None])
                # Frames that are not shown are decoded too: each one needs what the decoder keeps of the one before.
                for index, frame in enumerate(decoder.stream(latents[:1]))
                if index in shown
            ]
        ).cpu()


def shown_frames(count: int) -> list[int]:
    """Which of `count` frames a preview shows: at most MAX_FRAMES, evenly spaced from the first to the last."""
    if count <= MAX_FRAMES:
        return list(range(count))
    return [round(i * (count - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)]


def seconds_per_frame(latent_count: int, frames: int, fps: float) -> float:
    """How many seconds each of `frames` pictures is shown, so that a preview lasts as long as the video of
    `latent_count` latents, though it has fewer frames."""
    return video_frames(latent_count) / fps / max(frames, 1)


def _shrink(frame: torch.Tensor, max_side_px: int) -> torch.Tensor:
    """[3, H, W] -> [3, H', W'], its proportions kept; smaller frames stay as they are."""
    height, width = frame.shape[1:]
    factor = max_side_px / max(height, width)
    if factor >= 1:
        return frame
    size = max(1, round(height * factor)), max(1, round(width * factor))
    return F.interpolate(frame[None].float(), size, mode="bilinear", antialias=True)[0]


def _to_bytes(frames: torch.Tensor) -> torch.Tensor:
    return (frames.float().clamp(0, 1) * 255).to(torch.uint8)
