"""Which Ray is used, and which is not."""

import sys
import time
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.nodes.parallel import CogVideoXParallel
from cogvideox.parallel import engine
from cogvideox.tests.support import validated

ADDRESS = "127.0.0.1:1"


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engine.ALLOWED, f"10.0.0.1:6379, {ADDRESS}")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)


def test_a_workflow_calls_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's workflow could send the user's pictures to a stranger's machine."""
    monkeypatch.delenv(engine.ALLOWED, raising=False)
    with pytest.raises(UserError, match=f"does not call {ADDRESS}.*COGVIDEOX_RAY_ADDRESSES={ADDRESS}"):
        engine.check_address(ADDRESS)
    refused = validated(CogVideoXParallel, cards=2, split="auto", address=ADDRESS)
    assert "does not call" in str(refused)


@pytest.mark.parametrize("lacking", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"])
def test_a_cluster_without_a_token_is_refused(allowed: None, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    """Ray asks for none by default, and whoever reaches it then runs code."""
    monkeypatch.delenv(lacking)
    with pytest.raises(UserError, match="without a token.*RAY_AUTH_MODE=token"):
        engine.check_address(ADDRESS)


def test_an_allowed_address_passes(allowed: None) -> None:
    """The owner's word counts, and no address is this machine."""
    engine.check_address(ADDRESS)
    engine.check_address("")


@pytest.mark.parametrize("address", [ADDRESS, "127.0.0.1:99999", "127.0.0.1", "a..b:1"])
def test_where_nothing_answers_is_told_at_once(ray_runs: Any, allowed: None, address: str) -> None:
    """Ray itself would try for a minute."""
    began = time.monotonic()
    with pytest.raises(UserError, match=f"Nothing answers at {address}"):
        engine._join(ray_runs, address)
    assert time.monotonic() - began < 10


def test_many_processes_of_a_cpu_are_refused() -> None:
    """Each has all of a model's weights: a stranger's workflow would take all of the machine's memory."""
    if not torch.cuda.device_count():
        assert "At most 8 processes" in str(validated(CogVideoXParallel, cards=64, split="auto", address=""))
    assert validated(CogVideoXParallel, cards=0, split="auto", address="") is True


def test_the_number_of_cards_elsewhere_is_asked_for(allowed: None) -> None:
    """0 is all cards of this machine: at an address it would mean something else."""
    refused = validated(CogVideoXParallel, cards=0, split="auto", address=ADDRESS)
    assert "Set cards to their number" in str(refused)


def test_without_ray_the_prompt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by the sampler, it would come after the text encoder, and on a node that needs no Ray."""
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = validated(CogVideoXParallel, cards=2, split="auto")
    assert "needs the Python package ray, which is not installed" in str(refused)
    assert "python -m pip install ray" in str(refused)


@pytest.mark.parametrize("found, is_refused", [(1, True), (2, False), (0, False)])
def test_more_ranks_than_cards_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, found: int, is_refused: bool
) -> None:
    """Said by the sampler, it would come after minutes of text encoding. A machine without cards is for trying."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    refused = validated(CogVideoXParallel, cards=2, split="auto")
    assert ("Cards in this machine: 1, fewer than the 2 asked for" in str(refused)) == is_refused
    assert is_refused or refused is True
