"""Previews that play the clip instead of showing its first frame, as ComfyUI's do, in every sampler node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import comfy.model_management as mm
import latent_preview
import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image

from . import async_copies
from .language import prompt_server
from .patches import Format, wrap_previewer
from .protocols import LatentFormat, PromptServer

if TYPE_CHECKING:
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import ProgressRegistry
    from comfy_execution.utils import ExecutionContext

# After a clip that took longer than CHEAP_S seconds to make there is a pause before the next one, so that previews take
# at most MAX_SHARE of the time of a run. Cheaper ones, such as the latents' colours, are made at every step.
MAX_SHARE = 0.03
CHEAP_S = 0.02

# x0 [B, C, T, h, w], scaled -> frames, uint8 [t, H, W, 3] on the CPU, and the seconds for which each is shown
Renderer = Callable[[torch.Tensor], tuple[torch.Tensor, float]]
# (device, latent format, whether the user wants a decoder's pictures, longest side in pixels) -> renderers, best first
MakeRenderers = Callable[[torch.device, Format, bool, int], list[Renderer]]


class Player(Protocol):
    """Plays a clip, picture by picture: media.flipbook.Flipbook."""

    def show(self, frames: torch.Tensor, seconds: float) -> Image.Image: ...

    def current(self) -> Image.Image: ...


# what sends a picture, and returns whether it goes on sending -> player
MakePlayer = Callable[[Callable[[Image.Image], bool]], Player]


def hook_previews(format_class: type[Format], make_renderers: MakeRenderers[Format], make_player: MakePlayer) -> None:
    """Preview latents of `format_class` with what `make_renderers` returns; every other latent as before."""

    def make_previewer(device: torch.device, latent_format: Format, with_decoder: bool) -> ClipPreviewer:
        side = latent_preview.MAX_PREVIEW_RESOLUTION
        return ClipPreviewer(latent_format, make_renderers(device, latent_format, with_decoder, side), make_player)

    wrap_previewer(format_class, make_previewer)


class ClipPreviewer(latent_preview.Latent2RGBPreviewer):
    """Shows every frame of the clip, one after the other.

    It derives from the previewer that it replaces, because other packs ask for that class.
    """

    def __init__(self, latent_format: LatentFormat, renderers: list[Renderer], make_player: MakePlayer):
        # Packs that animate previews themselves, such as VideoHelperSuite, read the colours off the previewer.
        super().__init__(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
        self._renderers = renderers
        self._make_player = make_player
        self._player: Player | None = None
        # When the last clip was there, on time.perf_counter's clock, and what tells how many seconds it took.
        self._last: tuple[float, Callable[[], float]] | None = None

    def decode_latent_to_preview_image(
        self, preview_format: str, x0: torch.Tensor
    ) -> tuple[str, Image.Image, int] | None:
        """(format, picture, longest side in pixels) of x0 [B, C, T, h, w], scaled: a frame of the clip, whose other
        frames follow by themselves. None where no renderer works.

        Where a new clip would take too much of the time, it is a frame of the last clip. None would be simpler, but
        ComfyUI moves the progress bar at every step only for previewers that return a picture.
        """
        side = latent_preview.MAX_PREVIEW_RESOLUTION
        if time.perf_counter() < self._due():
            return None if self._player is None else ("JPEG", self._player.current(), side)
        clip = self._render_timed(x0)
        if clip is None:
            return None
        if self._player is None:
            self._player = self._make_player(preview_sender(side))
        return "JPEG", self._player.show(*clip), side

    def _due(self) -> float:
        """When the next clip may be made. A card is asked for the time of the last one only now, without a wait."""
        if self._last is None:
            return 0.0
        ended, seconds = self._last
        taken = seconds()
        return ended + (taken / MAX_SHARE if taken > CHEAP_S else 0)

    def _render_timed(self, x0: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        # A card may still be computing the step, whose time must not be taken for the preview's: the card's own clock
        # is asked. The frames are on the CPU in the end, so that the host waits once.
        on_card = async_copies.is_card(x0.device)
        begun = async_copies.record_event(x0.device, timed=True) if on_card else None
        if not on_card:  # another device that has no such clock
            x0.flatten()[:1].cpu()
        began = time.perf_counter()
        clip = self._render(x0)
        ended = time.perf_counter()
        taken = ended - began
        if on_card:
            last = async_copies.record_event(x0.device, timed=True)
            self._last = ended, partial(async_copies.seconds_between, begun, last)
        else:
            self._last = ended, lambda: taken
        return clip

    def _render(self, x0: torch.Tensor) -> tuple[torch.Tensor, float] | None:
        """By the best renderer that works. One that fails is not asked again; the run goes on in any case."""
        while self._renderers:
            try:
                return self._renderers[0](x0)
            except mm.InterruptProcessingException:  # Cancel; an Exception like others in older versions of ComfyUI
                raise
            # Whatever else fails here, such as memory that runs out or a damaged decoder, must not end the run for a
            # picture.
            except Exception as error:
                del self._renderers[0]
                logging.warning(
                    f"CogVideoX's preview failed ({type(error).__name__}: {str(error)[:200]}). The run continues "
                    f"{'with rougher previews' if self._renderers else 'without previews'}."
                )
        return None


def preview_sender(max_side_px: int) -> Callable[[Image.Image], bool]:
    """What shows a picture on the node that runs now, for the client that queued it, and returns whether that node is
    still running.

    It is called from the player's own thread, in which ComfyUI's usual way cannot be used: the hook of its ProgressBar
    raises the exception of a run that the user has cancelled, which has to reach the sampling thread.
    """
    # Read here, in the thread of the node: ComfyUI keeps the context in a variable that other threads do not inherit.
    context, server = get_executing_context(), prompt_server()
    if context is None or server is None:  # a script has no client
        return lambda image: False
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


def _redraw(registry: ProgressRegistry, node_id: str) -> None:
    """Send the node's progress once more: only then does the frontend's classic canvas draw the preview."""
    to_frontend = registry.handlers.get("webui")
    if to_frontend is not None and node_id in registry.nodes:
        to_frontend.start_handler(node_id, registry.nodes[node_id], registry.prompt_id)


def _send_preview(
    server: PromptServer, dynprompt: DynamicPrompt, context: ExecutionContext, picture: tuple[str, Image.Image, int]
) -> None:
    """Source of the messages: ComfyUI's comfy_execution/progress.py (WebUIProgressHandler) and main.py."""
    from comfy_api import feature_flags
    from protocol import BinaryEventTypes

    client: Any = server.client_id
    if not feature_flags.supports_feature(server.sockets_metadata, client, "supports_preview_metadata"):
        server.send_sync(BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, picture, client)
        return
    node_id = context.node_id
    metadata = {
        "node_id": node_id,
        "prompt_id": context.prompt_id,
        "display_node_id": dynprompt.get_display_node_id(node_id),
        "parent_node_id": dynprompt.get_parent_node_id(node_id),
        "real_node_id": dynprompt.get_real_node_id(node_id),
    }
    server.send_sync(BinaryEventTypes.PREVIEW_IMAGE_WITH_METADATA, (picture, metadata), client)
