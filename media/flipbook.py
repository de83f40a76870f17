"""Play a clip in ComfyUI's preview, frame by frame, while a node goes on working.

ComfyUI shows one still a step, and its classic canvas draws no more than the first frame of an animated picture
(browsers' drawImage does so by definition). Stills sent one after the other move in every frontend.
"""

import threading
import time
import weakref
from collections.abc import Callable

import torch
from PIL import Image

MIN_SECONDS = 0.1  # for which a picture is shown: each one is sent to the browser


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
        # Set when this object is gone. The thread waits for it, and so ends at once and not after its next picture.
        self._dropped = threading.Event()
        weakref.finalize(self, self._dropped.set)

    def show(self, frames: torch.Tensor, seconds: float) -> Image.Image:
        """Go on with these frames, uint8 [t, H, W, 3], each for `seconds`; returns the one whose turn it is."""
        self._frames, self._seconds = frames, max(MIN_SECONDS, seconds)
        if len(frames) > 1 and self._thread is None:
            # A weak reference: the thread must not keep the flipbook alive, or it would play forever.
            arguments = weakref.ref(self), self._dropped, self._seconds
            self._thread = threading.Thread(target=_play, args=arguments, name="CogVideoX preview", daemon=True)
            self._thread.start()
        return self.current()

    def turn(self) -> float | None:
        """Send the next picture; returns for how many seconds it is shown, None where nobody looks."""
        # `show` may replace the frames in the meantime: current takes the position modulo their number.
        self._position += 1
        return self._seconds if self._send(self.current()) else None

    def current(self) -> Image.Image:
        """The picture whose turn it is."""
        assert self._frames is not None, "nothing was shown yet"
        return Image.fromarray(self._frames[self._position % len(self._frames)].numpy())


def _play(reference: "weakref.ref[Flipbook]", dropped: threading.Event, seconds: float) -> None:
    turned = time.perf_counter()
    # The time that the last turn has taken is waited less, so that the clip keeps its speed.
    while not dropped.wait(max(0.0, turned + seconds - time.perf_counter())):
        turned = time.perf_counter()
        flipbook = reference()
        shown_for = None if flipbook is None else flipbook.turn()
        if shown_for is None:
            return
        seconds = shown_for
        del flipbook  # while it waits, this thread must not be what keeps the flipbook alive
