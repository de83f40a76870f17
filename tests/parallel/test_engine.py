"""Which Ray is used, and which is not."""

import ast
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import comfy.cli_args
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.ray_environment import LOOPBACK, prepare
from cogvideox.nodes.advice import ADVICE
from cogvideox.nodes.parallel import CogVideoXParallel
from cogvideox.parallel import engine, joining
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
    with pytest.raises(UserError, match=f"{ADDRESS} is not called.*COGVIDEOX_RAY_ADDRESSES={ADDRESS}"):
        engine.check_address(ADDRESS)
    refused = validated(CogVideoXParallel, cards=2, split="auto", address=ADDRESS)
    assert "is not called" in str(refused)


@pytest.mark.parametrize(
    "address", ["  ", "foo", "foo:", ":6379", "foo:bar", "a b:1", "foo:65536", "foo:²", f"foo:{'9' * 99}"]
)
def test_what_is_no_address_is_told_first(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Not after its owner has restarted everything to allow it."""
    monkeypatch.delenv(engine.ALLOWED, raising=False)
    refused = validated(CogVideoXParallel, cards=2, split="auto", address=address)
    assert f"The address {address!r} is not of the form machine:port" in str(refused)


def test_an_address_that_does_not_answer_decides_nothing(monkeypatch: pytest.MonkeyPatch, allowed: None) -> None:
    """Ray is prepared for this machine or for a cluster when it is imported: this machine's cards stay usable."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(engine, "_ray", lambda address: pytest.fail("Ray was imported"))
    with pytest.raises(UserError, match=f"Nothing answers at {ADDRESS}"):
        engine.start(ADDRESS, 0)


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
        joining.join(ray_runs, address, {}, lambda: None)
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
    monkeypatch.setattr(comfy.cli_args.args, "cpu", False)
    refused = validated(CogVideoXParallel, cards=2, split="auto")
    assert ("Cards in this machine: 1, fewer than the 2 asked for" in str(refused)) == is_refused
    assert is_refused or refused is True


def test_cards_that_are_not_to_be_used_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --cpu, 16 cards stood for 16 processes on the CPU, each with all of a model's weights."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 16)
    monkeypatch.setattr(comfy.cli_args.args, "cpu", True)
    assert engine.all_cards() == 2
    assert "At most 8 processes" in str(validated(CogVideoXParallel, cards=16, split="auto", address=""))


class SlowRay:
    """Whose init takes as long as the test says."""

    __file__ = joining.__file__

    def __init__(self) -> None:
        self.answers, self.is_connected = threading.Event(), False

    def init(self, **_: Any) -> None:
        self.answers.wait(20)
        self.is_connected = True

    def shutdown(self) -> None:
        self.is_connected = False


def test_a_cluster_that_answers_too_late_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else may be in it then, and no run could use another Ray."""
    monkeypatch.setattr(joining, "SECONDS", 0.1)
    monkeypatch.setattr(joining, "require_answer", lambda _: None)
    monkeypatch.setattr(joining, "_require_token", lambda *_: None)
    slow = SlowRay()
    with pytest.raises(UserError, match="does not let this process in .no answer in 0.1 seconds"):
        joining.join(slow, ADDRESS, {}, lambda: None)
    with pytest.raises(UserError, match="still tries to reach an address.*Try again then"):
        engine.start("", 0)
    slow.answers.set()
    assert joining._last is not None
    joining._last.join(20)
    assert not slow.is_connected
    joining.require_none_under_way()


@pytest.mark.parametrize("waits_for", ["the probe", "Ray"])
def test_cancel_is_heard_while_a_cluster_is_waited_for(monkeypatch: pytest.MonkeyPatch, waits_for: str) -> None:
    """Whoever sees that the address is wrong waited on, with the whole queue."""
    monkeypatch.setattr(joining, "require_answer", lambda _: None)
    if waits_for == "the probe":
        monkeypatch.setattr(joining, "_PROBE", "import time; time.sleep(60)")
    else:
        monkeypatch.setattr(joining, "_require_token", lambda *_: None)
    slow, began = SlowRay(), time.monotonic()

    def look() -> None:
        slow.answers.set()  # at the same moment
        raise InterruptedError

    with pytest.raises(InterruptedError):
        joining.join(slow, ADDRESS, {}, look)
    assert time.monotonic() - began < 3
    if joining._last is not None:
        joining._last.join(20)
    assert not slow.is_connected
    joining.require_none_under_way()


@pytest.mark.parametrize("address, loopback", [("", "1"), ("", None), (ADDRESS, "0")])
def test_ray_listens_on_this_machine_alone_or_joins(
    allowed: None, ray_runs: Any, monkeypatch: pytest.MonkeyPatch, address: str, loopback: str | None
) -> None:
    """Which of both is decided when it is imported: where clusters are allowed, an own Ray listened on the network."""
    monkeypatch.setattr(ray_runs, "is_initialized", lambda: False)
    monkeypatch.setattr(joining, "join", lambda *_: pytest.fail("the cluster could not answer"))
    monkeypatch.setattr(engine, "_start_own", lambda *_: pytest.fail("it would listen on the network"))
    monkeypatch.delenv(LOOPBACK) if loopback is None else monkeypatch.setenv(LOOPBACK, loopback)
    with pytest.raises(UserError, match="until this program is restarted"):
        engine.start(address, 0)


def test_messages_name_no_node_and_advise_in_a_graph(allowed: None) -> None:
    """dev.py's farm says them as well, which is no ComfyUI and has no nodes."""
    for source in (engine, joining):
        raised = [
            node
            for node in ast.walk(ast.parse(Path(str(source.__file__)).read_text("utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError"
        ]
        assert raised and not [text for text in map(ast.unparse, raised) if re.search("ComfyUI|CogVideoX ", text)]
    with pytest.raises(UserError) as refused:
        engine.check_address("10.0.0.9:1")
    assert refused.value.advice in ADVICE and "10.0.0.9:1 is not called" in refused.value.message


def test_a_restart_may_use_the_other_ray() -> None:
    """A ComfyUI that restarts itself hands its environment on; and Ray's switch for macOS opens it to the network."""
    environ: dict[str, str] = {}
    prepare(environ, is_alone=True)
    assert environ[LOOPBACK] == "0"
    token = environ["RAY_AUTH_TOKEN"]
    prepare(environ, is_alone=False)
    assert LOOPBACK not in environ and environ["RAY_AUTH_TOKEN"] == token
    opened = {LOOPBACK: "1"}
    prepare(opened, is_alone=False)
    assert opened[LOOPBACK] == "1"
    prepare(opened, is_alone=True)
    assert opened[LOOPBACK] == "0"
