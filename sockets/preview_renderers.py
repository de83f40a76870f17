"""Previews of a run: the tiny decoder's pictures where it is installed and asked for, else the latents' colours."""

from collections.abc import Callable
from functools import partial

import torch

from ..host.previews import Renderer, hook_previews
from ..media.flipbook import Flipbook
from ..media.preview_frames import rgb_frames, seconds_per_frame, tiny_frames
from ..vae.tiny_decoder import TinyDecoder
from .model import CogVideoXLatent

OpenDecoder = Callable[[torch.device], TinyDecoder | None]


def enable_previews(open_decoder: OpenDecoder) -> None:
    """Let every sampler node preview CogVideoX's latents as a clip that plays, through host.previews.hook_previews.

    open_decoder: returns the tiny decoder on a device, or None where it is not installed.
    """
    hook_previews(CogVideoXLatent, partial(make_renderers, open_decoder), Flipbook)


def make_renderers(
    open_decoder: OpenDecoder,
    device: torch.device,
    latent_format: CogVideoXLatent,
    with_decoder: bool,
    max_side_px: int,
) -> list[Renderer]:
    """Ways to make pictures of scaled latents, the best first; the next one is taken where one fails.

    with_decoder: use the tiny decoder, where `open_decoder` finds one on `device` and it is for these latents.
    max_side_px: of its pictures.
    """
    fps = latent_format.preview_fps
    bias = latent_format.latent_rgb_factors_bias
    # On the device once a run: at each preview the host would wait for the copies.
    colours = tuple(None if x is None else torch.tensor(x).to(device) for x in (latent_format.latent_rgb_factors, bias))
    renderers = [partial(_render_colours, *colours, fps)]
    decoder = open_decoder(device) if with_decoder and latent_format.suits_tiny_decoder else None
    if decoder is not None:
        renderers.insert(0, partial(_render_pictures, decoder, device, latent_format, fps, max_side_px))
    return renderers


def _render_colours(
    factors: torch.Tensor, bias: torch.Tensor | None, fps: float, x0: torch.Tensor
) -> tuple[torch.Tensor, float]:
    frames = rgb_frames(x0, factors, bias)
    return frames, seconds_per_frame(x0.shape[2], len(frames), fps)


def _render_pictures(
    decoder: TinyDecoder,
    device: torch.device,
    latent_format: CogVideoXLatent,
    fps: float,
    max_side_px: int,
    x0: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    dtype = next(decoder.parameters()).dtype
    # The decoder was trained on latents as the VAE makes them, unscaled.
    latents = latent_format.process_out(x0[:1]).to(device, dtype)
    frames = tiny_frames(decoder, latents, max_side_px)
    return frames, seconds_per_frame(x0.shape[2], len(frames), fps)
