"""Where ranks are put, with a Ray of the test's own."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.errors import UserError
from cogvideox.parallel import engine, places, team
from cogvideox.parallel.places import CARD, Place, order, reserve, shares


class Group:
    """A placement group, which is ready where no other holds its cards."""

    def __init__(self, ray: "Ray", bundles: list[dict[str, int]]):
        self.ray, self.bundles = ray, bundles
        self.bundle_count = len(bundles)

    def wait(self, timeout_seconds: int) -> bool:
        free = sorted(self.ray.free, reverse=True)
        return all(have >= bundle[CARD] for have, bundle in zip(free, self.bundles, strict=False))


class Ray:
    """cards: of each machine. free: of these, what nobody holds."""

    def __init__(self, cards: list[int], free: list[int]):
        self.cards, self.free, self.removed = cards, free, []
        self.util = SimpleNamespace(placement_group=self._group, remove_placement_group=self.removed.append)

    def _group(self, bundles: list[dict[str, int]], strategy: str) -> Group:
        assert strategy == "STRICT_SPREAD"
        return Group(self, bundles)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {CARD: cards}} for cards in self.cards]

    def available_resources(self) -> dict[str, float]:
        return {CARD: float(sum(self.free))}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_WAIT_S", 0.02)


def test_every_machine_gets_an_equal_share() -> None:
    """The fewest machines first: those send each other the tokens of every attention."""
    assert shares([4, 4], 4) == [1, 2] and shares([4, 4], 8) == [2] and shares([4, 2], 6) == []
    assert reserve(Ray([4, 4], [4, 4]), CARD, 4, "", bool).bundles == [{CARD: 4}]
    assert reserve(Ray([4, 4], [3, 3]), CARD, 4, "", bool).bundles == [{CARD: 2}] * 2
    with pytest.raises(UserError, match="6 ranks cannot be spread evenly.*4, 2 cards"):
        reserve(Ray([4, 2], [4, 2]), CARD, 6, "at a:1", bool)


def test_idle_ranks_make_room() -> None:
    """Those of another split, whose workflow ComfyUI remembers."""
    ray = Ray([2], [0])

    def stop_idle() -> bool:
        ray.free = [2]
        return True

    assert reserve(ray, CARD, 2, "in this machine", stop_idle).bundles == [{CARD: 2}]
    assert len(ray.removed) == 1, "what was not ready would be reserved later, for nobody"


def test_cards_that_others_hold_are_told() -> None:
    """Ray itself would wait for ever, and say nothing."""
    ray = Ray([2, 2], [1, 1])
    with pytest.raises(UserError, match="4 cards are asked for at a:1, and 2 of 4 are free.*set cards to fewer"):
        reserve(ray, CARD, 4, "at a:1", bool)
    assert len(ray.removed) == 1


def test_a_start_that_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whatever reason: a machine that does not answer, a disk that is gone."""
    monkeypatch.setattr(engine, "session", lambda: "one")
    ray = SimpleNamespace(
        wait=lambda calls, **_: ([], calls), get=lambda calls: calls, exceptions=SimpleNamespace(RayError=OSError)
    )
    asked: Any = team.Team("", 2, "auto")
    asked._ray, asked._session, asked._actors, asked._must_answer_by = ray, "one", ["a"], -math.inf
    with pytest.raises(UserError, match="2 cards in this machine have not started within 300 seconds"):
        asked._wait(["a call"])


def test_ranks_of_a_machine_follow_each_other() -> None:
    """And the graph's own card is the first: what is loaded there is counted, and room is made there."""
    found = [Place("b", "0", "x"), Place("a", "10", "y"), Place("a", "9", "z"), Place("b", "1", "w")]
    assert [found[index].card for index in order(found, "a", "")] == ["z", "y", "x", "w"]
    pair = found[:1] + found[3:]
    assert [pair[index].card for index in order(pair, "b", "w")] == ["w", "x"]
    assert [found[index].card for index in order(found, "b", "w")] == ["w", "x", "z", "y"], "the graph's machine first"


@pytest.mark.parametrize("address, what", [("", "Set cards to 0 for all"), ("a:1", "set cards to fewer")])
def test_too_few_cards_are_told(monkeypatch: pytest.MonkeyPatch, address: str, what: str) -> None:
    """0 is refused together with an address."""
    monkeypatch.setattr(engine, "torch_cards", lambda: 2)
    asked: Any = team.Team(address, 4, "auto")
    asked._ray = SimpleNamespace(cluster_resources=lambda: {CARD: 2.0})
    with pytest.raises(UserError, match=f"Cards .*: 2, fewer than the 4 asked for.*{what}"):
        asked._has_cards()
