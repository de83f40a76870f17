"""The farm itself: asks Ray for a process on each card, shares the clips out, and keeps what comes back."""

import dataclasses
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cogvideox.errors import printable
from cogvideox.parallel import engine
from cogvideox.system.complete_file import only_process

from ..console import say
from ..errors import DevError
from ..run.media import Media, read_media
from ..run.options import Lora
from ..run.remote import FOLDER
from ..run.run_clips import Clip, settle
from ..run.run_graph import build_graph
from ..run.work import look_at, print_result
from ..run_workflow import describe_video
from . import farm_actor
from .farm_hand import Hand, asked_machines
from .farm_plan import Job, Plan
from .farm_queue import Queue

_LOOK_S, _REPORT_S, _STOP_S = 1.0, 10.0, 15.0
_SILENT_S = 600.0  # after which a worker that starts, and says nothing, is not waited for: it may never get a card
_NAMES_ONLY = ("image", "video")  # options that say where a file was; its hash says what it is


def work(plan: Plan, ready: Mapping[str, str], out: TextIO) -> int:
    """Make what is asked for, with a line of JSON on `out` for each clip; returns the exit status.

    ready: the folders comfyui, models and package. Raises: DevError, UserError.
    """
    folder = plan.results.folder
    busy = f"Another farm writes its results into {folder}: wait until it ends, or give another --out."
    with only_process(folder / ".farm.lock", busy):
        return _make_missing(plan, ready, out)


def _make_missing(plan: Plan, ready: Mapping[str, str], out: TextIO) -> int:
    media = read_media(job.request for job in plan.jobs if job.request is not None)
    lines = {job.id: identity(job, media) for job in plan.jobs}
    done = {job.id: record for job in plan.jobs if (record := plan.results.find_done(job.id, lines[job.id]))}
    missing = [job for job in plan.jobs if job.id not in done]
    plan.results.check_free({job.id: lines[job.id] for job in missing}, plan.overwrite)
    for record in done.values():
        print_result(record, out)
    if done:
        say(f"{len(done)} of {len(plan.jobs)} clips are there already")
    if missing:
        failed = _Farm(plan, missing, lines, media, out).run(ready)
        if failed:
            raise DevError(
                f"{failed} of {len(plan.jobs)} clips were not made, for the reasons above; the same command makes what "
                "is missing."
            )
    return 0


def identity(job: Job, media: Mapping[Path, Media]) -> dict[str, Any]:
    """What makes a clip what it is: by this a later run knows whether it is there already."""
    if job.request is None:
        text = json.dumps(job.graph, sort_keys=True)
        inputs = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in job.inputs.items()}
        return {"workflow_sha256": hashlib.sha256(text.encode()).hexdigest(), "inputs": inputs}
    values = {name: value for name, value in job.request.values.items() if name not in _NAMES_ONLY}
    files = {f"{name}_sha256": media[path].sha256 for name in _NAMES_ONLY if (path := job.request.file(name))}
    return json.loads(json.dumps({**values, **files}, default=_as_plain))


def _as_plain(value: Lora) -> list[Any]:
    return list(dataclasses.astuple(value))


class _Farm:
    """One run of the command."""

    def __init__(
        self, plan: Plan, jobs: Sequence[Job], lines: Mapping[str, Any], media: Mapping[Path, Media], out: TextIO
    ):
        self.plan, self.lines, self.media, self.out = plan, lines, media, out
        self.queue, self.count = Queue(jobs, plan.tries), len(jobs)
        self.finished = self.failed = 0
        self.clips: dict[str, Clip] = {}  # that have been given to a server, by id, until they are made or fail
        self.hands: list[Hand] = []
        self.reported_at, self.warned = time.monotonic(), False
        self.heard_at = time.monotonic()  # of a worker that starts, or has started
        self.ray: Any = None

    def run(self, ready: Mapping[str, str]) -> int:
        """Make all clips; returns how many were not made. Raises: DevError, UserError."""
        cards, cpu = (0, None) if self.plan.address else _own_cards()
        if not self.plan.address:
            _count_workers(self.plan, cards, "this machine")
        say(f"Joining Ray at {self.plan.address}" if self.plan.address else "Starting Ray for this machine alone")
        ended_by = signal.getsignal(signal.SIGTERM)
        self.ray = engine.start(self.plan.address, cards)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ended_by)  # Ray's own handler prints a stack and aborts
        try:
            self._hire(ready, cards, cpu)
            while self.finished < self.count:
                self._share_out()
                self._take_answers()
                self._report()
        finally:
            self._end()
        return self.failed

    def _hire(self, ready: Mapping[str, str], cards: int, cpu: bool | None) -> None:
        """A hand for each card, or for each server on a CPU. Raises: DevError."""
        address = self.plan.address
        if address:
            cards = int(self.ray.cluster_resources().get("GPU", 0))
        workers = _count_workers(self.plan, cards, f"the cluster at {address}" if address else "this machine")
        # No more than there is to do: each takes the time and memory of a ComfyUI.
        workers = min(workers, self.count)
        machines = sum(1 for node in self.ray.nodes() if node["Alive"]) if address else 1
        place = {
            **ready,
            "in_cluster": bool(address),
            "cpu": False if cards else cpu,
            "threads": _threads(workers, machines, bool(address)),
            "limit_minutes": self.plan.limit_minutes,
            "fetch": self.plan.fetch,
            "source": self.plan.source,
        }
        # By value: the process cannot import this package before the class has told it where it is.
        self.ray.cloudpickle.register_pickle_by_value(farm_actor)
        kind = self.ray.remote(farm_actor.Actor).options(
            num_gpus=1 if cards else 0,
            num_cpus=0 if cards or not address else 1,
            max_restarts=0,
            max_concurrency=2,  # `make`, and `progress` meanwhile
            scheduling_strategy="SPREAD",
        )
        self.hands = [Hand(number, lambda: kind.remote(place)) for number in range(1, workers + 1)]
        where = "one for each card" if cards else "which compute on the CPU"
        say(f"Clips to make: {self.count}. ComfyUI servers that start, {where}: {workers}")

    def _share_out(self) -> None:
        """Something to do for each hand that has nothing. Raises: DevError where none is left."""
        for hand in self.hands:
            if hand.actor is None and not hand.gave_up:
                hand.start()
                self.heard_at = time.monotonic()
            # Not those without a machine: they may wait for a card for ever.
            others = [other.machine for other in self.hands if other is not hand and other.machine]
            while hand.is_ready and (job := self.queue.take(hand.number, hand.machine, others)) is not None:
                self._give(hand, job)
        if all(hand.gave_up for hand in self.hands):
            reasons = dict.fromkeys(hand.gave_up for hand in self.hands)
            raise DevError(f"No worker is left, and {len(self.queue)} clips are missing: {' '.join(reasons)}")
        for job, reason in self.queue.drop_refused(asked_machines(self.hands, self._is_silent())):
            self._fail(job, reason)

    def _is_silent(self) -> bool:
        """Whether no worker is worth waiting for that has not started yet."""
        return time.monotonic() - self.heard_at > _SILENT_S

    def _give(self, hand: Hand, job: Job) -> None:
        try:
            if job.request is None:
                inputs = {name: path.read_bytes() for name, path in job.inputs.items()}
                hand.make(job, dict(job.graph), inputs)
                return
            clip = settle(job.request, self.media, hand.lists)
        except DevError as error:  # it has other models than the line names
            self.queue.refuse(job, hand.machine, str(error))
            return
        except OSError as error:
            self._fail(job, f"an input cannot be read: {error}")
            return
        self.clips[job.id] = clip
        file = clip.image or clip.video
        name = f"{FOLDER}/{file.name}" if file else ""
        hand.make(job, build_graph(clip, name, f"{FOLDER}/{job.id}"), {name: file.data} if file else {})

    def _take_answers(self) -> None:
        calls = {hand.call: hand for hand in self.hands if hand.call is not None}
        if not calls:
            time.sleep(_LOOK_S)
            return
        for call in self.ray.wait(list(calls), num_returns=1, timeout=_LOOK_S)[0]:
            hand = calls[call]
            try:
                answer = self.ray.get(call)
            except self.ray.exceptions.RayError as error:
                self._lost(hand, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
                continue
            job = hand.settle(answer)
            if job is not None:
                self._take(hand, job, answer)
            elif hand.gave_up:
                say(f"worker {hand.number} cannot start: {hand.gave_up}")
            else:
                ids = f"supervised by process {answer['supervisor']}"
                self.heard_at = time.monotonic()
                say(f"worker {hand.number} is ready on {hand.machine}: ComfyUI is process {answer['process']}, {ids}")
                self._compare_versions()

    def _take(self, hand: Hand, job: Job, answer: dict[str, Any]) -> None:
        if "lost" in answer:
            self._again(hand, job, answer["lost"])
        elif "broken" in answer:
            self.queue.return_unbegun(job)
            self.ray.kill(hand.actor)
            self._lost(hand, answer["broken"])
        elif "refused" in answer:
            self.queue.refuse(job, hand.machine, answer["refused"])
        elif "error" in answer:
            self._fail(job, answer["error"])
        elif problem := self._problem(job, answer["files"]):
            self._fail(job, problem)
        else:
            record = {"seconds": answer["seconds"], "machine": hand.machine, "tries": self.queue.begun(job)}
            clip = self.clips.pop(job.id, None)
            settings = {"settings": clip.settings} if clip is not None else {}
            whole = {**record, "line": self.lines[job.id], **settings}
            print_result(self.plan.results.write(job.id, answer["files"], whole), self.out)
            self.finished, hand.losses = self.finished + 1, 0
            say(f"{self.finished} of {self.count}: {job.id} in {answer['seconds']:g} s, worker {hand.number}")

    def _problem(self, job: Job, files: Sequence[tuple[str, bytes]]) -> str:
        """What is wrong with the video of a clip; "" where nothing is, or a workflow may make anything."""
        clip = self.clips.get(job.id)
        if clip is None:
            return ""
        found = look_at(files[0][1])
        if found is not None and found.frames == clip.settings["frames"]:
            return ""
        return f"the server made {describe_video(found) if found else 'no video that can be read'}"

    def _lost(self, hand: Hand, reason: str) -> None:
        """A process has ended, or its machine is gone."""
        job = hand.lose(reason)
        say(f"worker {hand.number} was lost ({reason}); {'it is given up' if hand.gave_up else 'another one starts'}")
        if job is not None:
            self._again(hand, job, reason)

    def _again(self, hand: Hand, job: Job, reason: str) -> None:
        hand.losses += 1
        if hand.losses > self.plan.tries and not hand.gave_up:
            hand.gave_up = f"it has lost {hand.losses} clips in a row, the last one so: {reason}"
            hand.machine = ""
            if hand.actor is not None:
                self.ray.kill(hand.actor)
            say(f"worker {hand.number} is given up: {hand.gave_up}")
        if self.queue.put_back(job, hand.number):
            say(f"{job.id} is begun again, since worker {hand.number} lost it: {reason}")
        else:
            self._fail(job, f"begun {self.plan.tries} times, and each time its ComfyUI was lost: {reason}")

    def _fail(self, job: Job, reason: str) -> None:
        self.clips.pop(job.id, None)
        self.finished += 1
        self.failed += 1
        say(f"{self.finished} of {self.count}: {job.id} was not made: {reason}")
        print_result({"id": job.id, "source": job.source, "error": printable(reason)}, self.out)

    def _compare_versions(self) -> None:
        versions = [hand.versions for hand in self.hands if hand.versions]
        differing = [name for name in versions[0] if len({each.get(name) for each in versions}) > 1]
        if differing and not self.warned:
            self.warned = True
            say(f"The machines differ in the version of {', '.join(differing)}: their videos may differ as well")

    def _report(self) -> None:
        """What the hands do, every now and then."""
        if time.monotonic() - self.reported_at < _REPORT_S:
            return
        self.reported_at = time.monotonic()
        asked = {hand.actor.call.remote("progress"): hand for hand in self.hands if hand.call is not None}
        answered = self.ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_S)[0] if asked else []
        if any(hand.is_starting for call, hand in asked.items() if call in answered):
            self.heard_at = time.monotonic()
        for call, hand in asked.items():
            try:
                doing = self.ray.get(call) if call in answered else "waits for a free card, or does not answer"
            except self.ray.exceptions.RayError:  # it was lost, which its own call will tell
                continue
            say(f"  ... worker {hand.number}: {f'{hand.job.id}, ' if hand.job else ''}{doing}")

    def _end(self) -> None:
        """End all servers, and Ray's processes of this run."""
        try:
            ends = [hand.actor.call.remote("stop") for hand in self.hands if hand.machine]
            if ends:
                self.ray.wait(ends, num_returns=len(ends), timeout=_STOP_S)
        finally:
            engine.shut_down()


def _own_cards() -> tuple[int, bool | None]:
    """This machine's cards as Ray counts them, and whether a server without one computes on the CPU."""
    import torch

    return torch.cuda.device_count(), not (torch.backends.mps.is_available() or torch.xpu.is_available())


def _count_workers(plan: Plan, cards: int, where: str) -> int:
    """Raises: DevError where there are fewer cards than asked for, or none and no number."""
    if not cards and not plan.workers:
        raise DevError(
            f"There is no card in {where}: give --workers N for N servers that compute on a CPU, which takes hours for "
            "a checkpoint of full size."
        )
    if cards and plan.workers > cards:
        raise DevError(f"--workers is {plan.workers}, and {where} has {cards} cards: give that many or fewer.")
    return plan.workers or cards


def _threads(workers: int, machines: int, in_cluster: bool) -> int:
    """Of each server on the CPU: all cores of a machine together."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    if own.isdecimal() and int(own) and not in_cluster:
        return int(own)
    return max(1, (os.cpu_count() or 1) * machines // workers)
