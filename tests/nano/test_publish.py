"""What is written of CogVideoX-nano is what the loaders read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file

from cogvideox.host import toy
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nano import control_net, publish, train_lora, transformer
from cogvideox.system.published_files import SUMS, sums_of
from cogvideox.training.recipe import load_recipe
from cogvideox.transformer.dit import CogVideoXDiT

FAMILIES = {
    "5b": "CogVideoX-5b",
    "2b": "CogVideoX-2b",
    "5b-I2V": "CogVideoX-5b-I2V",
    "Fun-5b-InP": "CogVideoX-Fun-5b-InP",
    "Fun-5b-Control": "CogVideoX-Fun-5b-Control",
    "1.5-5B": "CogVideoX1.5-5B",
    "1.5-5B-I2V": "CogVideoX1.5-5B-I2V",
}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the published weights, which publishing writes to and the loaders read."""
    copy = Path(shutil.copytree(toy.WEIGHTS, tmp_path / "weights"))
    monkeypatch.setattr(toy, "WEIGHTS", copy)
    monkeypatch.setattr(publish, "WEIGHTS", copy)
    return copy


def test_own_configs_are_those_that_the_loaders_read(weights: Path) -> None:
    """2b sampled with 5b's schedule, and 1.5's images scaled as 5b's, would not be what was trained."""
    found = {}
    for variant in ("2b", "5b", "1.5-5B-I2V"):
        shutil.copytree(weights / "5b", weights / f"of {variant}")
        publish.write_own_configs(weights / f"of {variant}", variant)
        siblings = checkpoints.open_component(weights / f"of {variant}", "transformer").siblings
        found[variant] = siblings["scheduler"]["snr_shift_scale"], siblings["vae"]["invert_scale_latents"]
        shared: Any = AutoencoderKLCogVideoX.load_config(weights / "vae")
        assert siblings["vae"]["scaling_factor"] == shared["scaling_factor"]
        assert checkpoints.open_component(weights / f"of {variant}", "vae").state_dict
    assert found == {"2b": (3.0, False), "5b": (1.0, False), "1.5-5B-I2V": (1.0, True)}


@pytest.mark.parametrize("variant", transformer.CONFIGS)
def test_every_variant_is_loaded_as_its_family(weights: Path, variant: str) -> None:
    """A toy that is taken for another family is sampled wrong; the weights are those that a stage leaves."""
    torch.manual_seed(0)
    trained = CogVideoXDiT(**transformer.CONFIGS[variant]).state_dict()
    (weights.parent / "work" / variant).mkdir(parents=True)
    torch.save(trained, weights.parent / "work" / variant / "trained.pt")
    publish.publish(weights.parent / "work")
    model: Any = load_model(weights / variant, "fp32").model
    assert model.model_config.family.name == FAMILIES[variant]
    loaded = model.diffusion_model.state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in trained.items())
    assert (weights / SUMS).read_text("utf-8") == sums_of(weights, toy.published_files(weights))
    # what this work folder does not hold stays
    assert {path.name for path in weights.iterdir()} >= {*toy.MODELS, *toy.SHARED}
    assert isinstance(CogVideoXTransformer3DModel.from_pretrained(weights / variant / "transformer"), torch.nn.Module)


def test_a_control_net_begins_as_its_model_and_is_loaded(weights: Path) -> None:
    """Until it has learned something it adds nothing; its files are those of published control nets."""
    torch.manual_seed(0)
    base = CogVideoXDiT(**transformer.CONFIGS["5b"])
    controlled = control_net.ControlledTransformer(base)
    controlled.guide = torch.rand(1, 9, 3, 32, 32) * 2 - 1
    x, text = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 32, 64)
    with torch.no_grad():
        plain = base(x, torch.tensor([400]), text)
        assert torch.equal(controlled(x, torch.tensor([400]), text), plain)
        controlled.net.out_projectors[0].weight.normal_()
        changed = controlled(x, torch.tensor([400]), text)
    assert not torch.equal(changed, plain)
    trained = {name: parameter for name, parameter in controlled.net.named_parameters()}
    publish.write_control_net(weights / "net", trained)
    net: Any = load_controlnet(weights / "net", "fp32").patcher.model
    assert all(torch.equal(net.state_dict()[name], tensor.half().float()) for name, tensor in trained.items())


def test_a_lora_keeps_its_header(weights: Path) -> None:
    """Its alpha stands there: without it the LoRA would be applied with another strength than it was trained with."""
    trained = {"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.randn(4, 8)}
    save_file(trained, weights / "trained.safetensors", metadata={"alpha": "3"})
    publish.write_lora(weights / "pink.safetensors", weights / "trained.safetensors")
    with safe_open(weights / "pink.safetensors", "pt") as file:
        assert file.metadata() == {"alpha": "3"}
        for name, tensor in trained.items():
            assert torch.equal(file.get_tensor(name), tensor.half())


def test_the_loras_recipe_is_one(tmp_path: Path) -> None:
    """A key that a recipe no longer has, or a path beside the work folder, would show after the models are trained."""
    (tmp_path / "pink.json").write_text(json.dumps(train_lora.RECIPE), "utf-8")
    recipe = load_recipe(tmp_path / "pink.json")
    assert recipe.run_folder.resolve() == tmp_path / train_lora.NAME
    assert recipe.dataset.cache is not None and recipe.dataset.cache.parent.resolve() == tmp_path
