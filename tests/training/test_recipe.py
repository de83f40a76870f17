"""Recipes: what they say, what they are refused for, and whole trainings from them."""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox import errors
from cogvideox.devtools.paths import ROOT
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora.apply import apply_lora, open_lora
from cogvideox.training import checkpoint, example, headless, trainer
from cogvideox.training import recipe as recipes
from cogvideox.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("few_objects")
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
    """The file that users copy must load, from whatever folder it is in."""
    recipe = recipes.load_recipe(written(places, EXAMPLE))
    assert recipe.model.path == places / "CogVideoX-5b" and recipe.run_folder == places / "trained" / "my_lora"
    assert recipe.training.max_steps == 1000 and recipe.mode == "lora"


def test_example_lists_every_setting_with_its_default_and_help(places: Path) -> None:
    """What the comments call the default must be it, and no key may be left for users to guess."""
    assert EXAMPLE == example.example_recipe(), "write it again: python -m cogvideox.training.example"
    elsewhere = ("vae", "text_encoder", "cache")  # whose examples are paths that do not exist
    spelled = re.sub(rf"^# (?=(?!{'|'.join(elsewhere)})[a-z_]+[0-9]? = )", "", EXAMPLE, flags=re.MULTILINE)
    plain, full = (recipes.load_recipe(written(places, text)) for text in (EXAMPLE, spelled))
    assert spelled != EXAMPLE
    assert plain == full
    told = " ".join(EXAMPLE.replace("\n# ", " ").split())
    for owner in (recipes.ModelPart, recipes.DatasetPart, TrainConfig, recipes.OutputPart, recipes.Recipe):
        for name, field in recipes.keys_of(owner).items():
            if not dataclasses.is_dataclass(field.type):
                assert field.metadata["help"] and " ".join(field.metadata["help"].split()) in told, name
                assert re.search(rf"^(# )?{name} = ", EXAMPLE, re.MULTILINE), name


def test_every_training_setting_can_be_written(places: Path) -> None:
    """A setting that only the node has, or only a recipe, would make two trainings of one."""
    names = set(recipes.keys_of(TrainConfig))
    assert names == {field.name for field in dataclasses.fields(TrainConfig)}
    assert names == set(TrainConfig().recorded())


def test_json_says_the_same(places: Path) -> None:
    """For programs that write recipes: few languages write TOML."""
    sections = {
        "model": {"path": "CogVideoX-5b"},
        "dataset": {"folder": "clips"},
        "training": {"max_steps": 1000},
        "output": {"folder": "trained", "name": "my_lora"},
    }
    path = places / "recipe.json"
    path.write_text(json.dumps(sections))
    assert recipes.load_recipe(path) == recipes.load_recipe(written(places, EXAMPLE))


def test_python_3_10_reads_toml_with_a_package(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no tomllib, and was told to write JSON; the pack's requirements bring the package that became tomllib."""
    tomllib = pytest.importorskip("tomllib", reason="this Python has the package itself")
    recipe = recipes.load_recipe(written(places, EXAMPLE))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tomllib" else real(name))
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(errors.UserError, match="Python 3.10 needs the Python package tomli, which is not installed"):
        recipes.load_recipe(written(places, EXAMPLE))
    monkeypatch.setitem(sys.modules, "tomli", tomllib)
    assert recipes.load_recipe(written(places, EXAMPLE)) == recipe


STEPS = "max_steps = 1000"
WRONG = {
    "unknown key": (STEPS, "max_step = 1000", "there is no key training.max_step. Did you mean max_steps?"),
    "unknown section": ("[output]", "[outputs]", "there is no key outputs. Did you mean output?"),
    "former steps": (STEPS, "steps = 1000", "there is no key training.steps. It is called max_steps now."),
    "former batch_size": (STEPS, "batch_size = 4", "training.batch_size. It is called global_batch_size now."),
    "former accumulate": (STEPS, "accumulate = 2", "training.accumulate. Set micro_batch_size instead"),
    "former lora": ("[training]", "[lora]\nrank = 4\n[training]", "no key lora. Its keys .* into .training. now"),
    "missing key": ('folder = "trained"', "", "output.folder is missing"),
    "missing section": ('[model]\n{help}path = "CogVideoX-5b"', "", "model.path is missing"),
    "text for a number": (STEPS, 'max_steps = "1000"', 'training.max_steps is "1000": use a whole number'),
    "fraction": (STEPS, "max_steps = 10.5", "training.max_steps is 10.5: use a whole number from 1 to 1000000"),
    "truth for a number": (STEPS, "max_steps = true", "training.max_steps is true: use a whole number"),
    "too little": (STEPS, "max_steps = 0", "training.max_steps is 0: use a whole number from 1"),
    "too much": (STEPS, "caption_dropout = 1.5", "training.caption_dropout is 1.5: use a number from 0.0 to 1.0"),
    "no rate": (STEPS, "learning_rate = 0", "training.learning_rate is 0.0: use a number from 1e-08 to 1.0"),
    "NaN": (STEPS, "learning_rate = nan", "training.learning_rate is nan: use a number"),
    "infinity": (STEPS, "learning_rate = inf", "training.learning_rate is inf: use a number"),
    "choice": (STEPS, 'precision = "int4"', 'training.precision is "int4": use "default" or "bf16"'),
    "target": (STEPS, 'targets = ["to_x"]', 'training.targets is ..to_x..: use "attention", .*a list of "to_q"'),
    "targets by a wrong name": (STEPS, 'targets = "all"', 'training.targets is "all": use "attention", or'),
    "rank": (STEPS, "rank = 0", "training.rank is 0"),
    "no path": ('path = "CogVideoX-5b"', 'path = "elsewhere"', "model.path is .*elsewhere, which does not exist"),
    "empty path": ('folder = "clips"', 'folder = ""', 'dataset.folder is "": use a path'),
    "size": ('folder = "clips"', 'folder = "clips"\nwidth = 100', "100 x 480"),
    "name": ('name = "my_lora"', 'name = "a/b"', "output.name is 'a/b': use a name without folders"),
    "full in fp8": ("[model]", 'mode = "full"\n[model]\nweight_dtype = "int8"', "mode full, which trains in fp32"),
    "no TOML": ("[model]", "[model", "is not valid TOML"),
    "value for a section": ("[model]\n{help}path = ", "model = ", "model is 'CogVideoX-5b': use a section"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipe_is_named_before_any_work(places: Path, case: str) -> None:
    """A slip of the pen must cost a second and be told by its key, not found by a training that went wrong."""
    old, new, message = WRONG[case]
    old = old.replace("{help}", "# A pipeline's folder in diffusers' layout, or one transformer.\n")
    assert old in EXAMPLE
    with pytest.raises(errors.UserError, match=message) as caught:
        recipes.load_recipe(written(places, EXAMPLE.replace(old, new, 1)))
    assert "recipe.toml" in str(caught.value)


def test_missing_recipe_is_told(tmp_path: Path) -> None:
    """A name that was mistyped must be told as one."""
    with pytest.raises(errors.UserError, match="nowhere.toml cannot be read"):
        recipes.load_recipe(tmp_path / "nowhere.toml")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips of 9 frames and two of 5, 96 x 64, with captions."""
    rng = np.random.default_rng(0)
    for number in range(5):
        folder = tmp_path / "clips" / f"clip_{number}"
        folder.mkdir(parents=True)
        for frame in range(9 if number < 3 else 5):
            Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / f"{frame}.png")
        (tmp_path / "clips" / f"clip_{number}.txt").write_text(f"clip number {number}")
    return tmp_path / "clips"


@pytest.fixture
def train(tiny_pipelines: dict[str, Path], clips: Path, tmp_path: Path) -> Callable:
    """Train a recipe of `variant`, some lines of it changed; returns the exit status and the run's folder."""
    from accelerate.state import AcceleratorState

    def train(variant: str = "5b", name: str = "lora", mode: str = "lora", **training: object) -> tuple[int, Path]:
        values = {"max_steps": 4, "global_batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2}
        values |= {"precision": "fp32", "save_every": 2, **training}
        values |= {"rank": 2, "alpha": 3.0} if mode == "lora" else {}
        sections = {
            "mode": mode,
            "model": {"path": str(tiny_pipelines[variant])},
            "dataset": {"folder": str(clips), "frames": 9, "width": 96, "height": 64, "fps": 0, "shorter": "bucket"},
            "training": values,
            "output": {"folder": "out", "name": name},
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(sections))
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            return headless.train_recipe(path, print), tmp_path / "out" / name
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
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

    status, folder = train(mode="full", gradient_checkpointing=False)
    assert status == 0
    theirs = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
    before = CogVideoXTransformer3DModel.from_pretrained(tiny_pipelines["5b"] / "transformer").state_dict()
    ours = load_model(folder / "transformer", "fp32").model.diffusion_model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(not torch.equal(before[name], theirs[name]) for name in before if "attn1.to_q" in name)


def test_asked_to_stop_it_goes_on_later(
    train: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A machine that is shut down, or Ctrl-C, must cost no step, and the LoRA must be the one of a run in one go."""
    _, whole = train(name="whole")
    on_step = headless.ProgressLog.on_step

    def step_and_stop(self: headless.ProgressLog, done: int, loss: float) -> None:
        on_step(self, done, loss)
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(headless.ProgressLog, "on_step", step_and_stop)
        status, folder = train(name="stopped")
    said = capsys.readouterr().out
    assert status == 130 and "Stopped at step 3: run it again to go on." in said
    assert not (folder / "stopped.safetensors").exists()
    assert train(name="stopped")[0] == 0
    both = [open_lora(f / f"{f.name}.safetensors")[0] for f in (whole, folder)]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())


def test_two_runs_of_one_recipe(
    train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipelines: dict[str, Path]
) -> None:
    """The second is refused before it loads or encodes anything, and leaves alone what the first one has written."""
    monkeypatch.setattr(headless, "_load_transformer", lambda _: pytest.fail("loads the model"))
    with checkpoint.only_training(tmp_path / "out" / "lora"):
        (tmp_path / "out" / "lora" / "log.csv").write_text("of the first")
        with pytest.raises(errors.UserError, match="Another training writes to .*another name or output folder"):
            train()
    assert (tmp_path / "out" / "lora" / "log.csv").read_text() == "of the first"


def test_clips_of_two_lengths_take_turns(train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is of one shape, and no clip is left out for its length."""
    clips = tmp_path / "clips"
    for number in (3, 4):  # 5 frames are bucketed to 1 only by 8k + 1: ask for 5 as well
        assert len(list((clips / f"clip_{number}").iterdir())) == 5
    shapes, draw = [], trainer.draw_batch

    def drawn(samples: list, *rest: Any) -> Any:
        shapes.append({tuple(sample["latents"].shape) for sample in samples})
        return draw(samples, *rest)

    sizes = recipes.Recipe.dataset_spec
    spec = lambda self, is_image: dataclasses.replace(sizes(self, is_image), choices=((96, 64, 5),))  # noqa: E731
    monkeypatch.setattr(recipes.Recipe, "dataset_spec", spec)
    monkeypatch.setattr(trainer, "draw_batch", drawn)
    assert train(max_steps=6)[0] == 0
    assert all(len(kinds) == 1 for kinds in shapes)
    assert {next(iter(kinds))[1] for kinds in shapes} == {3, 2}


def test_recipe_that_the_model_cannot_follow(train: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the dataset is encoded, which may take hours."""
    monkeypatch.setattr(headless, "build_dataset", None)
    with pytest.raises(errors.UserError, match="made for inpaint"):
        train("Fun-5b-InP")
    with pytest.raises(errors.UserError, match="multiple of 4"):
        train(global_batch_size=6, micro_batch_size=4)


@pytest.mark.parametrize("value", ["\0", "~nobody/clips", "x" * 5000, "a/" * 3000, "\ud800"], ids=lambda text: text[:8])
@pytest.mark.parametrize("key", ["model.path", "dataset.folder", "output.folder", "dataset.cache"])
def test_paths_that_no_file_has(places: Path, key: str, value: str) -> None:
    """Errors of the system named neither the recipe nor the key."""
    tree = {"model": {"path": "CogVideoX-5b"}, "dataset": {"folder": "clips"}, "output": {"folder": "trained"}}
    section, name = key.split(".")
    tree[section][name] = value
    path = places / "recipe.json"
    path.write_text(json.dumps(tree))
    try:
        recipes.load_recipe(path)
    except errors.UserError as error:
        assert f"{path}: {key} is" in str(error) and len(str(error)) < 600
    else:
        assert key in ("output.folder", "dataset.cache")  # they are made, or refused, when they are needed


def test_recipes_without_end(places: Path) -> None:
    """Nesting ended in a RecursionError; a video under the name of a recipe was read into the memory."""
    with pytest.raises(errors.UserError, match="is not valid TOML: it nests too deeply"):
        recipes.load_recipe(written(places, "x = " + "[" * 5000 + "]" * 5000))
    with pytest.raises(errors.UserError, match="has more than 1048576 bytes"):
        recipes.load_recipe(written(places, "#" * (1 << 21)))
    for name in ("a/b", "a\\b", "a\u200bb", "clock$"):
        with pytest.raises(errors.UserError, match="output.name is"):
            recipes.load_recipe(written(places, EXAMPLE.replace('name = "my_lora"', f"name = '{name}'")))
