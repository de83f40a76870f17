"""What a model takes beside the noisy video: a start image, a masked video, a control video.

CONDITIONING carries these as further entries of ComfyUI's dictionary, so that they pass through every stock node:

concat_latent_image  [B, 16 or 32, n, h, w], unscaled latents. n is the clip's latent frames, or 1: then the first
                     frame, and nothing is known of the others.
cogvideox_task       a key of TASKS: what the latents are for. ComfyUI's own VOID nodes leave it out.
cogvideox_known      [B, 1, n, h, w], 0 .. 1, "inpaint" only: 1 where the latents show what the video shall keep.
cogvideox_scale      a key of IMAGE_SCALES, "image" only.
cogvideox_end        True where an end image is among the latents.
cogvideox_range      (start, end) in 0 .. 1 of the run: outside the model sees zeros.
"""

import torch

# task -> (the channels beside the video's 16, what they show, the node that makes them)
TASKS = {
    "text": (0, "nothing", "CogVideoX Text Encode alone"),
    "image": (16, "a start image", "CogVideoX Image to Video"),
    "inpaint": (17, "a masked video", "CogVideoX Fun Inpaint"),
    "control": (16, "a control video", "CogVideoX Fun Control"),
    "void": (32, "a masked video and its quad mask", "ComfyUI's VOID Inpaint Conditioning"),
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
    """The channels that stand beside the noisy video.

    latents, known: see the head of this file. shape: of the noise, [B, 16, T, h, w], T with CogVideoX 1.5's frames in
    front. Returns [B, C, T, h, w].

    Source: diffusers pipeline_cogvideox_image2video.py, prepare_latents: the image stands in the first of all frames,
    those in front included. A whole clip's latents have their first frame repeated in front instead.
    """
    parts = [latents * scale] if known is None else [known.to(latents) * known_scale, latents * scale]
    channels = fit_frames(torch.cat(parts, dim=1), shape[2])
    return channels.repeat(-(-shape[0] // channels.shape[0]), 1, 1, 1, 1)[: shape[0]]


def fit_frames(channels: torch.Tensor, frames: int) -> torch.Tensor:
    """[B, C, n, h, w] -> [B, C, frames, h, w]; zeros after a single frame, the first one repeated before a clip."""
    missing = frames - channels.shape[2]
    if missing <= 0:
        return channels[:, :, :frames]
    if channels.shape[2] == 1:
        batch, count, _, height, width = channels.shape
        return torch.cat([channels, channels.new_zeros(batch, count, missing, height, width)], dim=2)
    return torch.cat([channels[:, :, :1].expand(-1, -1, missing, -1, -1), channels], dim=2)
