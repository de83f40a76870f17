"""One Ray actor as the farm sees it: what it does at the moment, and which machine it is on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .farm_plan import Job

_MOST_STARTS = 3  # in a row, without an answer


@dataclass
class Hand:
    """number: counts from 1. new_actor: asks Ray for a process.

    call: the answer that it owes. machine, lists, versions: what `start` has answered. job: what it makes. losses:
    clips that it has lost in a row. gave_up: why it is not started again; "" as long as it is.
    """

    number: int
    new_actor: Callable[[], Any]
    actor: Any = None
    call: Any = None
    machine: str = ""
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    job: Job | None = None
    gave_up: str = ""
    losses: int = 0
    _starts: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether it waits for a clip."""
        return bool(self.machine) and self.call is None

    @property
    def is_starting(self) -> bool:
        return self.call is not None and not self.machine

    def start(self) -> None:
        """Ask for a process and a server."""
        self._starts += 1
        self.actor = self.new_actor()
        self.call = self.actor.call.remote("start")

    def make(self, job: Job, graph: dict, inputs: Mapping[str, bytes]) -> None:
        """Give it a clip."""
        self.job = job
        self.call = self.actor.call.remote("make", graph, inputs)

    def settle(self, answer: dict[str, Any]) -> Job | None:
        """Note an answer; the clip that it is about, or None for the one of `start`."""
        self.call = None
        job, self.job = self.job, None
        if job is None and "error" in answer:
            self.gave_up = answer["error"]
        elif job is None:
            self._starts = 0
            self.machine, self.lists, self.versions = answer["machine"], answer["lists"], answer["versions"]
        return job

    def lose(self, reason: str) -> Job | None:
        """Its process has ended; the clip that it had."""
        job, self.job = self.job, None
        self.actor = self.call = None
        self.machine = ""
        if self._starts >= _MOST_STARTS:
            self.gave_up = reason
        return job


def asked_machines(hands: Sequence[Hand], is_silent: bool) -> set[str]:
    """The machines that a clip can still go to; a clip that all of them have refused is made nowhere. Empty as long as
    others may come.

    is_silent: nothing has been heard for long of those that start: the machines that are there count alone.
    """
    others_start = any(hand.is_starting for hand in hands)
    return set() if others_start and not is_silent else {hand.machine for hand in hands if hand.machine}
