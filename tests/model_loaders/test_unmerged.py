"""Models that were saved with a LoRA beside their weights: named for what they are, before the prompt runs."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.model_loaders.checkpoints import check_component
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests import layout_files as layouts

Files = dict[str, torch.Tensor]
ATTENTION = re.compile(r"\.(to_[qkv]|q|conv_in\.conv|linear_1)\.(weight|bias)$")


def weights_of(folder: Path, component: str) -> Files:
    merged: Files = {}
    for file in sorted((folder / component).glob("*.safetensors")):
        merged |= load_file(file)
    return merged


def in_peft(weights: Files, parts: tuple[str, ...] = ("lora_A.default.weight", "lora_B.default.weight")) -> Files:
    """peft's state dict: the layer itself is called base_layer, and the adapter's parts stand beside it."""
    files: Files = {}
    for name, weight in weights.items():
        found = ATTENTION.search(name)
        files[f"{name[: found.start(2)]}base_layer.{found[2]}" if found else name] = weight
        if found and found[2] == "weight":
            files |= {f"{name[: found.start(2)]}{part}": torch.zeros(4, 4) for part in parts}
    return layouts.prefixed("base_model.model.", files)


def without_base_layer(weights: Files) -> Files:
    """A program that puts the LoRA's tensors among the model's own names."""
    return {name.replace("base_layer.", ""): weight for name, weight in in_peft(weights).items()}


def in_sat(weights: Files) -> Files:
    """The state that SAT's trainer saves: the fused layer is called original."""
    files: Files = {}
    for name, weight in layouts.sat_names(weights).items():
        layer, _, kind = name.rpartition(".")
        if layer.endswith(("attention.query_key_value", "attention.dense")):
            files[f"model.diffusion_model.{layer}.original.{kind}"] = weight
            files |= {f"model.diffusion_model.{layer}.matrix_{letter}.0": torch.zeros(4, 4) for letter in "AB"}
        else:
            files[f"model.diffusion_model.{name}"] = weight
    return files


WRITERS: dict[str, Callable[[Files], Files]] = {
    "peft": in_peft,
    "peft, LoHa": lambda weights: in_peft(weights, ("hada_w1_a.default", "hada_w1_b.default")),
    "peft, DoRA": lambda weights: in_peft(weights, ("lora_A.x.weight", "lora_magnitude_vector.x.weight")),
    "without base_layer": without_base_layer,
    "old diffusers": lambda weights: in_peft(weights, ("lora.down.weight", "lora.up.weight")),
    "SAT": in_sat,
}
MESSAGE = "that was saved with a LoRA beside its weights: .* is not merged .*merge_and_unload"


@pytest.mark.parametrize("writer", WRITERS)
def test_transformer(tiny_pipelines: dict[str, Path], tmp_path: Path, writer: str) -> None:
    """Unknown tensors and "download again" send the user for the same file once more."""
    shutil.copy(tiny_pipelines["5b"] / "transformer" / "config.json", tmp_path)
    files = WRITERS[writer](weights_of(tiny_pipelines["5b"], "transformer"))
    path = layouts.write_safetensors(tmp_path / "a.safetensors", files)
    for chosen in (path, tmp_path):
        with pytest.raises(UserError, match=f"is a CogVideoX transformer {MESSAGE}"):
            check_component(chosen, "transformer")
    with pytest.raises(UserError, match=MESSAGE):
        load_model(path)


@pytest.mark.parametrize("component", ["vae", "text_encoder", "controlnet"])
def test_other_components(tiny_pipelines: dict[str, Path], tmp_path: Path, component: str) -> None:
    """Every component can have a LoRA."""
    folder = tiny_pipelines["5b"]
    if component == "controlnet":
        folder = write_controlnet(tmp_path / "controlnet", "5b", dtype=torch.float32).parent
    files = in_peft(weights_of(folder, component))
    assert any("lora_A" in name for name in files)
    with pytest.raises(UserError, match=MESSAGE):
        check_component(layouts.write_safetensors(tmp_path / "a.safetensors", files), component)


def test_a_lora_alone_is_called_that(tmp_path: Path) -> None:
    """The other mistake: the LoRA's file in the place of the model's."""
    for key in ("a.layers.0.attention.query_key_value.matrix_A.0", "b.lora.down.weight", "lora_unet__b.lora_up.weight"):
        path = layouts.write_safetensors(tmp_path / "a.safetensors", {key: torch.zeros(4, 4)})
        with pytest.raises(UserError, match="looks like a LoRA, not a CogVideoX transformer"):
            check_component(path, "transformer")


def test_the_other_component_s_lora(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """In a file with several components, the LoRA beside T5 does not stop the transformer."""
    folder = tiny_pipelines["5b"]
    files = layouts.prefixed("transformer.", weights_of(folder, "transformer"))
    files |= layouts.prefixed("text_encoder.", without_base_layer(weights_of(folder, "text_encoder")))
    files = {name.replace("base_model.model.", ""): weight for name, weight in files.items()}
    path = layouts.write_safetensors(tmp_path / "a.safetensors", files)
    check_component(path, "transformer")
    with pytest.raises(UserError, match=f"a T5 text encoder {MESSAGE}"):
        check_component(path, "text_encoder")
