"""Previews of a whole clip in the place of ComfyUI's, which show its first frame, wherever a sampler makes them.

ComfyUI has no hook for this either: latent_preview.get_previewer is wrapped once (see lora_hook). What another pack
has put there before stays; only ComfyUI's own previewer for a latent format of ours gives way.
"""

import logging
import time
from collections.abc import Callable

import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from .flipbook import Flipbook, preview_sender
from .lora_hook import wrap_once

MAX_SHARE = 0.03  # of the time that sampling takes; after a clip that took longer than CHEAP_S
CHEAP_S = 0.02

# x0 [B, C, T, h, w] as the model sees it -> frames, uint8 [t, H, W, 3] on the CPU, and the seconds that each stands
Renderer = Callable[[torch.Tensor], tuple[torch.Tensor, float]]
# (device, latent format, whether the user wants a decoder's pictures, longest side in pixels) -> renderers, best first
MakeRenderers = Callable[[torch.device, object, bool, int], list[Renderer]]


def hook_previews(format_class: type, make_renderers: MakeRenderers) -> None:
    """Preview latents of `format_class` with what `make_renderers` returns; every other latent as before."""

    def wrap(original: Callable) -> Callable:
        def get_previewer(device: torch.device, latent_format: object, *rest: object, **more: object) -> object:
            if not isinstance(latent_format, format_class):
                return original(device, latent_format, *rest, **more)
            method = args.preview_method
            with_decoder = method == LatentPreviewMethod.TAESD
            if with_decoder:  # of which ComfyUI has none for our format, and would say that a file "None" is missing
                args.preview_method = LatentPreviewMethod.Latent2RGB
            try:
                previewer = original(device, latent_format, *rest, **more)
            finally:
                args.preview_method = method
            if type(previewer) is not latent_preview.Latent2RGBPreviewer:
                return previewer
            side = latent_preview.MAX_PREVIEW_RESOLUTION
            return ClipPreviewer(latent_format, make_renderers(device, latent_format, with_decoder, side))

        return get_previewer

    wrap_once(latent_preview, "get_previewer", wrap)


class ClipPreviewer(latent_preview.Latent2RGBPreviewer):
    """Shows every frame of the clip, one after the other. To other packs it is the previewer that it replaces."""

    def __init__(self, latent_format: object, renderers: list[Renderer]):
        super().__init__(latent_format.latent_rgb_factors)
        self._renderers = renderers
        self._flipbook: Flipbook | None = None
        self._due = 0.0

    def decode_latent_to_preview_image(
        self, preview_format: str, x0: torch.Tensor
    ) -> tuple[str, Image.Image, int] | None:
        """ComfyUI's preview of x0 [B, C, T, h, w]: a frame of the clip, which goes on playing; None where there is no
        way to picture it.

        Where a new clip would take too much of the time, the last one goes on. (None would do, but ComfyUI moves the
        progress bar at every step only for those that have a preview.)
        """
        side = latent_preview.MAX_PREVIEW_RESOLUTION
        if time.perf_counter() < self._due:
            return None if self._flipbook is None else ("JPEG", self._flipbook.current(), side)
        clip = self._render_timed(x0)
        if clip is None:
            return None
        if self._flipbook is None:
            self._flipbook = Flipbook(preview_sender(side))
        return "JPEG", self._flipbook.show(*clip), side

    def _render_timed(self, x0: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        x0.flatten()[:1].cpu()  # the step itself may still be under way on the device; its time is not the preview's
        began = time.perf_counter()
        clip = self._render(x0)
        ended = time.perf_counter()
        self._due = ended + ((ended - began) / MAX_SHARE if ended - began > CHEAP_S else 0)
        return clip

    def _render(self, x0: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        """By the best renderer that works: a preview that fails costs no more than the preview."""
        while self._renderers:
            try:
                return self._renderers[0](x0)
            # out of memory, weights that do not compute, latents of another pack: nothing that should end a run
            except Exception as error:
                del self._renderers[0]
                logging.warning(
                    f"CogVideoX's preview failed ({type(error).__name__}: {str(error)[:200]}); the run goes on "
                    f"{'with rougher previews' if self._renderers else 'without'}."
                )
        return None
