"""Training on the real server: from a folder of clips to a video with what was learnt, by both trainers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideox.devtools import client
from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.nano import world
from cogvideox.tests import core_trainer
from cogvideox.tests.clip_files import write_video
from cogvideox.tests.graphs import PIPELINE, SAMPLE, node, with_inputs
from cogvideox.tests.part_graphs import latent_only, only, short
from cogvideox.tests.support import relative_error
from cogvideox.tests.tiers import long_after

CLIPS, TRAIN, SAVE, GRAPH = "clips", "train", "save", "graph"
FOLDER = "clips_to_learn"


@pytest.fixture(scope="module", autouse=True)
def folder(comfyui) -> Path:
    """Three short clips of a square that goes up, with captions."""
    clips = comfyui.base / "input" / FOLDER
    clips.mkdir(parents=True)
    scene = world.Scene("square", "green", "large", "up", ("white",))
    for number in range(3):
        pictures = world.render(scene, np.random.default_rng(number), 9)
        write_video(clips / f"clip_{number:02}.mp4", pictures, fps=world.FPS)
        (clips / f"clip_{number:02}.txt").write_text("a large green square moves up on a white background")
    return clips


def with_clips(graph: dict, **inputs: object) -> dict:
    """`graph` and the nodes of the dataset."""
    size = {"frames": 9, "width": 96, "height": 64, "fps": 8.0, "buckets": "fixed", "shorter": "skip"}
    dataset = {"vae": [PIPELINE, 2], "clip": [PIPELINE, 1], "folder": FOLDER, "image_variants": 1}
    return graph | {CLIPS: node("CogVideoXTrainingClips", **size | dataset | {"image_to_video": False} | inputs)}


def with_training(graph: dict, **inputs: object) -> dict:
    """`graph` with the pack's trainer on the dataset, and its loss as a picture."""
    settings = {"steps": 4, "batch_size": 2, "learning_rate": 0.03, "rank": 4, "alpha": 4.0, "seed": 0}
    data = {"model": [PIPELINE, 0], "latents": [CLIPS, 0], "positive": [CLIPS, 1]}
    return with_clips(graph) | {
        TRAIN: node("CogVideoXTrainLora", **data | settings | inputs),
        GRAPH: node("LossGraphNode", loss=[TRAIN, 1], filename_prefix="loss"),
    }


def with_saved(graph: dict) -> dict:
    """`graph` that keeps what is trained as a file, and samples with that file."""
    saving = {
        SAVE: node("CogVideoXSaveTrainedLora", lora=[TRAIN, 0], name="learnt/squares"),
        "lora": node("CogVideoXApplyLora", model=[PIPELINE, 0], lora_name=[SAVE, 0], strength=1.0),
    }
    return with_inputs(graph | saving, SAMPLE, model=["lora", 0])


def with_core_trainer(comfyui, graph: dict) -> dict:
    known = comfyui.schema("TrainLoraNode")["input"]["required"]
    data = {"model": [PIPELINE, 0], "latents": [CLIPS, 0], "positive": [CLIPS, 1]}
    return graph | {
        TRAIN: node("TrainLoraNode", **data, **{k: v for k, v in core_trainer.SETTINGS.items() if k in known})
    }


def test_from_clips_to_a_video(comfyui, exact):
    """The whole way in one graph; the file is in the list of LoRAs afterwards, and the loss was shown on the way."""
    plain = latent_only(short(exact))
    graph = with_saved(with_training(plain))
    result = comfyui.run(graph)
    assert result.error is None, str(result.error)
    assert [value for id_, value, _ in result.progress if id_ == TRAIN][-1] == 4
    assert any(id_ == TRAIN and image[:4] == b"\x89PNG" for id_, image in result.previews)
    texts = {id_: text for id_, text in result.texts}
    assert texts[TRAIN].startswith("Trained 4 steps") and texts[SAVE].startswith("Saved squares_00001.safetensors")
    assert result.outputs[GRAPH]["images"]
    assert (comfyui.base / "models" / "loras" / "learnt" / "squares_00001.safetensors").is_file()
    learnt = comfyui.latent(graph)
    assert relative_error(learnt, comfyui.latent(plain)) > 1e-3
    for bypass in (False, True):  # hosts before it pass over the input
        direct = node("LoraModelLoader", model=[PIPELINE, 0], lora=[TRAIN, 0], strength_model=1.0, bypass=bypass)
        at_once = with_inputs(with_training(plain) | {"direct": direct}, SAMPLE, model=["direct", 0])
        assert relative_error(comfyui.latent(at_once), learnt) < 1e-5


def test_cancelled_training_goes_on(comfyui, exact):
    """Cancel in the browser keeps what was trained, and the next run says that it goes on from there."""
    graph = only(with_training(short(exact), steps=400, save_every=1000), GRAPH)

    def cancel(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == TRAIN and data["value"] >= 3:
            client.interrupt(comfyui.url)

    result = comfyui.run(graph, cancel)
    assert result.error is not None and result.error.kind == "interrupted", str(result.error)
    stopped = [text for id_, text in result.texts if id_ == TRAIN][-1]
    assert stopped.startswith("Stopped after step ") and "Queue it again" in stopped
    done = int(stopped.split()[3])
    result = comfyui.run(graph, lambda kind, data: kind == "progress" and client.interrupt(comfyui.url))
    steps = [value for id_, value, _ in result.progress if id_ == TRAIN]
    assert steps and min(steps) == done + 1, "it began again"


@pytest.mark.parametrize("variant", long_after(1, ["5b-I2V", "1.5-5B"]))
def test_cores_trainer(comfyui, variant):
    """ComfyUI's own Train LoRA on our dataset and our model, saved by our node and applied by it."""
    is_image = "I2V" in variant
    graph = with_clips(latent_only(short(folder_name(variant))), image_to_video=is_image)
    if is_image:
        graph = with_inputs(graph, SAMPLE, positive=["first", 0], negative=["first", 1], latent_image=["first", 2])
        frame = {"picture": node("CogVideoXDecode", vae=[PIPELINE, 2], samples=["empty", 0], memory="auto")}
        frame["empty"] = node("CogVideoXEmptyLatent", width=96, height=64, frames=1, batch_size=1)
        start = {"positive": ["prompt", 0], "negative": ["negative", 0], "vae": [PIPELINE, 2], "batch_size": 1}
        start |= {"width": 96, "height": 64, "frames": 9, "start_image": ["picture", 0]}
        graph |= frame | {"first": node("CogVideoXImageToVideo", **start)}
    plain = comfyui.latent(latent_only(graph))
    learnt = comfyui.latent(latent_only(with_saved(with_core_trainer(comfyui, graph))))
    assert torch.isfinite(learnt).all() and relative_error(learnt, plain) > 1e-3


def test_what_cannot_be_trained_is_refused(comfyui, exact, refused):
    """The reason stands on the node, before a step was made."""
    graph = only(with_training(short(exact), checkpoint_name="a/b"), GRAPH)
    refused(graph, "CogVideoXTrainLora", "checkpoint_name is 'a/b'")
    dropping = only(with_training(short("CogVideoX-tiny-5b-I2V")), GRAPH)
    refused(dropping, "CogVideoXTrainLora", "takes a start image in addition to the prompt")
