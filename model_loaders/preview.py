"""What the user sees of a run under way: the latents' colours, or the tiny decoder's pictures where it is there."""

import logging
from functools import partial

import torch

from ..host.errors import CheckpointError
from ..host.folders import find, list_files
from ..host.preview_hook import Renderer, hook_previews
from ..vae.preview import rgb_frames, seconds_per_frame, tiny_frames
from ..vae.tiny import TinyDecoder
from .tiny import TINY_PREFIX, open_tiny_decoder

TINY_FOLDER = "vae_approx"
DEFAULT_FPS = 8.0


def enable_previews(latent_format: object, fps: float) -> None:
    """Let every sampler preview latents of this format as a clip at `fps` frames a second; see host.preview_hook."""
    latent_format.preview_fps = fps
    hook_previews(type(latent_format), make_renderers)


def make_renderers(device: torch.device, latent_format: object, with_decoder: bool, max_side_px: int) -> list[Renderer]:
    """Ways to picture latents as the model sees them, the best first; with_decoder: by the tiny decoder, if any."""
    fps = getattr(latent_format, "preview_fps", DEFAULT_FPS)
    renderers = [partial(_render_colours, torch.tensor(latent_format.latent_rgb_factors), fps)]
    decoder = _tiny_decoder(device) if with_decoder else None
    if decoder is not None:
        renderers.insert(0, partial(_render_pictures, decoder, device, latent_format, fps, max_side_px))
    return renderers


def list_tiny_decoders() -> list[str]:
    """The tiny decoder's files in models/vae_approx."""
    return [name for name in list_files(TINY_FOLDER) if name.rsplit("/", 1)[-1].startswith(TINY_PREFIX)]


def _tiny_decoder(device: torch.device) -> TinyDecoder | None:
    """The first of the tiny decoder's files on `device`, or None and a line in the log."""
    names = list_tiny_decoders()
    if not names:
        logging.warning(
            f"Previews of method taesd need {TINY_PREFIX}.pth or {TINY_PREFIX}.safetensors (repository "
            f"madebyollin/taehv) in models/{TINY_FOLDER}; CogVideoX's previews are rough without it."
        )
        return None
    try:
        return open_tiny_decoder(find(names[0], TINY_FOLDER), device, one_per_latent=True).to(device)
    except (CheckpointError, OSError, RuntimeError) as error:
        logging.warning(f"CogVideoX's previews are rough, without the tiny decoder: {error}")
        return None


def _render_colours(factors: torch.Tensor, fps: float, x0: torch.Tensor) -> tuple[torch.Tensor, float]:
    frames = rgb_frames(x0, factors)
    return frames, seconds_per_frame(x0.shape[2], len(frames), fps)


def _render_pictures(
    decoder: TinyDecoder, device: torch.device, latent_format: object, fps: float, max_side_px: int, x0: torch.Tensor
) -> tuple[torch.Tensor, float]:
    dtype = next(decoder.parameters()).dtype
    # the decoder was trained on the VAE's own latents: without the scale that the model sees
    latents = latent_format.process_out(x0[:1]).to(device, dtype)
    frames = tiny_frames(decoder, latents, max_side_px)
    return frames, seconds_per_frame(x0.shape[2], len(frames), fps)
