"""Play a clip in ComfyUI's preview, picture by picture, while a node goes on working.

ComfyUI shows one still a step, and its classic canvas draws no more than the first frame of an animated picture
(browsers' drawImage does so by definition). Stills sent one after the other move in every frontend.
"""

import threading
import time
import weakref
from collections.abc import Callable

import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image

MIN_SECONDS = 0.1  # that a picture stands


class Flipbook:
    """A clip that plays from the first `show` on until nobody holds the flipbook any more, or its node has ended.

    send: takes a picture to the user; False when there is nobody to see it, which ends the playing.
    """

    def __init__(self, send: Callable[[Image.Image], bool]):
        self._send = send
        self._frames: torch.Tensor | None = None
        self._seconds = 1.0
        self._position = 0
        self._thread: threading.Thread | None = None
        self._dropped = threading.Event()
        weakref.finalize(self, self._dropped.set)

    def show(self, frames: torch.Tensor, seconds: float) -> Image.Image:
        """Go on with these frames, uint8 [t, H, W, 3], each for `seconds`; returns the one whose turn it is."""
        self._frames, self._seconds = frames, max(MIN_SECONDS, seconds)
        if len(frames) > 1 and self._thread is None:
            # it must not keep the flipbook alive
            arguments = weakref.ref(self), self._dropped, self._seconds
            self._thread = threading.Thread(target=_play, args=arguments, name="CogVideoX preview", daemon=True)
            self._thread.start()
        return self.current()

    def turn(self) -> float | None:
        """Send the next picture; returns for how many seconds it stands, None where nobody looks."""
        self._position += 1
        return self._seconds if self._send(self.current()) else None

    def current(self) -> Image.Image:
        """The picture whose turn it is."""
        return Image.fromarray(self._frames[self._position % len(self._frames)].numpy())


def _play(reference: "weakref.ref[Flipbook]", dropped: threading.Event, seconds: float) -> None:
    turned = time.perf_counter()
    # less what the last turn has cost, so that the clip keeps its speed
    while not dropped.wait(max(0.0, turned + seconds - time.perf_counter())):
        turned = time.perf_counter()
        flipbook = reference()
        seconds = None if flipbook is None else flipbook.turn()
        if seconds is None:
            return
        del flipbook


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
