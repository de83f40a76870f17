"""Every example workflow on the real server, as it is: what comes out, and that nothing in it is idle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from cogvideox.devtools import client
from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.paths import ROOT
from cogvideox.devtools.run_workflow import Video, inspect_video
from cogvideox.devtools.workflow import convert_to_api
from cogvideox.tests.template_runs import has_parallel, skip_where_it_cannot_run, skip_without_its_nodes
from cogvideox.tests.tiers import long_after

FOLDER = ROOT / "example_workflows"
ALL = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.json"))}
# The others need checkpoints that no test has.
SAVED = {name: ALL[name] for name in (file_name(example) for example in EXAMPLES if not example.needs)}
APPS = {file_name(example) for example in EXAMPLES if example.app}
FPS = 8
# An app is the graph of another example, which opens as a form: those run in the long tier, as does what starts Ray.
RUNS = [
    pytest.param(name, marks=[pytest.mark.long] * (name in APPS or has_parallel(saved)))
    for name, saved in SAVED.items()
]
VIDEOS = dict.fromkeys(SAVED, Video(17, 64, 64, FPS)) | {
    "04 Extend a video clip by clip": Video(17 + 17 - 9, 64, 64, FPS),
    "05 Long video in windows": Video(33, 64, 64, FPS),
}
# nodes that tell what they do, not only what is wrong
TALKING = ("CogVideoXTrainingClips", "CogVideoXTrainLora", "CogVideoXSaveTrainedLora")
SAMPLERS = ("CogVideoXSample", "CogVideoXInvert")


@pytest.fixture(scope="module")
def schemas(comfyui) -> dict:
    return client.object_info(comfyui.url)


@pytest.mark.parametrize(
    "in_few_steps", [True, pytest.param(False, marks=pytest.mark.long)], ids=["few steps", "all steps"]
)
@pytest.mark.parametrize("name", RUNS)
def test_example_runs(comfyui, schemas, name, in_few_steps):
    """What everybody opens first: each must run, and make a video of the size and speed that it shows. in_few_steps:
    all but the first example, and the first clips of a training are shorter."""
    skip_where_it_cannot_run(SAVED[name])
    api = convert_to_api(SAVED[name], schemas)
    for node in api.values():
        if node["class_type"] == "CogVideoXTrainLora":
            node["inputs"]["steps"] = 3  # the browser's tests of the long tier train to the end
        elif node["class_type"] in SAMPLERS and name != RUNS[0].values[0] and in_few_steps:
            node["inputs"]["steps"] = 5
        elif node["class_type"] == "CogVideoXTrainingClips" and in_few_steps:
            node["inputs"]["frames"] = 9
    result = comfyui.run(api)
    assert result.error is None, str(result.error)
    (video,) = (file for file in result.files(comfyui.server.output) if file.suffix == ".mp4")
    assert inspect_video(video) == VIDEOS[name]
    frames = read_frames(video)
    assert frames.std() > 10 and np.abs(np.diff(frames.astype(int), axis=0)).mean() > 1  # not black, nor a still
    steps = {id_: node["inputs"]["steps"] for id_, node in api.items() if node["class_type"] in SAMPLERS}
    made = {id_: [value for other, value, _ in result.progress if other == id_] for id_ in steps}
    assert made == {id_: list(range(1, count + 1)) for id_, count in steps.items()}
    # At the end: what says why a node waits has gone by then.
    left = {id_: text.strip() for id_, text in result.texts if api[id_]["class_type"] not in TALKING}
    assert not any(left.values()), "the example's own prompt is cut, or its video is"


@pytest.mark.parametrize("name", ALL)
def test_nothing_in_an_example_is_idle(schemas, name):
    """A link that was lost leaves a run that succeeds without the user's picture or video."""
    skip_without_its_nodes(ALL[name])
    api = convert_to_api(ALL[name], schemas)
    ends = [id_ for id_, node in api.items() if schemas[node["class_type"]]["output_node"]]
    reached, waiting = set(), list(ends)
    while waiting:
        id_ = waiting.pop()
        reached.add(id_)
        links = (value for value in api[id_]["inputs"].values() if isinstance(value, list))
        waiting += [source for source, _ in links if source not in reached]
    assert reached == set(api)


def comfy_cli(home: Path, *arguments: object) -> dict:
    """Run comfy-cli as its user does, with a home of its own; returns its answer."""
    program = Path(sys.executable).with_name("comfy")
    environment = {**os.environ, "HOME": str(home), "DO_NOT_TRACK": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [program, "--json", *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert answers, done.stdout + done.stderr
    return answers[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="comfy-cli keeps its home elsewhere")
@pytest.mark.parametrize("name", long_after(1, SAVED))
def test_example_passes_comfy_clis_check(schemas, tmp_path, name):
    """Who automates ComfyUI checks a workflow before queueing it: a warning there looks like a broken example."""
    skip_without_its_nodes(SAVED[name])
    known = tmp_path / "object_info.json"
    known.write_text(json.dumps(schemas), "utf-8")
    answer = comfy_cli(tmp_path, "workflow", "validate", "--workflow", FOLDER / f"{name}.json", "--input", known)
    assert answer["ok"] and answer["data"]["valid"], answer
    assert answer["data"]["warnings"] == answer["data"]["errors"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="comfy-cli keeps its home elsewhere")
def test_example_runs_with_comfy_cli(comfyui, schemas, tmp_path):
    """The example in a script: comfy-cli converts the saved format itself, and must find every value in its place."""
    where = ("--where", "local", "--host", "127.0.0.1", "--port", comfyui.server.port)
    answer = comfy_cli(tmp_path, "run", "--workflow", FOLDER / "02 Image to video.json", "--wait", *where)
    assert answer["ok"] and answer["data"]["status"] == "completed", answer
    assert any(".mp4" in url for url in answer["data"]["outputs"]), answer


def read_frames(video) -> np.ndarray:
    """uint8 [frames, H, W, 3]."""
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
