"""A LoRA trained in the graph teaches CogVideoX-nano a colour that it has never seen, from 16 clips."""

from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.host.toy import CLIPS, WEIGHTS
from cogvideox.nano import paint, score, world
from cogvideox.nano.captions import caption
from cogvideox.nodes import lora as loras
from cogvideox.nodes import train
from cogvideox.nodes import training_clips as clips
from cogvideox.tests import core_trainer
from cogvideox.tests.score_table import score_table

COLOUR, PROMPTS = "pink", 6
SAMPLED = {"pack": 10, "core": 20}  # steps of the clips that are scored
LEAST_AFTER = {"pack": 0.6, "core": 0.35}  # of the colours; 0.8 and 0.55 were seen


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folders below tmp_path, and nodes that belong to no graph."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    for module in (clips, train, loras):
        monkeypatch.setattr(module, "show_on_node", lambda text, node_id: None)
    return tmp_path


def requests(count: int) -> list[paint.Request]:
    """Prompts for shapes of the new colour; none of their clips was trained on."""
    made = []
    for index in range(count):
        rng = np.random.default_rng([99, index])
        scene = world.draw_scene(rng, colour=COLOUR)
        made.append(paint.Request(scene, caption(scene, rng), np.empty(0)))
    return made


def shares(pipeline: paint.Pipeline, steps: int, count: int = PROMPTS) -> dict[str, float]:
    asked = requests(count)
    found = score.score_clips(
        paint.paint(pipeline, asked, paint.Settings(seed=5, steps=steps)), [request.scene for request in asked]
    )
    print(score_table({"": found}))
    return found


def train_with_the_pack(model: ModelPatcher, latents: list, positive: list) -> dict:
    settings = {"steps": 40, "batch_size": 8, "learning_rate": 2e-2, "rank": 16, "alpha": 16.0, "seed": 0}
    settings["timesteps"] = "stratified"
    inputs = {name: [value] for name, value in settings.items()}
    return train.CogVideoXTrainLora.execute([model], latents, positive, **inputs).args[0]


def train_with_core(model: ModelPatcher, latents: list, positive: list) -> dict:
    torch.manual_seed(0)  # it draws noise levels and first weights from torch's own generator
    # its LoRAs have alpha 1: of so high a rank they learn slowly
    settings = {"steps": 400, "batch_size": 4, "learning_rate": 5e-3, "rank": 16, "training_dtype": "bf16"}
    return core_trainer.train(model, latents, positive, **settings)[0]


@pytest.mark.long
@pytest.mark.parametrize("trainer", ["pack", "core"])
def test_sixteen_clips_teach_a_new_colour(host: Path, trainer: str) -> None:
    """What users train LoRAs for; the whole way through the nodes: clips, training, file, Apply LoRA, sampler."""
    train_with = {"pack": train_with_the_pack, "core": train_with_core}[trainer]
    pipeline = paint.load_pipeline(WEIGHTS / "5b")
    given = (pipeline.vae, pipeline.clip, CLIPS, 17, 64, 64, 8.0, "fixed", "skip", False, 0)
    latents, positive, report = clips.CogVideoXTrainingClips.execute(*given).args
    assert len(latents) == 16, report
    lora = train_with(pipeline.model, latents, positive)
    name = train.CogVideoXSaveTrainedLora.execute(lora, "pink").args[0]
    taught = loras.CogVideoXApplyLora.execute(pipeline.model, name, 1.0).args[0]

    before = shares(paint.load_pipeline(WEIGHTS / "5b"), SAMPLED[trainer], count=2)  # none of them is pink
    after = shares(paint.Pipeline(taught, pipeline.clip, pipeline.vae), SAMPLED[trainer])
    assert before["colour"] <= 0.05 and after["colour"] >= LEAST_AFTER[trainer]
    # what it could do before, it still can
    assert after["shape"] >= 0.5 and after["direction"] >= 0.7
