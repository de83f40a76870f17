"""The teams of this process: one for each way to divide cards, as long as something uses it."""

import logging
import queue
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..host.messages import shown_meanwhile
from .team import Team

_teams: dict[tuple[str, int, str], Team] = {}  # by (address, cards, split)
_gone: "queue.SimpleQueue[tuple[Team, str]]" = queue.SimpleQueue()
_lock = threading.Lock()
_WATCHER = "cogvideox ranks"


def team_of(address: str, cards: int, split: str) -> Team:
    """The team of so many cards, which nobody has started yet where it is new. See Team."""
    with _lock:
        key = address, cards, split
        if key not in _teams:
            _teams[key] = Team(address, cards, split)
        return _teams[key]


def drop_with(thing: object, team: Team, name: str) -> None:
    """Have the ranks of `team` release what they have under `name` when `thing` is gone.

    A finalizer runs at any moment, in the middle of Ray's own code too: it only leaves a note, which a thread reads.
    """
    weakref.finalize(thing, _gone.put, (team, name)).atexit = False
    if not any(thread.name == _WATCHER for thread in threading.enumerate()):
        threading.Thread(target=_read_gone, name=_WATCHER, daemon=True).start()


def _read_gone() -> None:
    while True:
        team, name = _gone.get()
        try:
            team.drop(name)
        except Exception:  # the next one has to be released as well
            logging.exception("The processes of other cards were not told that nothing uses a model any more.")


def load_everywhere(
    team: Team, component: str, method: str, name: str, path: Path, *options: Any, notify: Callable[[str], object]
) -> None:
    """Have every rank load the `component` at `path` by its `method`. Raises UserError where the machines have other
    weights there, and as Team.ask does."""
    with shown_meanwhile("Loading the weights in each card's process."):
        prints = team.ask("fingerprint", str(path), component)
        if len(set(prints)) > 1:
            raise UserError(
                f"The weights at {path} are not the same on every machine. Copy them from one machine to the others."
            )
        team.ask(method, name, str(path), *options, notify=notify)
