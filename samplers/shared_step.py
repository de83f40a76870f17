"""ComfyUI's EasyCache in a run over several cards: one of them decides for all whether a step is skipped.

EasyCache keeps one state for a run, and resets it whenever a tensor comes from another device than the last one. Here
each card has a state of its own (window_caches.py). The card that computes the last prompt decides: on one card
EasyCache decides by this prompt as well, because ComfyUI puts it first into the batch.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ..host.protocols import Guider
from ..host.several_cards import POOL, ThreadPool, patchers_by_card
from ..keys import SHARED_STEP


class SharedStep:
    """A step whose prompts are spread over cards. It stands in for ComfyUI's ThreadPool, and so sees which have work.

    No thread waits for one that may wait for it: the deciding card's waits for nothing, and the others for its decision
    or for the end of its work.
    """

    def __init__(self, pool: ThreadPool):
        self._pool = pool
        self._with_work: list[torch.device] = []
        self._all_asked, self._is_decided = threading.Event(), threading.Event()
        self._is_skipped = False

    @property
    def devices(self) -> list[torch.device]:
        """ThreadPool's."""
        return self._pool.devices

    def submit(self, device: torch.device, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """ThreadPool's. ComfyUI asks the cards in the order of the prompts, and then for their results."""

        def work() -> Any:
            try:
                return fn(*args, **kwargs)
            finally:
                if self.decides(device):
                    self.decide(False)

        self._with_work.append(device)
        self._pool.submit(device, work)

    def get_result(self, device: torch.device) -> tuple[Any, Exception | None]:
        """ThreadPool's."""
        self.all_asked()
        return self._pool.get_result(device)

    def all_asked(self) -> None:
        """No further card is asked in this step."""
        self._all_asked.set()

    def decides(self, device: torch.device) -> bool:
        """Whether this card decides."""
        self._all_asked.wait()
        return device == self._with_work[-1]

    def decide(self, is_skipped: bool) -> None:
        """Let the others know. The first decision counts."""
        if not self._is_decided.is_set():
            self._is_skipped = is_skipped
            self._is_decided.set()

    def is_skipped(self, device: torch.device) -> bool:
        """What was decided. The deciding card is told so for its further prompts, and False before."""
        if not self.decides(device):
            self._is_decided.wait()
        return self._is_skipped


def share_easycache(guider: Guider) -> None:
    """Have the cards of a run that begins decide together, where ComfyUI's EasyCache is on the MODEL."""
    options = guider.model_options  # a copy of this run's own (CFGGuider.sample)
    if "easycache" not in options.get("transformer_options", {}) or len(patchers_by_card(guider.model_patcher)) == 1:
        return
    # The second comes after EasyCache's own wrapper of this kind, and so is called by it.
    for kind, wrapper in ((WrappersMP.CALC_COND_BATCH, _in_one_step), (WrappersMP.DIFFUSION_MODEL, _not_skipped)):
        add_wrapper_with_key(kind, SHARED_STEP, wrapper, options, is_model_options=True)


def _in_one_step(
    executor: Callable[..., Any], model: Any, conds: Any, x: Any, timestep: Any, options: dict[str, Any]
) -> Any:
    """CALC_COND_BATCH wrapper: the prompts of one step, or of one of its context windows."""
    if POOL not in options:
        return executor(model, conds, x, timestep, options)
    step = SharedStep(options[POOL])
    transformer_options = {**options["transformer_options"], SHARED_STEP: step}
    try:
        return executor(model, conds, x, timestep, {**options, POOL: step, "transformer_options": transformer_options})
    finally:
        step.all_asked()  # where ComfyUI has not come so far


def _not_skipped(
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    ofs: torch.Tensor | None = None,
    transformer_options: dict[str, Any] = {},
    **kwargs: Any,
) -> torch.Tensor:
    """DIFFUSION_MODEL wrapper within EasyCache's: it computes this step. The other cards need not wait for the end."""
    step: SharedStep | None = transformer_options.get(SHARED_STEP)
    if step is not None and step.decides(transformer_options["multigpu_thread_device"]):
        step.decide(False)
    return executor(x, timestep, context, ofs, transformer_options, **kwargs)
