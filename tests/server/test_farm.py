"""`dev.py farm` with two ComfyUI servers of its own, and what is left of it when something is killed."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from cogvideox.devtools.cli import parse
from cogvideox.devtools.farm.farm_plan import read_plan
from cogvideox.devtools.paths import ROOT
from cogvideox.devtools.run.remote import FOLDER
from cogvideox.devtools.run.run_clips import settle
from cogvideox.devtools.run.run_graph import build_graph
from cogvideox.tests.graphs import node

# Ray reads its environment when it is imported, so that no test may import it before what it is tested with.
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform == "win32", reason="ends processes by signals of POSIX"),
]

READY = re.compile(r"worker (\d) is ready on \S+: ComfyUI is process (\d+), supervised by process (\d+)")
# A workflow that is not of the pack, whose file is read from its input folder.
PICTURE = {
    "load": node("LoadImage", image="pictures/first.png"),
    "save": node("SaveImage", images=["load", 0], filename_prefix="any"),
}
REFUSED = {"save": node("SaveImage", images=["nowhere", 0], filename_prefix="any")}


class Farm:
    """One run of the command, of which stdout and stderr are read line by line."""

    def __init__(self, prompts: Path, out: Path, log: Path):
        folders = {"package": str(ROOT), "comfyui": os.environ["COMFYUI_PATH"], "models": str(log.parent / "models")}
        self.arguments = ["farm", str(prompts), "--out", str(out), "--workers", "2", "--steps", "1", "--frames", "9"]
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "dev.py"), *self.arguments, "--ready", json.dumps(folders)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        self.results = map(json.loads, self.process.stdout)

    def workers(self) -> list[tuple[int, int]]:
        """(process of ComfyUI, process that supervises it) of each that has been ready."""
        return [(int(server), int(supervisor)) for _, server, supervisor in READY.findall(self.log.read_text())]

    def reference(self, run: Callable[[dict], bytes]) -> dict[str, bytes]:
        """id -> the video of each prompt, as one server makes it."""
        jobs = read_plan(parse(self.arguments)[0]).jobs
        clips = {job.id: settle(job.request, {}, None) for job in jobs if job.request is not None}
        return {name: run(build_graph(clip, "", f"{FOLDER}/{name}")) for name, clip in clips.items()}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Sequence[dict]], Farm]]:
    """start(lines) -> a Farm of them; the same lines go on in the same folder. Nothing of it is left afterwards."""
    farms: list[Farm] = []

    def begin(lines: Sequence[dict]) -> Farm:
        (tmp_path / "models" / "diffusers").mkdir(parents=True, exist_ok=True)
        (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
        farms.append(Farm(tmp_path / "prompts.jsonl", tmp_path / "out", tmp_path / f"{len(farms)}.log"))
        return farms[-1]

    yield begin
    for farm in farms:
        if farm.process.poll() is None:
            farm.process.kill()
        farm.process.communicate()


def prompts(count: int) -> list[dict]:
    return [{"prompt": "A big red star moves up on a blue background.", "seed": seed} for seed in range(count)]


def ended(processes: Sequence[psutil.Process]) -> bool:
    """Ray's own agents, which hold nothing, go on looking for the others for a minute."""
    return not psutil.wait_procs(processes, timeout=120)[1]


def test_a_lost_worker_costs_no_clip_and_changes_none(comfyui, start, tmp_path: Path) -> None:
    """Twelve prompts on two servers, one of which is killed with its supervisor: all twelve are those of one server.
    A workflow that is refused is one line that says so, and any other workflow runs."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "pictures" / "first.png")
    workflows = [{"id": "refused", "workflow": REFUSED}]
    workflows += [{"id": name, "workflow": PICTURE, "inputs": ["pictures/first.png"]} for name in ("picture", "again")]
    farm = start([*workflows, *prompts(12)])
    results = [next(farm.results)]
    (server, supervisor), *_ = farm.workers()
    lost = psutil.Process(server)
    os.kill(supervisor, signal.SIGKILL)
    results += farm.results
    assert farm.process.wait(60) == 1
    assert ended([lost]), "the server has outlived its supervisor"
    log = farm.log.read_text()
    assert "was lost" in log, log
    found = {result["id"]: result for result in results}
    assert len(results) == len(found) == 15, log
    assert "nowhere" in found.pop("refused")["error"]
    for name in ("picture", "again"):
        (file,) = found.pop(name)["files"]
        assert Image.open(file["file"]).size == (16, 16)

    def run(graph: dict) -> bytes:
        result = comfyui.run(graph)
        (file,) = result.files(comfyui.server.output)
        return file.read_bytes()

    expected = farm.reference(run)
    assert {name: Path(result["files"][0]["file"]).read_bytes() for name, result in found.items()} == expected


@pytest.mark.long
def test_a_killed_farm_ends_whole_and_goes_on(start) -> None:
    """A server that ends by itself is started again. A farm that is killed leaves no process, and the same command
    makes what is missing."""
    farm = start(prompts(30))
    first = next(farm.results)
    (server, _), *_ = farm.workers()
    os.kill(server, signal.SIGKILL)
    made = {first["id"]: first} | {result["id"]: result for result, _ in zip(farm.results, range(5))}
    everything = psutil.Process(farm.process.pid).children(recursive=True)
    everything += [psutil.Process(pid) for pids in farm.workers() for pid in pids if psutil.pid_exists(pid)]
    assert len(everything) > 4
    farm.process.kill()
    assert ended(everything)
    assert "ComfyUI ended with status" in farm.log.read_text()
    again = start(prompts(30))
    results = {result["id"]: result for result in again.results}
    assert again.process.wait(60) == 0
    assert len(results) == 30 and {name: results[name] for name in made} == made
    assert "clips are there already" in again.log.read_text()
