"""CogVideoX-nano loaded where it lies, from parts that its pipelines share: as from a complete folder of its own."""

import shutil
from pathlib import Path

import pytest
import torch

from cogvideox.host import toy
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders.file_stamps import stamp_of
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.nano import folders

PARTS = ("transformer", "vae", "text_encoder")


@pytest.mark.parametrize("variant", toy.MODELS)
def test_parts_are_those_of_a_complete_pipeline(tmp_path: Path, variant: str) -> None:
    """The assembled copy is what diffusers reads; scale, schedule and prompt length come from the parts beside."""
    complete, shared = folders.write_pipeline(tmp_path / variant, variant), toy.WEIGHTS / variant
    checkpoints.require_pipeline(shared)
    for part in PARTS:
        theirs, ours = checkpoints.open_component(complete, part), checkpoints.open_component(shared, part)
        assert (ours.config, ours.siblings, ours.hint) == (theirs.config, theirs.siblings, theirs.hint)
        assert set(ours.siblings) == {*PARTS, "scheduler"}
        assert ours.state_dict.keys() == theirs.state_dict.keys()
        assert all(torch.equal(ours.state_dict[name], value) for name, value in theirs.state_dict.items())


def test_a_config_of_its_own_is_read_with_the_shared_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2b's schedule and scale differ from 5b's, with the same VAE."""
    weights = Path(shutil.copytree(toy.WEIGHTS, tmp_path / "weights"))
    monkeypatch.setattr(toy, "WEIGHTS", weights)
    for part, file, old, new in (
        ("vae", "config.json", '"scaling_factor": 0.7', '"scaling_factor": 1.15258426'),
        ("scheduler", "scheduler_config.json", '"snr_shift_scale": 1.0', '"snr_shift_scale": 3.0'),
    ):
        text = (weights / part / file).read_text("utf-8")
        (weights / "5b" / part).mkdir()
        (weights / "5b" / part / file).write_text(text.replace(old, new), "utf-8")
        assert old in text
    before = stamp_of(weights / "5b")
    siblings = checkpoints.open_component(weights / "5b", "transformer").siblings
    assert siblings["vae"]["scaling_factor"] == 1.15258426 and siblings["scheduler"]["snr_shift_scale"] == 3.0
    vae = checkpoints.open_component(weights / "5b", "vae")
    assert vae.state_dict and vae.config is not None and vae.config["scaling_factor"] == 1.15258426
    (weights / "vae" / "diffusion_pytorch_model.safetensors").touch()
    assert stamp_of(weights / "5b") != before


def test_its_prompt_says_what_it_does_not_know() -> None:
    """A prompt of the model cards' kind is read letter by letter, and nothing of it can be seen in the video."""
    tokenizer = load_text_encoder(toy.WEIGHTS / "5b").tokenizer
    assert tokenizer.max_tokens == 32
    assert tokenizer.notes("A big yellow star moves to the right on a gradient from blue to purple.") == []
    assert tokenizer.notes("") == []
    (note,) = tokenizer.notes("a red dragon flies, a dragon")
    assert "does not know “dragon”, “flies”. It knows coloured shapes" in note
    lost, unknown = tokenizer.notes("one two three four five six seven " * 30)
    assert "its end was left out" in lost and "and 2 more words" in unknown


def test_a_users_copy_is_not_called_the_toy(tmp_path: Path) -> None:
    """Someone's fine-tune of it knows other words and sizes."""
    copy = folders.write_pipeline(tmp_path / "5b", "5b")
    assert load_text_encoder(copy).tokenizer.notes("a red dragon") == []
    for path, is_told in ((copy, False), (toy.WEIGHTS / "5b", True)):
        wrappers = load_model(path).wrappers["outer_sample"]
        assert list(wrappers) == (["cogvideox toy"] if is_told else []) + ["cogvideox"]
