"""Recipes: what they say, what they are refused for, and whole trainings from them."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox import errors
from cogvideox.devtools.paths import ROOT
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora.apply import apply_lora, open_lora
from cogvideox.training import headless
from cogvideox.training import recipe as recipes

EXAMPLE = (ROOT / "training" / "example.toml").read_text(encoding="utf-8")


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with what the example names."""
    for name in ("CogVideoX-5b", "clips"):
        (tmp_path / name).mkdir()
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_example_is_a_recipe(places: Path) -> None:
    """The file that users copy must load, from whatever folder it lies in."""
    recipe = recipes.load_recipe(written(places, EXAMPLE))
    assert recipe.model.path == places / "CogVideoX-5b" and recipe.run_folder == places / "trained" / "my_lora"
    assert recipe.plan().steps == 1000 and recipe.mode == "lora"


def test_example_names_every_key_with_its_default(places: Path) -> None:
    """What the comments call the default must be it, and no key may be left for users to guess."""
    elsewhere = ("vae", "text_encoder", "cache")  # whose examples are paths that are not there
    spelled = re.sub(rf"^# (?=(?!{'|'.join(elsewhere)})[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE)
    plain, full = (recipes.load_recipe(written(places, text)) for text in (EXAMPLE, spelled))
    assert spelled != EXAMPLE
    assert plain == full
    for part in ("model", "dataset", "lora", "training", "output"):
        for name in vars(getattr(plain, part)):
            assert re.search(rf"^(# )?{name} = ", EXAMPLE, re.MULTILINE), f"{part}.{name}"


def test_json_says_the_same(places: Path) -> None:
    """Python 3.10 reads no TOML."""
    sections = {
        "model": {"path": "CogVideoX-5b"},
        "dataset": {"folder": "clips"},
        "training": {"steps": 1000},
        "output": {"folder": "trained", "name": "my_lora"},
    }
    path = places / "recipe.json"
    path.write_text(json.dumps(sections))
    assert recipes.load_recipe(path) == recipes.load_recipe(written(places, EXAMPLE))


WRONG = {
    "unknown key": ("steps = 1000", "step = 1000", "there is no key training.step. Is it steps?"),
    "unknown section": ("[output]", "[outputs]", "there is no key outputs. Is it output?"),
    "missing key": ("steps = 1000", "", "training.steps is missing"),
    "missing section": ('[model]\npath = "CogVideoX-5b"', "", "model.path is missing"),
    "text for a number": ("steps = 1000", 'steps = "1000"', 'training.steps is "1000"; expected is a whole number'),
    "fraction": ("steps = 1000", "steps = 10.5", "training.steps is 10.5; expected is a whole number, 1 or more"),
    "truth for a number": ("steps = 1000", "steps = true", "training.steps is true; expected is a whole number"),
    "too little": ("steps = 1000", "steps = 0", "training.steps is 0; expected is a whole number, 1 or more"),
    "too much": (
        "steps = 1000",
        "steps = 9\ncaption_dropout = 1.5",
        "caption_dropout is 1.5; .* 0 or more and 1 or less",
    ),
    "no rate": ("steps = 1000", "steps = 9\nlearning_rate = 0", "learning_rate is 0; expected is a number, above 0"),
    "NaN": ("steps = 1000", "steps = 9\nlearning_rate = nan", "learning_rate is NaN; expected is a number"),
    "infinity": ("steps = 1000", "steps = 9\nlearning_rate = inf", "learning_rate is Infinity; expected is a number"),
    "choice": (
        "steps = 1000",
        'steps = 9\nprecision = "int4"',
        'training.precision is "int4"; expected is "no" or "bf16"',
    ),
    "target": (
        "[training]",
        '[lora]\ntargets = ["to_x"]\n[training]',
        'lora.targets is ..to_x..; expected is a list of "to_q"',
    ),
    "rank": ("[training]", "[lora]\nrank = 0\n[training]", "lora.rank is 0"),
    "no path": ('path = "CogVideoX-5b"', 'path = "elsewhere"', "model.path is .*elsewhere, and there is nothing"),
    "empty path": ('folder = "clips"', 'folder = ""', 'dataset.folder is ""; expected is a path'),
    "size": ('folder = "clips"', 'folder = "clips"\nwidth = 100', "100 x 480"),
    "name": ('name = "my_lora"', 'name = "a/b"', "output.name is 'a/b'; expected is a name without folders"),
    "full in fp8": ("[model]", 'mode = "full"\n[model]\nweight_dtype = "int8"', "mode full, which trains in fp32"),
    "no TOML": ("[model]", "[model", "is no TOML"),
    "value for a section": ("[model]\npath = ", "model = ", "model is 'CogVideoX-5b'; expected is a section"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipe_is_named_before_any_work(places: Path, case: str) -> None:
    """A slip of the pen must cost a second and be told by its key, not found by a training that went wrong."""
    old, new, message = WRONG[case]
    text = EXAMPLE.replace("[lora]\n", "") if "[lora]" in new else EXAMPLE
    assert old in text
    with pytest.raises((errors.TrainingError, errors.GeometryError), match=message) as caught:
        recipes.load_recipe(written(places, text.replace(old, new, 1)))
    assert "recipe.toml" in str(caught.value)


def test_missing_recipe_is_told(tmp_path: Path) -> None:
    """A name that was mistyped must be told as one."""
    with pytest.raises(errors.TrainingError, match="nowhere.toml cannot be read"):
        recipes.load_recipe(tmp_path / "nowhere.toml")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips of 9 frames and two of 5, 96 x 64, with captions."""
    chance = np.random.default_rng(0)
    for number in range(5):
        folder = tmp_path / "clips" / f"clip_{number}"
        folder.mkdir(parents=True)
        for frame in range(9 if number < 3 else 5):
            Image.fromarray(chance.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / f"{frame}.png")
        (tmp_path / "clips" / f"clip_{number}.txt").write_text(f"clip number {number}")
    return tmp_path / "clips"


@pytest.fixture
def train(tiny_pipelines: dict[str, Path], clips: Path, tmp_path: Path) -> Callable:
    """Train a recipe of `variant`, some lines of it changed; returns the exit status and the run's folder."""
    from accelerate.state import AcceleratorState

    def train(variant: str = "5b", name: str = "lora", mode: str = "lora", **training: object) -> tuple[int, Path]:
        values = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "precision": "no", "save_every": 2, **training}
        sections = {
            "mode": mode,
            "model": {"path": str(tiny_pipelines[variant])},
            "dataset": {"folder": str(clips), "frames": 9, "width": 96, "height": 64, "fps": 0, "shorter": "bucket"},
            "lora": {"rank": 2, "alpha": 3.0},
            "training": values,
            "output": {"folder": "out", "name": name},
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(sections))
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            return headless.train_recipe(path), tmp_path / "out" / name
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)

    return train


@pytest.mark.parametrize("variant", ["5b", "1.5-5B-I2V"])
def test_recipe_becomes_a_lora(
    train: Callable, tiny_pipelines: dict[str, Path], capsys: pytest.CaptureFixture, variant: str
) -> None:
    """The whole way from clips to a LoRA that the pack's own node applies, and that changes the model."""
    status, folder = train(variant)
    said = capsys.readouterr().out
    assert status == 0 and re.search(r"Step 4 of 4: loss [\d.]+, [\d.]+ samples/s", said) and str(folder) in said
    names = {
        "log.csv",
        "loss.png",
        "step-000004",
        "lora.safetensors",
        "lora-000002.safetensors",
        "lora-000004.safetensors",
    }
    assert {path.name for path in folder.iterdir()} == names
    assert Image.open(folder / "loss.png").size[0] > 300
    model = load_model(tiny_pipelines[variant], "fp32")
    patched, report = apply_lora(model, folder / "lora.safetensors", 1.0)
    assert report.layers == 8 and report.ranks == (2,) and not report.unmatched
    weights = open_lora(folder / "lora.safetensors")[0]
    assert all(tensor.abs().max() > 0 for tensor in weights.values())


def test_whole_transformer_is_trained_and_loads(train: Callable, tiny_pipelines: dict[str, Path]) -> None:
    """mode full must give a transformer that both diffusers and the loader take, and another one than before."""
    from diffusers import CogVideoXTransformer3DModel

    status, folder = train(mode="full", gradient_checkpointing=False)
    assert status == 0
    theirs = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
    before = CogVideoXTransformer3DModel.from_pretrained(tiny_pipelines["5b"] / "transformer").state_dict()
    ours = load_model(folder / "transformer", "fp32").model.diffusion_model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(not torch.equal(before[name], theirs[name]) for name in before if "attn1.to_q" in name)


def test_asked_to_stop_it_goes_on_later(train: Callable, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    """A machine that is shut down, or Ctrl-C, must cost no step, and the LoRA must be the one of a run in one go."""
    _, whole = train(name="whole")
    step = headless._Progress.step

    def step_and_stop(self: object, done: int, loss: float) -> None:
        step(self, done, loss)
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(headless._Progress, "step", step_and_stop)
        status, folder = train(name="stopped")
    said = capsys.readouterr().out
    assert status == 130 and "Stopped at step 3: run it again to go on." in said
    assert not (folder / "stopped.safetensors").exists()
    assert train(name="stopped")[0] == 0
    both = [open_lora(f / f"{f.name}.safetensors")[0] for f in (whole, folder)]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())


def test_clips_of_two_lengths_take_turns(train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is of one shape, and no clip is left out for its length."""
    clips = tmp_path / "clips"
    for number in (3, 4):  # 5 frames are bucketed to 1 only by 8k + 1: ask for 5 as well
        assert len(list((clips / f"clip_{number}").iterdir())) == 5
    shapes, draw = [], headless.draw_batch

    def drawn(samples: list, *rest: object) -> object:
        shapes.append({tuple(sample["latents"].shape) for sample in samples})
        return draw(samples, *rest)

    sizes = recipes.Recipe.dataset_spec
    both = {"choices": ((96, 64, 5),)}
    spec = lambda self, is_image: recipes.dataclasses.replace(sizes(self, is_image), **both)  # noqa: E731
    monkeypatch.setattr(recipes.Recipe, "dataset_spec", spec)
    monkeypatch.setattr(headless, "draw_batch", drawn)
    assert train(steps=6)[0] == 0
    assert all(len(kinds) == 1 for kinds in shapes)
    assert {next(iter(kinds))[1] for kinds in shapes} == {3, 2}


def test_recipe_that_the_model_cannot_follow(train: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the dataset is encoded, which may take hours."""
    monkeypatch.setattr(headless, "build_dataset", None)
    with pytest.raises(errors.TrainingError, match="made for inpaint"):
        train("Fun-5b-InP")
    with pytest.raises(errors.TrainingError, match="multiple of 4"):
        train(batch_size=6, accumulate=4)
