"""Channel-concatenated conditioning: the start image, masked video or control video that some models take.

keys.Concat lists what CONDITIONING holds of it. Here it becomes the channels of the model's input.
"""

from typing import Any, NamedTuple

import torch

from ..errors import UserError
from ..host.protocols import BaseModel
from ..keys import read_concat


class Task(NamedTuple):
    """What a model's input channels beyond the video's 16 are for."""

    channels: int
    shows: str  # what the user gives for them, for messages


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

    how: one of IMAGE_SCALES. "checkpoint" follows invert_scale_latents in its VAE's config (`inverted`).
    CogVideoX1.5-5B-I2V was published with two conventions: diffusers divides the latents by the scaling factor, its
    authors' own code leaves them unscaled; the other values are there to choose between them.
    scale_factor: the VAE's.
    """
    if how == "checkpoint":
        how = "divided" if inverted else "multiplied"
    return {"multiplied": scale_factor, "divided": 1 / scale_factor, "unscaled": 1.0}[how]


def concat_channels(
    latents: torch.Tensor, known: torch.Tensor | None, shape: torch.Size, scale: float, known_scale: float
) -> torch.Tensor:
    """The channels to concatenate with the noisy video.

    latents, known: concat_latent_image and cogvideox_known of keys.Concat. shape: of the noise, [B, 16, T, h, w], where
    T includes the frame that CogVideoX 1.5 may get in front. scale, known_scale: what the two are multiplied by.
    Returns [B, C, T, h, w].

    Source: diffusers pipeline_cogvideox_image2video.py, prepare_latents: an image goes into the first of all frames,
    the one in front included. Of a clip's latents the first frame is repeated in front instead.
    """
    parts = [latents * scale] if known is None else [known.to(latents) * known_scale, latents * scale]
    channels = fit_frames(torch.cat(parts, dim=1), shape[2])
    # [1 or b, ...] -> [B, ...]: one conditioning for all of a batch, or b of them in turn.
    return channels.repeat(-(-shape[0] // channels.shape[0]), 1, 1, 1, 1)[: shape[0]]


def with_repeated_images(
    model: BaseModel, conds: dict[str, list[dict[str, Any]]], frames: int
) -> dict[str, list[dict[str, Any]]]:
    """`conds` with the start image in every frame, for a model that was trained so (Family.repeats_image); as they are
    for any other. Without an image the channels stay zero.

    conds: ComfyUI's, by name. frames: latent frames of the run.

    Raises UserError for an end image, or several start images.
    """
    family = model.model_config.family
    if not family.repeats_image:
        return conds
    out = {}
    for name, entries in conds.items():
        out[name] = []
        for entry in entries:
            concat = read_concat(entry)
            latents, repeated = concat.get("concat_latent_image"), concat.get("cogvideox_repeated")
            if callable(repeated):
                entry = {**entry, "concat_latent_image": repeated(frames)}
            elif latents is not None and bool(latents.any()):
                raise UserError(
                    f"{family.name} sees one start image in every frame, and the {name} conditioning has something "
                    "else: an end image, several start images, or an image that was saved. Use a single start image."
                )
            out[name].append(entry)
    return out


def fit_frames(channels: torch.Tensor, frames: int) -> torch.Tensor:
    """[B, C, n, h, w] -> [B, C, frames, h, w].

    A single frame is followed by zeros, as the models were trained. Of a clip the first frame is repeated in front: a
    clip is one frame short where CogVideoX 1.5 has got a frame in front.
    """
    missing = frames - channels.shape[2]
    if missing <= 0:
        return channels[:, :, :frames]
    if channels.shape[2] == 1:
        batch, count, _, height, width = channels.shape
        return torch.cat([channels, channels.new_zeros(batch, count, missing, height, width)], dim=2)
    return torch.cat([channels[:, :, :1].expand(-1, -1, missing, -1, -1), channels], dim=2)
