"""A ComfyUI that has the pack in custom_nodes, under a name of the user's, and nothing else: no model, no picture, no
command. Models, templates, blueprints and their pictures are where they always are."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from cogvideox.devtools import client
from cogvideox.devtools.build_blueprints import BLUEPRINTS
from cogvideox.devtools.client import object_info
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.paths import ROOT, TEMPLATES
from cogvideox.devtools.run_workflow import Video, client_format, inspect_video
from cogvideox.devtools.server import Server, request, running_server
from cogvideox.host import toy
from cogvideox.host.folders import CATEGORIES
from cogvideox.tests.template_runs import skip_where_it_cannot_run

# What it has, one by one: the toy in the lists in tests/host/test_toy.py; the name of the templates in
# tests/devtools/test_templates.py; templates, their pictures and blueprints in the browser; the first template under a
# folder of any name in test_beside_others.py.
pytestmark = pytest.mark.long
LOADERS = {
    "CogVideoXLoadPipeline": ("folder", "pipeline"),
    "CogVideoXLoadModel": ("model_name", "transformer"),
    "CogVideoXLoadTextEncoder": ("text_encoder_name", "text_encoder"),
    "CogVideoXLoadVAE": ("vae_name", "vae"),
    "CogVideoXLoadControlNet": ("control_net_name", "controlnet"),
    "CogVideoXApplyLora": ("lora_name", "lora"),
}
# No space: aiohttp, which ComfyUI serves with, finds no static file below an address with one (its version 3.14
# compares the quoted prefix with the unquoted path), whatever pack it is of.
FOLDER = "My.CogVideoX-1.5_(2)"
ALL_NAMES = [file_name(example) for example in EXAMPLES]
NAMES = [file_name(example) for example in EXAMPLES if not example.needs]


def states(*folders: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below `folders`."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("plain")
    prepare_base(base, ROOT, FOLDER)
    for category in CATEGORIES:  # as ComfyUI's own repository has them, empty
        (base / "models" / category).mkdir(exist_ok=True)
    host = Path(os.environ["COMFYUI_PATH"])
    before = states(toy.WEIGHTS.parent, base / "models", base / "input")
    with running_server(host, base, log=base / "server.log", cpu=True) as running:
        yield running
    after = states(toy.WEIGHTS.parent, base / "models", base / "input")
    kept = {path: state for path, state in after.items() if "/models/loras/CogVideoX/" not in Path(path).as_posix()}
    assert kept == before, "only the template for training, which says so, writes a LoRA"


def test_every_loader_lists_the_toy(plain: Server) -> None:
    """Whoever has just installed the pack finds a model in each list, without a command or a download."""
    schemas = object_info(plain.url)
    for node, (name, kind) in LOADERS.items():
        entry = schemas[node]["input"]["required"][name]
        offered = entry[0] if isinstance(entry[0], list) else entry[1]["options"]
        assert offered[:-1] == list(toy.LISTED[kind]), node
        assert offered[-1].startswith("(no ") and " of your own yet: " in offered[-1], node


@pytest.mark.parametrize("name", NAMES)
def test_template_runs_at_once(plain: Server, name: str) -> None:
    """The first click of a new user: a template that asks for a file that is not there ends with an error."""
    skip_where_it_cannot_run(json.loads((TEMPLATES / f"{name}.json").read_text("utf-8")))
    api = client_format(TEMPLATES / f"{name}.json", plain.url)
    for node in api.values():
        if node["class_type"] == "CogVideoXTrainLora":
            node["inputs"]["steps"] = 5
    result = client.run_workflow(plain.url, api, timeout_s=300)
    assert result.error is None, str(result.error)
    (video,) = (file for file in result.files(plain.output) if file.suffix == ".mp4")
    found = inspect_video(video)
    assert found == Video(found.frames, 64, 64, 8) and found.frames >= 17


def test_single_parts_run_with_a_real_prompt_at_another_size(plain: Server) -> None:
    """Asked for what it cannot know, the toy runs, and says on the nodes that it is one and what it knows."""
    prompt = "A close-up of an old fisherman who mends his net in the harbour while gulls circle overhead. " * 12
    api = {
        "model": {"class_type": "CogVideoXLoadModel", "inputs": {"model_name": "CogVideoX-nano 1.5-5B"}},
        "clip": {"class_type": "CogVideoXLoadTextEncoder", "inputs": {"text_encoder_name": toy.NAME}},
        "vae": {"class_type": "CogVideoXLoadVAE", "inputs": {"vae_name": toy.NAME}},
        "text": {"class_type": "CogVideoXEncodeText", "inputs": {"clip": ["clip", 0], "text": prompt}},
        "size": {"class_type": "CogVideoXEmptyLatent", "inputs": {"width": 720, "height": 480, "frames": 5}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["text", 0],
                "negative": ["text", 0],
                "latent_image": ["size", 0],
                "seed": 1,
                "steps": 1,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "frames": {"class_type": "CogVideoXDecode", "inputs": {"vae": ["vae", 0], "samples": ["sample", 0]}},
        "look": {"class_type": "PreviewImage", "inputs": {"images": ["frames", 0]}},
    }
    for node in ("model", "clip", "vae"):
        api[node]["inputs"]["weight_dtype"] = "default"
    api["size"]["inputs"]["batch_size"] = 1
    api["frames"]["inputs"]["memory"] = "auto"
    result = client.run_workflow(plain.url, api, timeout_s=300)
    assert result.error is None, str(result.error)
    told = {node: text for node, text in result.texts}
    assert "This is CogVideoX-nano, the toy" in told["text"] and "fisherman" in told["text"]
    assert "its end was left out" in told["text"] and "coloured shapes that move" in told["text"]
    assert "720 × 480 with 5 frames is far from that" in told["sample"]


def test_templates_are_listed_in_order_under_the_name_of_the_pack(plain: Server) -> None:
    """The folder's name, and the disk's order, would say nothing to a user who looks for CogVideoX."""
    assert json.loads(request(f"{plain.url}/api/workflow_templates"))[FOLDER] == ALL_NAMES
    texts = json.loads(request(f"{plain.url}/api/i18n"))
    assert texts["en"]["templateWorkflows"]["category"]["My_CogVideoX-1_5_(2)"] == "CogVideoX"
    assert texts["zh"]["templateWorkflows"]["category"]["My_CogVideoX-1_5_(2)"] == "CogVideoX"
    assert texts["zh"]["nodeDefs"], "the pack's own translations are still there"


@pytest.mark.parametrize("ending", ("json", "jpg"))
def test_each_file_is_served(plain: Server, ending: str) -> None:
    for name in ALL_NAMES:
        path = quote(f"/api/workflow_templates/{FOLDER}/{name}.{ending}")
        assert request(f"{plain.url}{path}") == (TEMPLATES / f"{name}.{ending}").read_bytes()


def test_blueprints_are_there(plain: Server) -> None:
    found = json.loads(request(f"{plain.url}/api/global_subgraphs")).values()
    ours = [entry["name"] for entry in found if entry["info"]["node_pack"] == f"custom_nodes.{FOLDER}"]
    assert sorted(ours) == sorted(blueprint.name for blueprint in BLUEPRINTS)
