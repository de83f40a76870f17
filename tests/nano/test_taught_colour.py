"""A LoRA trained in the graph teaches CogVideoX-nano a colour that it has never seen, from 16 clips."""

from pathlib import Path

import folder_paths
import numpy as np
import pytest
from support import pack

from devtools.example_media import CLIPS, write_media
from nano import folders, paint, score, world
from nano.captions import caption

COLOUR, PROMPTS = "pink", 24
SETTINGS = paint.Settings(seed=5)
STEPS, BATCH = 250, 8


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folders below tmp_path."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    loras = tmp_path / "loras"
    loras.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(loras)], {".safetensors"}))
    return tmp_path


def requests() -> list[paint.Request]:
    """Prompts for shapes of the new colour; none of their clips was trained on."""
    made = []
    for index in range(PROMPTS):
        rng = np.random.default_rng([99, index])
        scene = world.draw_scene(rng, colour=COLOUR)
        made.append(paint.Request(scene, caption(scene, rng), np.empty(0)))
    return made


def shares(pipeline: paint.Pipeline) -> dict[str, float]:
    clips = paint.paint(pipeline, requests(), SETTINGS)
    found = score.summarize(score.score_clip(clip, request.scene) for clip, request in zip(clips, requests()))
    print(score.table({"": found}))
    return found


def test_sixteen_clips_teach_a_new_colour(host: Path) -> None:
    """What users train LoRAs for; the whole way through the nodes: clips, training, file, Apply LoRA, sampler."""
    pipeline = paint.load_pipeline(folders.write_pipeline(host / "nano", "5b"))
    write_media(host / "input")
    latents, positive, report = (
        pack("nodes.training_clips")
        .CogVideoXTrainingClips.execute(pipeline.vae, pipeline.clip, CLIPS, 17, 64, 64, 8.0, "fixed", "skip", False, 0)
        .args
    )
    assert len(latents) == 16, report
    settings = {"steps": STEPS, "batch_size": BATCH, "learning_rate": 2e-3, "rank": 16, "alpha": 16.0, "seed": 0}
    train, nodes = pack("nodes.train"), pack("nodes.lora")
    lora = train.CogVideoXTrainLora.execute(
        [pipeline.model],
        latents,
        positive,
        **{name: [value] for name, value in settings.items()},
        timesteps=["stratified"],
    ).args[0]
    name = train.CogVideoXSaveTrainedLora.execute(lora, "pink").args[0]
    taught = nodes.CogVideoXApplyLora.execute(pipeline.model, name, 1.0).args[0]

    before, after = shares(pipeline), shares(paint.Pipeline(taught, pipeline.clip, pipeline.vae))
    assert before["colour"] <= 0.2 and after["colour"] >= 0.8
    # what it could do before, it still can
    assert after["shape"] >= 0.6 and after["direction"] >= 0.7
