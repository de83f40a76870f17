"""A latent decoded quickly by taecvx, CogVideoX's tiny decoder: close, not exact."""

from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..samplers.front import split_front
from ..vae.geometry import SPATIAL, check_latents, video_frames
from ..vae.tiny_decoder import VALUES_PER_PIXEL, TinyDecoder


def decode_draft(patcher: comfy.model_patcher.ModelPatcher, samples: torch.Tensor) -> torch.Tensor:
    """Unscaled latents [B, 16, n, h, w] to frames [B, 4 n - 3, 8 h, 8 w, 3] in 0 .. 1, decoded one after the other.

    Raises UserError for another model's latent, and for one that contains NaN or Inf.
    """
    check_latents(samples)
    _, samples = split_front(samples)  # of a run that stopped early, and no part of the video
    model: Any = patcher.model
    decoder: TinyDecoder = model
    device = patcher.load_device
    dtype = next(decoder.parameters()).dtype
    batch, _, count, height, width = samples.shape
    size = height * SPATIAL, width * SPATIAL
    mm.load_models_gpu([patcher], memory_required=VALUES_PER_PIXEL * size[0] * size[1] * dtype.itemsize)
    out = torch.empty((batch, video_frames(count), *size, 3), device=mm.intermediate_device())
    bar = comfy.utils.ProgressBar(batch * len(out[0]))
    with torch.no_grad():
        for video, latents in zip(out, samples.split(1)):
            for index, frame in enumerate(decoder.stream(latents.to(device, dtype))):
                throw_if_interrupted()
                video[index] = frame.movedim(0, -1)  # [3, H, W] -> [H, W, 3]
                bar.update(1)
    if not torch.isfinite(out).all():
        raise UserError(
            f"The draft contains NaN or Inf in {dtype}, though its latent does not. Download the tiny decoder again.",
            advice="decode exactly",
        )
    return out
