"""What the graph's process believes of the weights in the ranks, and what it loads where it goes on alone."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from cogvideox.parallel import remote_weights as module
from cogvideox.parallel.remote_weights import RemoteWeights


class Team:
    """Ranks of which a question may be cancelled while they go on with it."""

    start_count, was_lost, is_running, shares_card, is_busy = 1, False, True, True, False

    def __init__(self) -> None:
        self.lock, self.patches, self.is_cancelled = threading.RLock(), [], False

    def ask(self, method: str, *arguments: Any, **_: Any) -> list[Any]:
        if method == "patch":
            self.patches = arguments[1]
        if self.is_cancelled:
            raise mm.InterruptProcessingException
        assert not self.is_busy, "it would wait"
        return [7, 7]

    def add(self) -> str:
        return "model"

    def start(self) -> None: ...

    def tell(self, *_: Any) -> None: ...

    def wait_until_gone(self) -> None: ...


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def make(team: Team, goes_on_alone: bool = False) -> Any:
        alone = SimpleNamespace(model=SimpleNamespace(memory_required=len))
        given: Any = team, lambda *_: alone, (), torch.float32, goes_on_alone
        out: Any = RemoteWeights(*given)
        out._arguments = "path", "fp32", print, "detect"
        return out

    monkeypatch.setattr(module, "load_everywhere", lambda *_, **__: None)
    monkeypatch.setattr(module, "with_patches", lambda patcher, patches: patcher)
    return make


def test_a_cancelled_lora_is_not_taken_for_the_earlier_ones(weights: Callable[..., Any]) -> None:
    """The ranks had it, and the next run without it painted with it."""
    team = Team()
    here = weights(team)
    here.prepare(["first"], "uuid 1")
    team.is_cancelled = True
    with pytest.raises(mm.InterruptProcessingException):
        here.prepare(["second"], "uuid 2")
    team.is_cancelled = False
    assert team.patches == ["second"]
    here.prepare(["first"], "uuid 1")
    assert team.patches == ["first"]


def test_nobody_waits_for_a_step_that_was_cancelled(weights: Callable[..., Any]) -> None:
    """ComfyUI asks for bytes before it loads a text encoder, and hears no Cancel meanwhile."""
    team = Team()
    here = weights(team)
    here.prepare([], "uuid")
    assert here.loaded_bytes() == 7
    team.is_busy = True
    assert here.loaded_bytes() == 7
    team.is_busy = False
    here.unload()
    assert here.loaded_bytes() == 0


def test_a_control_net_that_begins_later_is_loaded_too(
    weights: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went on alone ended at the first step of such a net, whose weights were not on the card."""
    loaded: list[list[Any]] = []
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, memory_required: loaded.append(list(models)))
    team = Team()
    team.was_lost = True
    here, net, x = weights(team, goes_on_alone=True), object(), torch.zeros(1)
    for controls in ((), (), ((SimpleNamespace(patcher=net), None),), ()):
        assert here.predict(x, x, x, None, None, False, controls) is None
    assert loaded == [[here.alone()], [here.alone(), net]]
