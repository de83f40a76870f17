"""Run a blocking iterator in a thread of its own, so that a cancel is noticed while it waits."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.1


class Cancelled(Exception):
    """The user has cancelled the download."""


class _End:
    """The last entry of the queue: the iterator is exhausted, or has raised `error`."""

    def __init__(self, error: Exception | None = None):
        self.error = error


def in_background(produce: Callable[[], Iterator[T]], should_stop: Callable[[], bool]) -> Iterator[T]:
    """Yield what the iterator that `produce` returns yields, which runs in a thread of its own.

    A read from a silent server blocks until its timeout, 30 seconds; this generator ends within a tenth of a second.
    The thread is left behind then and ends with its read.

    Raises Cancelled when should_stop() is true, and whatever `produce` raises.
    """
    # Bounded: where the disk is slower than the network, the thread has to wait instead of filling the memory.
    items: queue.Queue[T | _End] = queue.Queue(maxsize=8)
    abandoned = threading.Event()

    # False once nobody reads any more. A put without a timeout would block for ever on a full queue that was abandoned.
    def put(item: T | _End) -> bool:
        while not abandoned.is_set():
            try:
                items.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for value in produce():
                if not put(value):
                    return
            put(_End())
        except Exception as error:  # raised again below, in the thread that asked
            put(_End(error))

    # A daemon, so that a read that still blocks does not keep ComfyUI from ending.
    threading.Thread(target=work, name="cogvideox-download", daemon=True).start()
    try:
        while True:
            if should_stop():
                raise Cancelled
            try:
                item = items.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        abandoned.set()
