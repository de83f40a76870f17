"""How ranks end that nothing uses any more, without Ray."""

import gc
import time
from typing import Any

import pytest

from cogvideox.errors import UserError
from cogvideox.parallel import engine
from cogvideox.parallel import team as module
from cogvideox.parallel.rank_answers import Failure
from cogvideox.parallel.team import Team
from cogvideox.parallel.teams import drop_with


class Ray:
    """Whose actors are names; `stubborn` cannot be killed."""

    def __init__(self, stubborn: str):
        self.stubborn, self.killed = stubborn, []

    def kill(self, actor: str) -> None:
        if actor == self.stubborn:
            raise RuntimeError("connection lost")
        self.killed.append(actor)


class Thing:
    """Something that uses ranks."""


def test_the_others_end_where_one_cannot_be_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each holds a card until it ends."""
    monkeypatch.setattr(engine, "session", lambda: "one")
    team: Any = Team("", 3, "auto")
    team._ray, team._session, team._actors = Ray("b"), "one", ["a", "b", "c"]
    team.stop()
    assert team._ray.killed == ["a", "c"] and not team.is_running
    assert "could not be ended" in caplog.text


def test_ranks_that_were_started_again_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that ends between two prompts sent a whole run to one card, though all ranks had just started."""
    monkeypatch.setattr(engine, "session", lambda: "one")
    monkeypatch.setattr(module, "running_prompt", lambda: "first")
    team: Any = Team("", 2, "auto")

    def begin() -> None:
        team._ray, team._session, team._actors = Ray(""), "one", ["a", "b"]

    monkeypatch.setattr(team, "_start", begin)
    begin()
    monkeypatch.setattr(team, "ask", lambda _: (_ for _ in ()).throw(team._lost(Failure("", "gone", ""))))
    team.start()
    assert team.is_running and team.start_count == 1 and not team.was_lost
    team._lost(Failure("", "gone", ""))
    assert team.was_lost


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_models_are_released_after_one_that_could_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that does it went on nowhere after an error, and no card was free again."""
    dropped: list[str] = []

    def drop(_: Team, name: str) -> None:
        if name == "first":
            raise UserError("One of 2 ranks has stopped.")
        dropped.append(name)

    monkeypatch.setattr(Team, "drop", drop)
    team, things = Team("", 2, "auto"), [Thing(), Thing()]
    for thing, name in zip(things, ("first", "second")):
        drop_with(thing, team, name)
    del thing
    things.clear()
    gc.collect()
    deadline = time.monotonic() + 10
    while not dropped and time.monotonic() < deadline:
        time.sleep(0.01)
    assert dropped == ["second"]
