"""Calls that a disk in a network may hold for ever, in threads that keep no program from ending.

The threads of concurrent.futures and of asyncio are waited for when Python ends: ComfyUI would not.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """Up to `most` threads, which are started as they are needed and then wait for the next call."""

    def __init__(self, most: int, name: str):
        self._most, self._name = most, name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._idle, self._guard, self._started = threading.Semaphore(0), threading.Lock(), 0

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Run `call` in one of the threads: at once, or when one of them has ended its own. Returns at once."""
        future: Future[T] = Future()
        self._work.put((future, call))
        with self._guard:
            if not self._idle.acquire(blocking=False) and self._started < self._most:
                self._started += 1
                threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def _run(self) -> None:
        while True:
            future, call = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # raised again where the result is asked for
                    future.set_exception(error)
            del future, call  # what they hold would stay in memory until the next one comes
            self._idle.release()
