"""Channel-concatenated conditioning: the start image, masked video or control video that some models take.

What travels in CONDITIONING is listed in keys.Concat. Here it becomes the channels that the model sees.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Task:
    """What a model's input channels beyond the video's 16 are for."""

    channels: int
    shows: str  # in messages


TASKS = {
    "text": Task(0, "nothing but the prompt"),
    "image": Task(16, "a start image"),
    "inpaint": Task(17, "a masked video"),  # 16 latent channels and the mask
    "control": Task(16, "a control video"),
    "void": Task(32, "a masked video and its quad mask"),
}
IMAGE_SCALES = ("checkpoint", "multiplied", "divided", "unscaled")


def image_scale(how: str, scale_factor: float, inverted: bool) -> float:
    """What a start image's latents are multiplied by.

    how: a key of IMAGE_SCALES. "checkpoint" follows its VAE's invert_scale_latents (`inverted`): CogVideoX1.5-5B-I2V
    was published with latents divided by the scaling factor in diffusers and unscaled in its authors' own code.
    """
    if how == "checkpoint":
        how = "divided" if inverted else "multiplied"
    return {"multiplied": scale_factor, "divided": 1 / scale_factor, "unscaled": 1.0}[how]


def concat_channels(
    latents: torch.Tensor, known: torch.Tensor | None, shape: torch.Size, scale: float, known_scale: float
) -> torch.Tensor:
    """The channels to concatenate with the noisy video.

    latents, known: concat_latent_image and cogvideox_known of keys.Concat. shape: of the noise, [B, 16, T, h, w], where
    T includes the frames that CogVideoX 1.5 gets in front. scale, known_scale: what both are multiplied by.
    Returns [B, C, T, h, w].

    Source: diffusers pipeline_cogvideox_image2video.py, prepare_latents: the image stands in the first of all frames,
    those in front included. A whole clip's latents have their first frame repeated in front instead.
    """
    parts = [latents * scale] if known is None else [known.to(latents) * known_scale, latents * scale]
    channels = fit_frames(torch.cat(parts, dim=1), shape[2])
    return channels.repeat(-(-shape[0] // channels.shape[0]), 1, 1, 1, 1)[: shape[0]]


def fit_frames(channels: torch.Tensor, frames: int) -> torch.Tensor:
    """[B, C, n, h, w] -> [B, C, frames, h, w].

    A single frame is followed by zeros, for nothing is known of the others. A clip gets its first frame repeated in
    front.
    """
    missing = frames - channels.shape[2]
    if missing <= 0:
        return channels[:, :, :frames]
    if channels.shape[2] == 1:
        batch, count, _, height, width = channels.shape
        return torch.cat([channels, channels.new_zeros(batch, count, missing, height, width)], dim=2)
    return torch.cat([channels[:, :, :1].expand(-1, -1, missing, -1, -1), channels], dim=2)
