"""What the farm does with answers, and whom it waits for, with servers and a Ray that are told what to say."""

import io
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.devtools import client
from cogvideox.devtools.errors import DevError
from cogvideox.devtools.farm import farm_server, farm_work
from cogvideox.devtools.farm.farm_hand import Hand
from cogvideox.devtools.farm.farm_plan import Job
from cogvideox.devtools.farm.farm_server import FarmServer, Place
from cogvideox.devtools.farm.farm_work import _SILENT_S, _Farm
from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads.repositories import HUGGING_FACE
from cogvideox.system.complete_file import only_process
from cogvideox.tests.children import running
from cogvideox.tests.file_server import BIG, running_hub

OUT_OF_MEMORY = [
    ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("torch.cuda.OutOfMemoryError", "Allocation on device"),
    ("cogvideox.host.compat.NoMemoryLeftError", "The card has no memory left."),
    ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


def hold(lock: Path, held: Path) -> None:
    """In a process of its own: a farm that works."""
    with only_process(lock, "busy"):
        held.touch()
        time.sleep(60)


class Remote:
    """A Ray actor, which is asked and answers nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.call = SimpleNamespace(remote=self._remote)

    def _remote(self, method: str, *_: Any) -> str:
        self.asked.append(method)
        return f"{method} {id(self)}"


class Farmland:
    """A farm of some workers whose Ray answers `progress` of those in `talking`."""

    def __init__(self, count: int):
        self.out, self.talking = io.StringIO(), set[int]()
        plan: Any = SimpleNamespace(tries=2, results=SimpleNamespace(write=lambda name, files, record: {"id": name}))
        job = Job("dog", "line 1", None, {"save": {}})
        self.farm = _Farm(plan, [job], {"dog": {}}, {}, self.out)
        self.farm.hands = [Hand(number, Remote) for number in range(1, count + 1)]
        self.farm.ray = SimpleNamespace(
            wait=self._wait, get=lambda call: "looks for ComfyUI", exceptions=SimpleNamespace(RayError=RuntimeError)
        )
        self.farm._share_out()

    def _wait(self, calls: list[str], **_: Any) -> tuple[list[str], list[str]]:
        of = {f"progress {id(hand.actor)}": hand.number for hand in self.farm.hands}
        return [call for call in calls if of[call] in self.talking], []

    def begin(self, number: int, machine: str) -> Hand:
        """A worker is ready."""
        hand = self.farm.hands[number - 1]
        assert hand.settle({"machine": machine, "lists": {}, "versions": {}}) is None
        return hand

    def answer(self, hand: Hand, answer: dict[str, Any]) -> None:
        job = hand.settle(answer)
        assert job is not None
        self.farm._take(hand, job, answer)

    def later(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        now = time.monotonic() + seconds
        monkeypatch.setattr(farm_work, "time", SimpleNamespace(monotonic=lambda: now))

    def errors(self) -> list[str]:
        return [json.loads(line)["error"] for line in self.out.getvalue().splitlines()]


def test_a_refused_clip_waits_for_others_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster with fewer free cards than workers leaves one of them without a card for ever."""
    land = Farmland(2)
    hand = land.begin(1, "small")
    land.farm._share_out()
    land.answer(hand, {"refused": "no memory left"})
    land.farm._share_out()
    assert hand.job is None and land.errors() == [], "the second machine may come yet"
    land.later(monkeypatch, _SILENT_S + 1)
    land.farm._share_out()
    assert land.errors() == ["no memory left"] and land.farm.failed == 1


def test_a_worker_that_fetches_a_model_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its card, and says what it does; a download takes an hour."""
    land = Farmland(2)
    hand = land.begin(1, "small")
    land.farm._share_out()
    land.answer(hand, {"refused": "no memory left"})
    land.talking = {2}
    land.later(monkeypatch, _SILENT_S + 1)
    land.farm._report()
    land.farm._share_out()
    assert land.errors() == []
    other = land.begin(2, "large")
    land.farm._share_out()
    assert other.job is not None, "the clip goes to the larger card"


def test_a_clip_that_one_worker_lost_and_another_refuses() -> None:
    """The command went on for ever, doing nothing."""
    land = Farmland(2)
    small = land.begin(2, "small")
    land.farm._share_out()
    land.answer(small, {"refused": "no memory left"})
    large = land.begin(1, "large")
    land.farm._share_out()
    land.answer(large, {"lost": "its ComfyUI has ended"})
    land.farm._share_out()
    assert large.job is not None and small.job is None


def test_two_farms_do_not_write_into_one_folder(tmp_path: Path) -> None:
    """The clips of the one would take the place of the other's, hours later."""
    plan: Any = SimpleNamespace(results=SimpleNamespace(folder=tmp_path), jobs=[])
    with running("devtools.farm.test_farm_work.hold", tmp_path / ".farm.lock", tmp_path / "held"):
        deadline = time.monotonic() + 20
        while not (tmp_path / "held").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(UserError, match="Another farm .*--out"):
            farm_work.work(plan, {}, io.StringIO())


def test_a_workers_disk_is_not_filled_with_inputs(tmp_path: Path) -> None:
    """Thousands of clips change a video each."""
    server: Any = FarmServer(SimpleNamespace())  # type: ignore[arg-type]
    server._base = tmp_path
    for inputs in ({"a/1.mp4": b"1", "2.png": b"2"}, {"2.png": b"2", "3.png": b"3"}):
        server._write_inputs(inputs)
        files = {path.relative_to(tmp_path / "input").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        assert files == inputs.keys()


def test_nothing_is_kept_of_a_clip_that_is_made() -> None:
    """A clip holds its picture or video, and there may be ten thousand."""
    for answer in ({"files": [("dog.mp4", b"")], "seconds": 1.0}, {"error": "a node failed"}):
        land = Farmland(1)
        hand = land.begin(1, "any")
        land.farm._share_out()
        land.farm.clips["dog"] = SimpleNamespace(settings={})  # type: ignore[assignment]
        land.farm._problem = lambda job, files: ""  # type: ignore[method-assign]
        land.answer(hand, answer)
        assert land.farm.finished == 1 and land.farm.clips == {}


@pytest.mark.parametrize("kind, message", [*OUT_OF_MEMORY, ("ValueError", "a node failed")])
def test_a_card_that_is_too_small_refuses(monkeypatch: pytest.MonkeyPatch, kind: str, message: str) -> None:
    """A larger one may make the clip; what is wrong with the workflow itself fails everywhere."""
    server = FarmServer(Place("", "", "", False, None, 1, None, (), ""))
    server._server = SimpleNamespace(url="")  # type: ignore[assignment]
    error = client.RunError("failed", "3", "KSampler", message, kind)
    monkeypatch.setattr(farm_server.client, "run_workflow", lambda *_, **__: client.RunResult(error=error))
    assert server.make({}, {}) == {"error" if kind == "ValueError" else "refused": str(error)}


def test_a_clip_that_does_not_end_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A night's farm must not wait for ever for a card that computes nothing any more; without a limit it may."""
    limits: list[float | None] = []

    def run_workflow(url: str, graph: dict, note: object, limit_s: float | None) -> client.RunResult:
        limits.append(limit_s)
        raise DevError("The workflow did not end within 120 s.")

    def wait(seconds: float) -> None:
        raise subprocess.TimeoutExpired("comfyui", seconds)

    log = tmp_path / "server.log"
    log.write_text("step 3 of 50")
    monkeypatch.setattr(farm_server.client, "run_workflow", run_workflow)
    for minutes in (2, None):
        ended: list[bool] = []
        server = FarmServer(Place("", "", "", False, None, 1, minutes, (), ""))
        process = SimpleNamespace(wait=wait, poll=lambda: None)
        server._server = SimpleNamespace(url="", process=process, log=log)  # type: ignore[assignment]
        server._running.callback(ended.append, True)
        reason = "ComfyUI was ended (The workflow did not end within 120 s.), its last line: step 3 of 50"
        assert server.make({}, {}) == {"lost": reason}
        assert ended == [True] and server._server is None
    assert limits == [120.0, None]


def test_a_model_is_fetched_once_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two cards of a machine need it, and start at the same time."""
    with running_hub(monkeypatch) as hub:
        place = Place("", "", "", False, None, 1, None, ("CogVideoX-2b",), HUGGING_FACE)
        servers = [FarmServer(place) for _ in range(2)]
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda server: server._fetch(tmp_path / "diffusers"), servers))
        assert len(hub.requests(BIG)) == 1
        assert (tmp_path / "diffusers" / "CogVideoX-2b" / BIG).read_bytes() == hub.files[BIG]
        hub.close()
        servers[0]._fetch(tmp_path / "diffusers")  # it is there: a machine without a network starts


def test_a_machine_that_was_lost_has_its_time_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been heard of those that start, for none has started for hours."""
    land = Farmland(2)
    hand, other = land.begin(1, "small"), land.begin(2, "large")
    land.farm._share_out()
    land.later(monkeypatch, 10 * _SILENT_S)
    assert other.lose("gone") is None
    land.answer(hand, {"refused": "no memory left"})
    land.farm._share_out()
    assert land.errors() == []
