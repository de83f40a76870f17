"""NaN and Inf in a run's predictions: found without a wait for the card, and mended where a kernel is the cause."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import comfy.patcher_extension
import torch

from ..errors import NonFiniteError, UserError
from ..host.async_copies import LateRead
from ..host.compat import attention_for
from ..host.exact_attention import quantised_attention, with_exact_attention
from ..host.messages import Notify
from ..host.protocols import Guider
from ..host.several_cards import wait_for_other_cards
from ..keys import FINITE_WATCH


class _Unread(NamedTuple):
    step: int
    is_finite: LateRead
    error: Callable[[], UserError]


class FiniteWatch:
    """Whether a run's predictions are finite.

    A card is some steps behind the host, and would stand still while the host waits for its answer at each prediction.
    The answer is read when it is there, which is after a preview for one, and one step later at the latest.

    Cards that share a run note their predictions in threads of their own.
    """

    def __init__(self) -> None:
        self._step = 0
        self._unread: list[_Unread] = []
        self._guard = threading.Lock()

    def note(self, is_finite: torch.Tensor, error: Callable[[], UserError]) -> None:
        """Have a prediction looked at. is_finite: a single truth value, on the prediction's device. error: makes what
        is raised where it is false.

        Raises what is known to be wrong by now. Where the device is the CPU, that is this prediction too.
        """
        self._unread.append(_Unread(self._step, LateRead(is_finite), error))
        self.check()

    def check(self) -> None:
        """Raises the error of a prediction that is known to contain NaN or Inf."""
        with self._guard:
            while self._unread and self._unread[0].is_finite.is_ready():
                self._read_next()

    def end_step(self) -> None:
        """Wait for the predictions of the step before this one, at most. Raises as `check` does."""
        self.check()
        while self._unread and self._unread[0].step < self._step:
            self._read_next()
        self._step += 1

    def end_run(self) -> None:
        """Wait for all. Raises as `check` does."""
        while self._unread:
            self._read_next()

    def _read_next(self) -> None:
        unread = self._unread.pop(0)
        if not unread.is_finite.get():
            raise unread.error()


def watch_predictions(guider: Guider, notify: Notify) -> FiniteWatch:
    """Have the predictions of a run that begins looked at. Its end_step and end_run are the caller's to call.

    With a quantised attention kernel each prediction is looked at before the next one, as it can still be computed
    again: once, with torch's attention, which the rest of the run keeps. `notify` gets a sentence about that.
    """
    watch, options = FiniteWatch(), guider.model_options
    transformer_options = options.setdefault("transformer_options", {})
    kernel = quantised_attention(attention_for(guider.model_patcher.load_device), transformer_options)
    if not kernel:
        transformer_options[FINITE_WATCH] = watch
        return watch
    # Around what the model is asked for in a step, control nets included, and inside of all caches of steps. The
    # options are a copy of this run's own (CFGGuider.sample).
    kind = comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
    wrapper = _ExactFallback(kernel, notify).predict
    comfy.patcher_extension.add_wrapper_with_key(kind, "cogvideox", wrapper, options, is_model_options=True)
    return watch


class _ExactFallback:
    """CALC_COND_BATCH wrapper of a run with a quantised attention kernel."""

    def __init__(self, kernel: str, notify: Notify):
        self._kernel, self._notify = kernel, notify
        self._is_exact = False

    def predict(
        self, executor: Callable[..., Any], model: Any, conds: Any, x: Any, timestep: Any, options: dict[str, Any]
    ) -> Any:
        run = partial(executor, model, conds, x, timestep)
        if not self._is_exact:
            try:
                return run(options)
            except NonFiniteError:
                wait_for_other_cards(options)
        exact = {**options, "transformer_options": with_exact_attention(options.get("transformer_options", {}))}
        out = run(exact)  # raises the same again where the attention was not the cause
        if not self._is_exact:
            self._is_exact = True
            self._notify(
                f"Attention by the quantised kernel {self._kernel} has led to NaN or Inf: the step was computed again "
                "with torch's own attention, which the rest of this run uses as well."
            )
        return out
