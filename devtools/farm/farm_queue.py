"""Which clip is next, which was refused where, and which was begun often enough. Nothing here knows Ray."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from .farm_plan import Job


class Queue:
    """The clips that wait. Those whose machine was lost come first, so that they do not wait for all others again."""

    def __init__(self, jobs: Iterable[Job], tries: int):
        """tries: how often a clip is begun at most."""
        self._waiting, self._most = deque(jobs), tries
        self._begun: Counter[str] = Counter()  # by id
        self._lost_by: dict[str, int] = {}  # id -> the worker that lost it last
        self._refusals: dict[str, dict[str, str]] = {}  # id -> machine -> its reason

    def __len__(self) -> int:
        return len(self._waiting)

    def begun(self, job: Job) -> int:
        """How often it has been given out."""
        return self._begun[job.id]

    def take(self, worker: int, machine: str, others: Sequence[str] = ()) -> Job | None:
        """The next clip for a worker on a machine; None where the machine has refused all that wait.

        One that this worker has lost is for another one, whose card may be sound, unless it would be refused there.
        others: the machine of each other worker that has one.
        """
        for job in self._waiting:
            refused = self._refusals.get(job.id, {})
            is_others = self._lost_by.get(job.id) == worker and any(other not in refused for other in others)
            if not is_others and machine not in refused:
                self._waiting.remove(job)
                self._begun[job.id] += 1
                return job
        return None

    def put_back(self, job: Job, worker: int) -> bool:
        """A clip whose worker was lost; False where it was begun often enough, and does not wait any more."""
        if self._begun[job.id] >= self._most:
            return False
        self._lost_by[job.id] = worker
        self._waiting.appendleft(job)
        return True

    def return_unbegun(self, job: Job) -> None:
        """A clip whose worker had no server for it: that is no try of the clip."""
        self._begun[job.id] -= 1
        self._waiting.appendleft(job)

    def refuse(self, job: Job, machine: str, reason: str) -> None:
        """A clip that a machine cannot make, because of its models or nodes: others may. It counts as not begun."""
        self._begun[job.id] -= 1
        self._refusals.setdefault(job.id, {})[machine] = reason
        self._waiting.append(job)

    def drop_refused(self, machines: Iterable[str]) -> list[tuple[Job, str]]:
        """The clips that every one of `machines` has refused, each with the last reason: they wait no longer. None
        without a machine."""
        wanted = set(machines)
        dropped = [job for job in self._waiting if wanted and wanted <= self._refusals.get(job.id, {}).keys()]
        for job in dropped:
            self._waiting.remove(job)
        return [(job, list(self._refusals[job.id].values())[-1]) for job in dropped]
