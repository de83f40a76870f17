"""Previews of a whole clip in the place of ComfyUI's, which show its first frame, wherever a sampler makes them."""

import logging
import time
from collections.abc import Callable
from typing import Protocol

import latent_preview
import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image

from .patches import wrap_previewer

MAX_SHARE = 0.03  # of the time that sampling takes; after a clip that took longer than CHEAP_S
CHEAP_S = 0.02

# x0 [B, C, T, h, w] as the model sees it -> frames, uint8 [t, H, W, 3] on the CPU, and the seconds that each stands
Renderer = Callable[[torch.Tensor], tuple[torch.Tensor, float]]
# (device, latent format, whether the user wants a decoder's pictures, longest side in pixels) -> renderers, best first
MakeRenderers = Callable[[torch.device, object, bool, int], list[Renderer]]


class Player(Protocol):
    """Plays a clip, picture by picture; see media.flipbook."""

    def show(self, frames: torch.Tensor, seconds: float) -> Image.Image: ...

    def current(self) -> Image.Image: ...


MakePlayer = Callable[[Callable[[Image.Image], bool]], Player]


def hook_previews(format_class: type, make_renderers: MakeRenderers, make_player: MakePlayer) -> None:
    """Preview latents of `format_class` with what `make_renderers` returns; every other latent as before."""

    def make_previewer(device: torch.device, latent_format: object, with_decoder: bool) -> "ClipPreviewer":
        side = latent_preview.MAX_PREVIEW_RESOLUTION
        return ClipPreviewer(latent_format, make_renderers(device, latent_format, with_decoder, side), make_player)

    wrap_previewer(format_class, make_previewer)


class ClipPreviewer(latent_preview.Latent2RGBPreviewer):
    """Shows every frame of the clip, one after the other. To other packs it is the previewer that it replaces."""

    def __init__(self, latent_format: object, renderers: list[Renderer], make_player: MakePlayer):
        super().__init__(latent_format.latent_rgb_factors)
        self._renderers = renderers
        self._make_player = make_player
        self._player: Player | None = None
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
            return None if self._player is None else ("JPEG", self._player.current(), side)
        clip = self._render_timed(x0)
        if clip is None:
            return None
        if self._player is None:
            self._player = self._make_player(preview_sender(side))
        return "JPEG", self._player.show(*clip), side

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


def preview_sender(max_side_px: int) -> Callable[[Image.Image], bool]:
    """What sends pictures to the node that runs now and to the client that queued it, for as long as the node runs.

    ComfyUI's own way, ProgressBar's hook, is for the thread that samples: it would catch the user's cancelling here.
    """
    context = get_executing_context()
    if context is None:  # a script: nobody to see it
        return lambda image: False
    from server import PromptServer

    server = PromptServer.instance
    running_node = server.last_node_id

    def send(image: Image.Image) -> bool:
        registry = get_progress_state()
        is_over = server.last_node_id != running_node or registry.prompt_id != context.prompt_id
        if is_over or server.client_id is None:
            return False
        _send_preview(server, registry.dynprompt, context, ("JPEG", image, max_side_px))
        _redraw(registry, context.node_id)
        return True

    return send


def _redraw(registry: object, node_id: str) -> None:
    """Tell the frontend once more how far each node is: its classic canvas draws a preview when that comes in."""
    to_frontend = registry.handlers.get("webui")
    if to_frontend is not None and node_id in registry.nodes:
        to_frontend.start_handler(node_id, registry.nodes[node_id], registry.prompt_id)


def _send_preview(server: object, dynprompt: object, context: object, picture: tuple) -> None:
    """Source of the messages: ComfyUI's comfy_execution/progress.py (WebUIProgressHandler) and main.py."""
    from comfy_api import feature_flags
    from protocol import BinaryEventTypes

    if not feature_flags.supports_feature(server.sockets_metadata, server.client_id, "supports_preview_metadata"):
        server.send_sync(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, picture, server.client_id)
        return
    node_id = context.node_id
    metadata = {
        "node_id": node_id,
        "prompt_id": context.prompt_id,
        "display_node_id": dynprompt.get_display_node_id(node_id),
        "parent_node_id": dynprompt.get_parent_node_id(node_id),
        "real_node_id": dynprompt.get_real_node_id(node_id),
    }
    server.send_sync(BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA, (picture, metadata), server.client_id)
