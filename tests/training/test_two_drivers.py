"""One trainer, two drivers: what the graph has begun a recipe goes on with, and the reverse, to the same bits."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cogvideox.errors import UserError
from cogvideox.host.training_mode import InterruptProcessingException
from cogvideox.keys import Latent
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nano import world
from cogvideox.nodes import train as train_nodes
from cogvideox.nodes import training_clips as clip_nodes
from cogvideox.tests.clip_files import write_video
from cogvideox.training import headless

pytestmark = pytest.mark.usefixtures("few_objects")
STEPS, STOP_AFTER = 4, 2
# As the node's inputs are called, and as a recipe's keys are; two micro batches a step.
WIDGETS = {"steps": STEPS, "batch_size": 1, "accumulate": 2, "learning_rate": 1e-2, "rank": 2, "alpha": 3.0, "seed": 5}
KEYS = {"max_steps": STEPS, "micro_batch_size": 1, "global_batch_size": 2, "learning_rate": 1e-2, "rank": 2}
KEYS |= {"alpha": 3.0, "seed": 5}
BOTH = {"precision": "bf16", "caption_dropout": 0.3, "image_dropout": 0.3, "timesteps": "stratified", "warmup_steps": 1}
SIZE = {"frames": 9, "width": 96, "height": 64, "fps": 8.0, "buckets": "fixed", "shorter": "bucket"}
Driver = Callable[..., dict[str, torch.Tensor]]


class Clips:
    """A folder of clips and the checkpoint to train."""

    def __init__(self, folder: Path, pipeline: Path):
        self.folder, self.pipeline = folder / "clips", pipeline
        self.folder.mkdir()
        scene = world.Scene("square", "green", "large", "up", ("white",))
        for number in range(3):
            write_video(
                self.folder / f"{number}.mp4", world.render(scene, np.random.default_rng(number), 9, 96, 64), fps=8
            )
            (self.folder / f"{number}.txt").write_text(f"clip number {number}")

    @cached_property
    def sockets(self) -> tuple[list[Latent], list[list]]:
        """As CogVideoX Training Clips gives them. ComfyUI keeps them too from one run of a graph to the next."""
        vae: comfy.sd.VAE = load_vae(self.pipeline)
        clip: comfy.sd.CLIP = load_text_encoder(self.pipeline)
        node = clip_nodes.CogVideoXTrainingClips
        with torch.inference_mode():
            given = node.execute(vae, clip, str(self.folder), **SIZE, image_to_video=True, image_variants=2)
        latents, positive, _ = given.args
        return latents, positive


@pytest.fixture
def clips(tmp_path: Path, tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Clips:
    for module in (clip_nodes, train_nodes):
        monkeypatch.setattr(module, "show_on_node", lambda text, node_id: None)
    for name in ("input", "output"):
        monkeypatch.setattr(folder_paths, f"get_{name}_directory", lambda: str(tmp_path))
    return Clips(tmp_path, tiny_pipelines["5b-I2V"])


def weights_in(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """What is trained, as the newest checkpoint holds it."""
    assert [path.name for path in folder.glob("step-*")] == [f"step-{step:06d}"]
    return torch.load(folder / f"step-{step:06d}" / "training.pt", weights_only=True)["parameters"]


@pytest.fixture
def graph(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Train in the graph in a folder of this name; cancelled after a step where one is given."""

    def train(name: str, stop_after: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
        def update(self: object, value: int, total: int | None = None, preview: object = None) -> None:
            if value == stop_after:
                raise InterruptProcessingException

        latents, positive = clips.sockets
        widgets = {**WIDGETS, **BOTH, "checkpoint_name": name, **changes}
        model = load_model(clips.pipeline, "default")
        with monkeypatch.context() as patch, torch.inference_mode():
            patch.setattr(train_nodes.comfy.utils.ProgressBar, "update_absolute", update)
            given = {key: [value] for key, value in widgets.items()}
            if stop_after:
                with pytest.raises(InterruptProcessingException):
                    train_nodes.CogVideoXTrainLora.execute([model], latents, positive, **given)
            else:
                train_nodes.CogVideoXTrainLora.execute([model], latents, positive, **given)
        return weights_in(tmp_path / "cogvideox_training" / name, stop_after or STEPS)

    return train


@pytest.fixture
def recipe(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The same from a recipe."""

    def train(name: str, stop_after: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
        sections = {
            "model": {"path": str(clips.pipeline)},
            "dataset": {"folder": str(clips.folder), **SIZE, "image_variants": 2},
            "training": {**KEYS, **BOTH, **changes},
            "output": {"folder": str(tmp_path / "cogvideox_training"), "name": name},
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(sections))
        progress = headless.ProgressLog(STEPS, 2, lambda line: None)
        with monkeypatch.context() as patch:
            if stop_after:
                patch.setattr(headless, "ProgressLog", lambda *_: progress)
                patch.setattr(headless.threading.Event, "is_set", lambda self: progress.done == stop_after)
            AcceleratorState._reset_state(reset_partial_state=True)
            try:
                assert headless.train_recipe(path, lambda line: None) == (130 if stop_after else 0)
            finally:
                AcceleratorState._reset_state(reset_partial_state=True)
        return weights_in(tmp_path / "cogvideox_training" / name, stop_after or STEPS)

    return train


def test_either_driver_goes_on_with_the_others_training(graph: Driver, recipe: Driver, tmp_path: Path) -> None:
    """A training tried out in ComfyUI and finished on a rented machine must be one training, and so the reverse."""
    never_stopped = graph("graph alone", 0)
    ended = {"recipe alone": recipe("recipe alone", 0)}
    for name, begun_by, ended_by in (("graph first", graph, recipe), ("recipe first", recipe, graph)):
        half = begun_by(name, STOP_AFTER)
        assert any(not torch.equal(half[key], value) for key, value in never_stopped.items())
        ended[name] = ended_by(name, 0)
    for name, weights in ended.items():
        assert weights.keys() == never_stopped.keys(), name
        assert all(torch.equal(weights[key], value) for key, value in never_stopped.items()), name
    assert all(value.any() for value in never_stopped.values()), "nothing was learnt"
    root = tmp_path / "cogvideox_training"
    files = [load_file(root / name / f"{name}.safetensors") for name in ("recipe alone", "graph first")]
    assert all(torch.equal(tensor, files[1][key]) for key, tensor in files[0].items())


def test_both_drivers_share_wide_steps(graph: Driver, recipe: Driver) -> None:
    """Micro batches of several clips, several of them a step: both drivers have to number the clips alike."""
    weights = graph("wide graph", 1, batch_size=2, accumulate=2)
    other = recipe("wide recipe", 1, micro_batch_size=2, global_batch_size=4)
    assert all(torch.equal(other[key], value) for key, value in weights.items()) and weights.keys() == other.keys()
    narrow = graph("narrow", 1)
    assert any(not torch.equal(narrow[key], value) for key, value in weights.items()), "the setting changes nothing"


def test_drivers_refuse_the_same_differences(graph: Driver, recipe: Driver) -> None:
    """What decides the result has one name in both, and is told by it."""
    graph("mixed", STOP_AFTER)
    with pytest.raises(UserError, match="seed: 5 there, 6 now"):
        recipe("mixed", 0, seed=6)
    with pytest.raises(UserError, match="global_batch_size: 2 there, 4 now"):
        recipe("mixed", 0, global_batch_size=4)
