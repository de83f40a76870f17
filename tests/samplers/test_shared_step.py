"""Which card decides about a step that several compute, and that none waits for ever."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from cogvideox.samplers.shared_step import SharedStep

FIRST, LAST = torch.device("cuda", 0), torch.device("cuda", 1)
SECONDS = 20  # of a wait that would be one for ever


class Pool:
    """As ComfyUI's: a thread for each card, and an error instead of a result."""

    def __init__(self) -> None:
        self.devices = [FIRST, LAST]
        self._threads = {device: ThreadPoolExecutor(1) for device in self.devices}
        self._asked: dict[torch.device, list[Future]] = {device: [] for device in self.devices}

    def submit(self, device: torch.device, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._asked[device].append(self._threads[device].submit(fn, *args, **kwargs))

    def get_result(self, device: torch.device) -> tuple[Any, Exception | None]:
        answer = self._asked[device].pop(0)
        error: Any = answer.exception(SECONDS)
        return (None, error) if error else (answer.result(), None)

    def shutdown(self) -> None:
        for thread in self._threads.values():
            thread.shutdown()


@pytest.fixture
def step() -> Iterator[SharedStep]:
    pool = Pool()
    yield SharedStep(pool)
    pool.shutdown()


def test_the_card_of_the_last_prompt_decides(step: SharedStep) -> None:
    """The one by which ComfyUI's EasyCache decides on one card. The other has asked before the answer is there."""
    has_asked = threading.Event()

    def follow() -> tuple[bool, bool]:
        has_asked.set()
        return step.decides(FIRST), step.is_skipped(FIRST)

    def decide() -> tuple[bool, bool, bool]:
        before = step.decides(LAST), step.is_skipped(LAST)
        has_asked.wait(SECONDS)
        step.decide(True)
        return (*before, step.is_skipped(LAST))

    step.submit(FIRST, follow)
    step.submit(LAST, decide)
    assert step.get_result(FIRST) == ((False, True), None)
    assert step.get_result(LAST) == ((True, False, True), None)
    step.decide(False)
    assert step.is_skipped(FIRST), "the first decision counts"


def test_an_error_of_the_deciding_card_leaves_none_waiting(step: SharedStep) -> None:
    """ComfyUI asks for the first card's result first: the run would hang instead of showing the error."""
    error = RuntimeError("out of memory")

    def fail() -> None:
        raise error

    step.submit(FIRST, step.is_skipped, FIRST)
    step.submit(LAST, fail)
    assert step.get_result(FIRST) == (False, None)
    assert step.get_result(LAST) == (None, error)


def test_a_card_alone_decides(step: SharedStep) -> None:
    """Where the other prompt has no part in this step."""
    step.submit(FIRST, lambda: (step.decides(FIRST), step.is_skipped(FIRST)))
    assert step.get_result(FIRST) == ((True, False), None)
    assert step.devices == [FIRST, LAST]
