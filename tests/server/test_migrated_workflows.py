"""The rebuilt workflows of ComfyUI-CogVideoXWrapper, migrated, on a real server: each makes its frames."""

import json
import shutil
import urllib.request

import pytest
import torch
from PIL import Image

from cogvideox.devtools import client
from cogvideox.devtools.embedded_checkpoint import folder_name, write_controlnet
from cogvideox.devtools.workflow import convert_to_api
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options
from cogvideox.migration.replacements import REPLACEMENTS
from cogvideox.tests import lora_files as loras
from cogvideox.tests.graphs import (
    DECODE,
    HEIGHT,
    LATENTS,
    NEGATIVE,
    PIPELINE,
    PROMPT,
    SAMPLE,
    WIDTH,
    node,
    text_to_video,
    with_inputs,
    without,
)
from cogvideox.tests.migration.wrapper_flows import EXAMPLES, ORBIT, TWELVE
from cogvideox.tests.migration.wrapper_flows import PROMPT as BEAR
from cogvideox.tests.part_graphs import component_weights
from cogvideox.tests.task_graphs import write_picture
from cogvideox.tests.tasks import pictures

# The names that the migrated loaders have -> the tiny pipelines that stand for these checkpoints.
CHECKPOINTS = {
    "CogVideoX-2b": "2b",
    "CogVideoX-5b": "5b",
    "CogVideoX1.5-5B": "1.5-5B",
    "CogVideoX-5b-I2V": "5b-I2V",
    "CogVideoX1.5-5B-I2V": "1.5-5B-I2V",
    "CogvideoX-Interpolation": "5b-I2V",
    "CogVideoX-Fun-V1.1-5b-InP": "Fun-5b-InP",
    "CogVideoX-Fun-V1.1-5b-Pose": "Fun-5b-Control",
}
# What each makes: frames. Sizes and lengths of tiny models.
FRAMES = dict.fromkeys((name for name in TWELVE if name != "tora"), 9) | {"context_windows": 33}
_OPTIONS: dict = {"size": (WIDTH, HEIGHT), "frames": 9, "steps": 3, "t5": "CogVideoX-5b"}
_MORE: dict[str, dict] = {"v2v_5b": {"steps": 5}, "context_windows": {"frames": 33, "window": 16}}
# Of the wrapper's own examples, those that are not among the twelve.
EXAMPLE_RUNS = ("cogvideox_1_0_5b_interpolation_02", "cogvideox_Fun_I2V_02", "cogvideox_Fun_180_orbit_02")
FRAMES |= dict.fromkeys(EXAMPLE_RUNS, 9)
# t2v_1.5 runs in every tier, below.
LONG = ("t2v_2b", "t2v_1.5", "i2v_5b", "fun_control", "context_windows", "lora", "cogvideox_Fun_I2V_02")


@pytest.fixture(scope="module")
def ready(comfyui) -> dict:
    """The server's schemas, once it has all that the workflows name."""
    models = comfyui.base / "models"
    for name, variant in CHECKPOINTS.items():
        shutil.copytree(comfyui.pipeline(folder_name(variant)), comfyui.pipelines / name)
    write_controlnet(models / "controlnet" / "cogvideox-2b-controlnet-hed-v1", "2b")
    weights = component_weights(comfyui.pipelines / "CogVideoX-5b", "transformer")
    shapes = {name.removesuffix(".weight"): tuple(w.shape) for name, w in weights.items() if name.endswith(".weight")}
    tensors, _, _ = loras.write_dialect("diffusers", loras.random_factors(shapes, loras.ATTENTION))
    for name in ("style.safetensors", ORBIT):
        loras.save(models / "loras" / name, tensors)
    write_picture(comfyui.base / "input" / "example.png", pictures(1))
    return client.object_info(comfyui.url)


def migrated(name: str, schemas: dict) -> dict:
    """A workflow in API format, made small."""
    options = _OPTIONS | _MORE.get(name, {})
    document, work = migrate_workflow((TWELVE | EXAMPLES)[name](**options).document(), Options())
    assert document is not None, work.of("refused")
    return convert_to_api(document, schemas)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in FRAMES]
)
def test_migrated_workflow_runs(comfyui, ready: dict, name: str) -> None:
    """A graph that is valid and does not run is worth nothing."""
    result = comfyui.run(migrated(name, ready))
    assert result.error is None, str(result.error)
    sizes = [Image.open(file).size for file in result.files(comfyui.server.output)]
    assert sizes == [(WIDTH, HEIGHT)] * FRAMES[name]


def test_migrated_workflow_makes_the_video_of_this_pack(comfyui, ready: dict) -> None:
    """Text to video: the latents of the graph that a user would build by hand."""
    api = migrated("t2v_1.5", ready)
    sampler = next(name for name, node in api.items() if node["class_type"] == "CogVideoXSample")
    api["latents"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "migrated"}}
    by_hand = text_to_video(seed=42)
    by_hand |= {
        "model": node("CogVideoXLoadModel", model_name="CogVideoX1.5-5B", weight_dtype="bf16"),
        "clip": node("CogVideoXLoadTextEncoder", text_encoder_name="CogVideoX-5b", weight_dtype="default"),
        PROMPT: node("CogVideoXEncodeText", clip=["clip", 0], text=BEAR),
        NEGATIVE: node("CogVideoXEncodeText", clip=["clip", 0], text=""),
        DECODE: node("CogVideoXDecode", vae=["vae", 0], samples=[SAMPLE, 0], memory="auto"),
        "vae": node("CogVideoXLoadVAE", vae_name="CogVideoX1.5-5B", weight_dtype="bf16"),
    }
    by_hand = without(with_inputs(by_hand, SAMPLE, model=["model", 0]), PIPELINE)
    (expected,), (found,) = comfyui.latents(by_hand, LATENTS), comfyui.latents(api, "latents")
    assert torch.equal(found, expected)


def test_replacements_are_served(comfyui) -> None:
    """The page asks the server which missing nodes have a replacement; ComfyUI's own are still there."""
    with urllib.request.urlopen(f"{comfyui.url}/node_replacements", timeout=30) as answer:
        served = json.load(answer)
    assert {old: entries[0]["new_node_id"] for old, entries in served.items() if old in REPLACEMENTS} == {
        old: replacement.new for old, replacement in REPLACEMENTS.items()
    }
    assert set(served) - set(REPLACEMENTS)
