"""Ray actors that act as one: what every rank has to do is asked of all of them, and if one fails, all end."""

import logging
import os
import socket
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..host.standalone import comfyui_folder, plain_options
from . import engine, worker
from .rank_answers import MEMORY, USER, Answer, Failure
from .split import choose_split

_LOOK_SECONDS = 0.1  # between two looks at Cancel while ranks compute
_ENDING_SECONDS = 10  # within which the processes of lost ranks have ended
_PACKAGE = Path(__file__).resolve().parent.parent
_NAME = __name__.removesuffix(".parallel.team")  # of the package: ComfyUI may have loaded it by its path


class RankLostError(UserError):
    """A rank has died, or could not go on: all of them have been ended."""


class RankMemoryError(RankLostError):
    """A rank's card has no memory left."""


class Team:
    """Ranks on the cards of this machine or of a cluster.

    They start with the first use, and start again after one of them has been lost. `lock` is for who asks several
    things in a row.
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
        self._meeting: Path | None = None
        self._processes: list[psutil.Process] = []  # of the ranks of this machine
        self.lock = threading.RLock()

    @property
    def is_running(self) -> bool:
        return bool(self._actors) and self._session == engine.session()

    def start(self) -> None:
        """Raises UserError where there are fewer cards than ranks, or the ranks' machines do not fit together."""
        if self.is_running:
            return
        self.stop()
        self._ray = engine.start(self.address, torch.cuda.device_count())
        self._session = engine.session()
        on_cards = self._has_cards()
        self._actors = [self._new_actor(on_cards) for _ in range(self.cards)]
        try:
            machines = self._order_by_machine()
            self._require_same(self.ask("versions"))
            self.split = choose_split(self.split_name, self.cards, machines)
            self._join(machines)
            self._processes = [] if self.address else list(map(psutil.Process, self.ask("process")))
        except BaseException:
            self.stop()
            raise
        self.start_count += 1

    def _has_cards(self) -> bool:
        found = int(self._ray.cluster_resources().get("GPU", 0))
        if not found and not torch.cuda.is_available():
            return False
        if found < self.cards:
            where = f"at {self.address}" if self.address else "in this machine"
            raise UserError(
                f"There are {found} cards {where}, fewer than the {self.cards} asked for. Set cards to 0 for all."
            )
        return True

    def _new_actor(self, on_cards: bool) -> Any:
        # By value: the process cannot import this package before the class has told it where it is.
        self._ray.cloudpickle.register_pickle_by_value(worker)
        threads = max(1, (os.cpu_count() or 1) // self.cards)
        variables = {"OMP_NUM_THREADS": str(threads), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if not self.address:
            # The exchange stays in the machine as well.
            variables |= {"GLOO_SOCKET_IFNAME": _loopback(), "NCCL_SOCKET_IFNAME": _loopback()}
        actor = self._ray.remote(worker.Worker).options(
            num_cpus=1 if self.address and not on_cards else 0,
            num_gpus=1 if on_cards else 0,
            max_restarts=0,
            runtime_env={"env_vars": variables},
        )
        return actor.remote(_NAME, str(_PACKAGE), str(comfyui_folder()), plain_options())

    def _order_by_machine(self) -> int:
        """Ranks of one machine get numbers that follow each other: those share the tokens. Returns how many machines
        there are."""
        places = self.ask("machine")
        self._actors = [actor for _, actor in sorted(zip(places, self._actors), key=lambda pair: pair[0])]
        counts = Counter(places)
        if len(counts) > 1 and len(set(counts.values())) > 1:
            raise UserError(
                f"The ranks are not evenly spread over the machines ({', '.join(map(str, counts.values()))} on "
                "each). Set cards to a number that every machine has its share of."
            )
        return len(counts)

    def _join(self, machines: int) -> None:
        ways = tuple({self.split, self.split.used_for(1)})
        if machines == 1:
            # A file and no port: torch's own meeting place listens on all of the machine's addresses.
            self._meeting = Path(tempfile.mkdtemp(prefix="cogvideox_")) / "ranks"
            meeting = self._meeting.as_uri()
        else:
            meeting = self._take(self._wait([self._actors[0].call.remote("meeting")]))[0]
        calls = [
            actor.call.remote("join", number, self.cards, meeting, ways) for number, actor in enumerate(self._actors)
        ]
        self._take(self._wait(calls))

    def _require_same(self, found: Sequence[dict[str, str]]) -> None:
        for name in found[0]:
            values = list(dict.fromkeys(each[name] for each in found))
            if len(values) > 1:
                raise UserError(
                    f"The machines differ in the version of {name} ({', '.join(values)}), and would compute different "
                    "videos. Install the same everywhere."
                )

    def ask(self, method: str, *arguments: Any, notify: Callable[[str], object] = logging.warning) -> list[Any]:
        """The answers of all ranks to the same question. notify: gets sentences for the user.

        Raises UserError for what a rank found wrong; RankLostError where one has died or could not go on, after all of
        them have been ended; and ComfyUI's exception of Cancel, after which the ranks finish what they compute.
        """
        with self.lock:
            # Into shared memory once, for all ranks of a machine.
            shared = [self._ray.put(argument) if _is_large(argument) else argument for argument in arguments]
            answers = self._wait([actor.call.remote(method, *shared) for actor in self._actors])
            for sentence in dict.fromkeys(sentence for answer in answers for sentence in answer.said):
                notify(sentence)
            return self._take(answers)

    def tell(self, method: str, *arguments: Any) -> None:
        """The same without waiting: what goes wrong shows in the next answer."""
        with self.lock:
            self._pending += [actor.call.remote(method, *arguments) for actor in self._actors]

    def _wait(self, calls: list[Any]) -> list[Answer]:
        ray, waiting = self._ray, [*self._pending, *calls]
        try:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=1, timeout=_LOOK_SECONDS)
                for answer in ray.get(done):  # an actor that has died raises, whatever the others wait for
                    if answer.failure is not None and answer.failure.kind != USER:
                        raise self._lost(answer.failure)
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

    def _lost(self, failure: Failure) -> RankLostError:
        self.stop()  # the others may wait for it, and would for ever
        if failure.trace:
            logging.error(failure.trace)
        if failure.kind == MEMORY:
            return RankMemoryError(
                f"One of {self.cards} cards has no memory left: {failure.text} The ranks on the other cards have been "
                "ended with it. The next run starts them again: make the video smaller or shorter, or add cards."
            )
        return RankLostError(
            f"One of {self.cards} ranks has stopped ({failure.text}), and the others with it. Queue the workflow "
            "again, and all of them start. Bypass CogVideoX Parallel to run on one card."
        )

    def add(self) -> str:
        """A name for a model that uses the ranks until it is dropped."""
        name = uuid.uuid4().hex
        self._models.add(name)
        return name

    def drop(self, name: str) -> None:
        """A model is gone; with the last one the ranks go."""
        with self.lock:
            self._models.discard(name)
            if not self._models:
                self.stop()
            elif self.is_running:
                self.tell("forget", name)

    def stop(self) -> None:
        """End all ranks at once, whatever they do."""
        alive = self._actors if self.is_running else []  # those of an earlier Ray have ended with it
        self._actors, self._pending = [], []
        for actor in alive:
            self._ray.kill(actor)
        if self._meeting is not None:
            for file in (self._meeting, *self._meeting.parent.iterdir()):
                file.unlink(missing_ok=True)
            self._meeting.parent.rmdir()
            self._meeting = None

    def wait_until_gone(self) -> None:
        """After ranks were lost, wait until those of this machine have left its cards: Ray ends them without waiting.
        Raises nothing, and takes no longer than some seconds."""
        psutil.wait_procs(self._processes, timeout=_ENDING_SECONDS)


def _is_large(argument: Any) -> bool:
    return not isinstance(argument, str | int | float | None)


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
