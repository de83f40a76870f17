"""Runs over several cards by ComfyUI's own nodes: MultiGPU CFG Split, and those that choose a model's device.

MultiGPU CFG Split loads the model once more for each further card. In each step every card computes some of the
prompts, in a thread of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch

POOL = "multigpu_thread_pool"  # in the options of a run over several cards: a ThreadPool
Part = TypeVar("Part")


class ThreadPool(Protocol):
    """comfy.multigpu.MultiGPUThreadPool: a thread for each card, which answers in the order in which it was asked."""

    @property
    def devices(self) -> list[torch.device]: ...

    def submit(self, device: torch.device, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None: ...

    def get_result(self, device: torch.device) -> tuple[Any, Exception | None]: ...


def patchers_by_card(patcher: Any) -> dict[torch.device, Any]:
    """The patcher of each card that a run of `patcher` computes on, its own first."""
    others = patcher.get_additional_models_with_key("multigpu")
    return {each.load_device: each for each in (patcher, *others)}


def wait_for_other_cards(options: Mapping[str, Any]) -> None:
    """After a step that one card has ended with an error: let the others finish, and drop their answers.

    ComfyUI leaves these where the next step would take them for its own. options: of the run.
    """
    pool: ThreadPool | None = options.get(POOL)
    if pool is None:
        return
    for device in pool.devices:
        last = object()
        pool.submit(device, lambda last=last: last)
        while pool.get_result(device)[0] is not last:
            pass


def on_card(device: torch.device) -> AbstractContextManager[Any]:
    """While this lasts `device` is CUDA's current device: Triton launches its kernels there, wherever tensors are."""
    is_other = device.type == "cuda" and device.index is not None and torch.cuda.is_available()
    return torch.cuda.device(device) if is_other else nullcontext()


def made_on_card(device: torch.device, parts: Iterable[Part]) -> Iterator[Part]:
    """`parts`, each of them made on_card. Whoever takes them is not."""
    made = iter(parts)
    while True:
        with on_card(device):
            part = next(made, None)
        if part is None:
            return
        yield part
        part = None  # frees its memory before the next one is made
