"""What a team finds wrong before it starts a rank."""

from types import SimpleNamespace

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.parallel import engine
from cogvideox.parallel.team import Team


@pytest.fixture
def one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray as it is on a machine, and on a cluster, with a single card."""
    ray = SimpleNamespace(cluster_resources=lambda: {"GPU": 1.0}, is_initialized=lambda: False)
    monkeypatch.setattr(engine, "start", lambda address, cards: ray)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.parametrize("address, where", [("", "in this machine"), ("10.0.0.1:6379", "at 10.0.0.1:6379")])
def test_more_ranks_than_cards_are_refused(one_card: None, address: str, where: str) -> None:
    """Ray would let the second rank wait for a card for ever."""
    team = Team(address, 2, "auto")
    with pytest.raises(UserError, match=f"There are 1 cards {where}, fewer than the 2 asked for. Set cards to"):
        team.start()
    assert not team.is_running and team.start_count == 0
