"""Ray actors that act as one: what every rank has to do is asked of all of them, and if one fails, all end."""

import logging
import math
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import psutil
import torch

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..host.messages import running_prompt, shown_meanwhile
from . import engine
from .actors import meeting_folder, new_actors
from .fingerprint import versions
from .places import CARD, CORE, Place, order, own_card, reserve
from .rank_answers import MEMORY, USER, Answer, Failure
from .split import choose_split

_ENDED = "another program in this ComfyUI has ended Ray"
_LOOK_SECONDS = 0.1  # between two looks at Cancel while ranks compute
_START_SECONDS = 300  # for all that ranks do before they load a model: imports, from a slow disk too, and their meeting
_IDLE_SECONDS = 30.0  # for which ranks stay that no model uses
_ENDING_SECONDS = 10  # within which the processes of lost ranks have ended
_teams: "weakref.WeakSet[Team]" = weakref.WeakSet()


class RankLostError(UserError):
    """A rank has died, or could not go on: all of them have been ended."""


class RankMemoryError(RankLostError):
    """A rank's card has no memory left."""


class Team:
    """Ranks on the cards of this machine or of a cluster.

    They start with the first use, and start again after one of them has been lost. `lock` is for who asks several
    things in a row.

    shares_card: whether the first rank is on the card of this process.
    """

    def __init__(self, address: str, cards: int, split: str):
        """address: of a Ray cluster; "" for this machine. cards: the number of ranks. split: of split.SPLITS."""
        self.address, self.cards, self.split_name = address, cards, split
        self.split = choose_split(split, cards, machines=1)  # what is wrong shows before anything starts
        self.start_count = 0
        self._ray: Any = None
        self._session = ""  # of Ray, in which the actors are
        self._actors: list[Any] = []
        self._pending: list[Any] = []  # answers of a call that was cancelled
        self._models: set[str] = set()  # that use the ranks
        self._lost_in: str | None = None  # the prompt that has lost ranks last
        self._unused_since = 0.0
        self._meeting = ExitStack()  # deletes the folder of the file where the ranks have met
        weakref.finalize(self, self._meeting.close)  # with ComfyUI as well
        self._here = 0  # ranks of this machine, which are the first ones
        self._processes: list[psutil.Process] = []  # theirs
        self._places: Any = None  # what Ray has reserved for the ranks
        self._must_answer_by = math.inf
        self.shares_card = not address
        self.lock = threading.RLock()
        _teams.add(self)

    @property
    def is_running(self) -> bool:
        return bool(self._actors) and self._session == engine.session()

    @property
    def is_busy(self) -> bool:
        """Whether ranks still compute what was cancelled, for which the next question would wait."""
        pending = list(self._pending)
        if not pending or not self.is_running:
            return False
        return len(self._ray.wait(pending, num_returns=len(pending), timeout=0)[0]) < len(pending)

    def start(self) -> None:
        """Raises UserError where there are fewer cards than ranks, or the ranks' machines do not fit together."""
        if self._has_all():
            return
        self.stop()
        with shown_meanwhile(
            f"Starting the processes of CogVideoX Parallel ({self.cards}), which takes as long as the start of "
            "ComfyUI. They stay for the next runs."
        ):
            self._start()
        self.start_count += 1
        self._lost_in = None  # the prompt has ranks again

    def _start(self) -> None:
        self._ray = engine.start(self.address, engine.torch_cards(), throw_if_interrupted)
        self._session = engine.session()
        on_cards = self._has_cards()
        try:
            if on_cards or self.address:
                kind = CARD if on_cards else CORE
                self._places = reserve(self._ray, kind, self.cards, engine.where(self.address), self._stop_idle)
            self._actors = new_actors(self._ray, self.cards, on_cards, self.address, self._places)
            self._must_answer_by = time.monotonic() + _START_SECONDS
            machines = self._order_by_machine()
            self._require_same(versions(), self.ask("versions"))
            self.split = choose_split(self.split_name, self.cards, machines)
            self._join(machines)
            self._processes = [psutil.Process(rank) for rank in self.ask("process")[: self._here]]
        except BaseException:
            self.stop()
            raise
        finally:
            self._must_answer_by = math.inf

    def _has_all(self) -> bool:
        """Whether all ranks answer: the next step would lose a run to one that has ended since the last run."""
        if not self.is_running:
            return False
        try:
            self.ask("process")
        except RankLostError as error:
            logging.warning(f"{error.message} They start again now.")
            return False
        return True

    def _has_cards(self) -> bool:
        if not self.address and not engine.torch_cards():
            return False  # there are none, or they are not to be used
        found = int(self._ray.cluster_resources().get("GPU", 0))
        if not found and not torch.cuda.is_available():
            return False
        engine.require_cards(self.cards, found, self.address)
        return True

    def _stop_idle(self) -> bool:
        """End the ranks of other teams that nobody asks anything at the moment, such as those of a workflow that ran
        before: ComfyUI keeps its results. They start again at their next use. Returns whether there were any."""
        stopped = False
        for team in list(_teams):
            if team is self or not team.is_running or not team.lock.acquire(blocking=False):
                continue
            try:
                logging.info("The processes of another CogVideoX Parallel end, for their cards are needed.")
                team.stop()
                stopped = True
            finally:
                team.lock.release()
        return stopped

    def _order_by_machine(self) -> int:
        """Give the ranks the numbers that their places ask for. Returns how many machines there are."""
        places, here, card = [Place(*place) for place in self.ask("place")], engine.machine(), own_card()
        numbers = order(places, here, card)
        self._actors = [self._actors[number] for number in numbers]
        self._here = sum(place.machine == here for place in places)
        self.shares_card = self._here > 0 and places[numbers[0]].card == card
        return len({place.machine for place in places})

    def _join(self, machines: int) -> None:
        ways = tuple({self.split, self.split.used_for(1)})
        if machines == 1:
            # A file and no port: torch's own meeting place listens on all of the machine's addresses.
            meeting = str(self._meeting.enter_context(meeting_folder()) / "ranks")
        else:
            meeting = self._take(self._wait([self._actors[0].call.remote("meeting")]))[0]
        calls = [
            actor.call.remote("join", number, self.cards, meeting, ways) for number, actor in enumerate(self._actors)
        ]
        self._take(self._wait(calls))

    def _require_same(self, own: dict[str, str], found: Sequence[dict[str, str]]) -> None:
        """own: versions of this process, whose sampler and VAE go with what the ranks compute."""
        for name in own:
            values = list(dict.fromkeys(each[name] for each in found))
            if len(values) > 1:
                raise UserError(
                    f"The machines differ in the version of {name} ({', '.join(values)}), and would compute different "
                    "videos. Install the same everywhere."
                )
            if values != [own[name]]:
                raise UserError(
                    f"The processes of the other cards have another version of {name} ({values[0]}) than this ComfyUI "
                    f"({own[name]}). Restart ComfyUI if {name} has been updated since its start; on several machines, "
                    "install the same everywhere."
                )

    def ask(
        self,
        method: str,
        *arguments: Any,
        notify: Callable[[str], object] = logging.warning,
        may_cancel: bool = True,
    ) -> list[Any]:
        """The answers of all ranks to the same question. notify: gets sentences for the user. may_cancel: False for
        what ComfyUI asks between two runs, where its mark of a Cancel that nothing has heeded yet ends nothing.

        Raises UserError for what a rank found wrong; RankLostError where one has died or could not go on, after all of
        them have been ended; and ComfyUI's exception of Cancel, after which the ranks finish what they compute.
        """
        with self.lock:
            answers = self._wait(self._call(method, arguments), may_cancel)
            for sentence in dict.fromkeys(sentence for answer in answers for sentence in answer.said):
                notify(sentence)
            return self._take(answers)

    def tell(self, method: str, *arguments: Any) -> None:
        """The same without waiting: what goes wrong shows in the next answer."""
        with self.lock:
            self._pending += self._call(method, arguments)

    def _call(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """What will be the answers. Raises RankLostError where the ranks' Ray has ended, with them."""
        if not self.is_running:
            raise self._lost(Failure("", _ENDED, ""))
        try:
            # Into shared memory once, for all ranks of a machine.
            shared = [self._ray.put(argument) if _is_large(argument) else argument for argument in arguments]
            return [actor.call.remote(method, *shared) for actor in self._actors]
        except Exception as error:  # Ray has several, for one that ends at this moment
            raise self._lost(Failure("", f"{type(error).__name__}: {error}", "")) from error

    def _wait(self, calls: list[Any], may_cancel: bool = True) -> list[Answer]:
        ray, waiting = self._ray, [*self._pending, *calls]
        try:
            while waiting:
                if time.monotonic() > self._must_answer_by:
                    raise UserError(
                        f"The processes for {self.cards} cards {engine.where(self.address)} have not started within "
                        f"{_START_SECONDS} seconds. See Ray's log there (session_latest/logs in "
                        "/tmp/ray, or in the folder that RAY_TMPDIR names), and queue the workflow again."
                    )
                if not self.is_running:
                    raise self._lost(Failure("", _ENDED, ""))
                done, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK_SECONDS)
                for answer in ray.get(done):  # an actor that has died raises, whatever the others wait for
                    if answer.failure is not None and answer.failure.kind != USER:
                        raise self._lost(answer.failure)
                if may_cancel:
                    throw_if_interrupted()
            self._pending = []
            return ray.get(calls)
        except ray.exceptions.RayError as error:
            raise self._lost(
                Failure("", f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", "")
            ) from error
        except UserError:
            raise
        except BaseException:  # Cancel
            self._pending = waiting
            raise

    def _take(self, answers: list[Answer]) -> list[Any]:
        for answer in answers:
            if answer.failure is not None:
                raise UserError(answer.failure.text)
        return [answer.value for answer in answers]

    @property
    def was_lost(self) -> bool:
        """Whether the prompt that runs has lost its ranks: their card may be broken. A script has no prompts."""
        return self._lost_in is not None and self._lost_in == running_prompt()

    def _lost(self, failure: Failure) -> RankLostError:
        self._lost_in = running_prompt()
        self.stop()  # the others may wait for it, and would for ever
        if failure.trace:
            logging.error(failure.trace)
        if failure.kind == MEMORY:
            return RankMemoryError(
                f"One of {self.cards} cards has no memory left: {failure.text} The processes of the other cards have "
                "been ended with it.",
                advice="less memory on each card",
            )
        return RankLostError(
            f"One of the {self.cards} processes that compute together has ended ({failure.text}), and the others with "
            "it.",
            advice="run again or on one card",
        )

    def add(self) -> str:
        """A name for a model that uses the ranks until it is dropped."""
        name = uuid.uuid4().hex
        self._models.add(name)
        return name

    def drop(self, name: str) -> None:
        """A model is gone. A while after the last one the ranks go: a setting that was changed makes another model."""
        with self.lock:
            self._models.discard(name)
            if self.is_running:
                self.tell("forget", name)
            if not self._models:
                self._unused_since = time.monotonic()
                ending = threading.Timer(_IDLE_SECONDS, self._stop_unused)
                ending.daemon = True
                ending.start()

    def _stop_unused(self) -> None:
        with self.lock:
            if not self._models and time.monotonic() - self._unused_since >= _IDLE_SECONDS:
                self.stop()

    def stop(self) -> None:
        """End all ranks at once, whatever they do."""
        alive = self._actors if self.is_running else []  # those of an earlier Ray have ended with it
        self._actors, self._pending = [], []
        for actor in alive:
            self._end(self._ray.kill, actor)
        if self._places is not None and self._session == engine.session():
            self._end(self._ray.util.remove_placement_group, self._places)
        self._places = None
        self._meeting.close()

    def wait_until_gone(self) -> None:
        """After ranks were lost, wait until those of this machine have left its cards: Ray ends them without waiting.
        Takes no longer than some seconds. Raises ComfyUI's exception of Cancel."""
        deadline, alive = time.monotonic() + _ENDING_SECONDS, self._processes
        while alive and time.monotonic() < deadline:
            _, alive = psutil.wait_procs(alive, timeout=_LOOK_SECONDS)
            throw_if_interrupted()

    def _end(self, end: Callable[[Any], object], what: Any) -> None:
        try:
            end(what)
        except Exception:  # the others have to end as well
            logging.exception("A process of another card could not be ended.")


def _is_large(argument: Any) -> bool:
    return not isinstance(argument, str | int | float | None)
