"""Files with wrong contents are refused when the prompt is queued, as far as headers, configs and tokenizers show."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import load_file

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.nodes import controlnet, load
from cogvideox.sockets import tokenizer
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.support import validated

Files = dict[str, torch.Tensor]
T5 = "encoder.block.0.layer.1.DenseReluDense."


@pytest.fixture
def pipeline(tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline that can be written to, as ComfyUI's loaders find it under its name."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], set()))
    return Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "mine"))


def rewrite(folder: Path, change: Callable[[Files], Files | None]) -> None:
    """All tensors of a component in one file, with a change."""
    merged: Files = {}
    for file in sorted(folder.glob("*.safetensors")):
        merged |= load_file(file)
        file.unlink()
    for index in folder.glob("*.index.json"):
        index.unlink()
    layouts.write_safetensors(folder / "model.safetensors", change(merged) or merged)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(name: str) -> Callable[[Files], Files | None]:
    return lambda files: {key: tensor for key, tensor in files.items() if key != name}


def without_embedding(files: Files) -> Files:
    return {name: tensor for name, tensor in files.items() if "shared" not in name and "embed_tokens" not in name}


def narrow(files: Files) -> Files:
    """A T5 of half the width."""
    return {
        name: tensor[..., : tensor.shape[-1] // 2].clone() if "final_layer_norm" not in name else tensor[:16].clone()
        for name, tensor in files.items()
    }


T5_CHANGES: dict[str, tuple[Callable[[Files], Files | None], str]] = {
    "without a layer": (without(f"{T5}wi_1.weight"), "missing encoder.block.0.layer.1.DenseReluDense.wi_1.weight"),
    "a tensor too many": (lambda files: files | {f"{T5}wi_2.weight": torch.zeros(2)}, "unknown .*wi_2.weight"),
    "another shape": (lambda files: files | {f"{T5}wi_0.weight": torch.zeros(3, 3)}, "of another shape .*wi_0.weight"),
    "no embedding": (
        lambda f: {k: t for k, t in f.items() if "embed" not in k and "shared" not in k},
        "has no embedding",
    ),
    "another width": (narrow, "has width 16; the transformer reads width 32"),
}


@pytest.mark.parametrize("name", T5_CHANGES)
def test_t5(pipeline: Path, name: str) -> None:
    """It was found only while the node ran."""
    change, words = T5_CHANGES[name]
    (pipeline / "text_encoder" / "config.json").unlink()
    rewrite(pipeline / "text_encoder", change)
    told = validated(load.CogVideoXLoadTextEncoder, text_encoder_name="mine", weight_dtype="default")
    with pytest.raises(UserError, match=words) as caught:
        load_text_encoder(pipeline)
    assert told == f"text_encoder_name: {caught.value}"
    assert validated(load.CogVideoXLoadPipeline, folder="mine", weight_dtype="default") == f"folder: {caught.value}"


def without_end_token(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("</s>", "</x>"))


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", "mod'), "is not a tokenizer"),
    "another kind": (lambda f: change_json(f / "tokenizer.json", normalizer={"type": "NFC"}), "is not T5's tokenizer"),
    "no end token": (without_end_token, "is not T5's tokenizer: it has no </s>"),
    "of a larger vocabulary": (lambda f: (f / "tokenizer.json").unlink(), "its tokenizer has 32100"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer(pipeline: Path, name: str) -> None:
    change, words = TOKENIZERS[name]
    for node, entry in ((load.CogVideoXLoadTextEncoder, "text_encoder_name"), (load.CogVideoXLoadPipeline, "folder")):
        assert validated(node, **{entry: "mine", "weight_dtype": "default"}) is True
    change(pipeline / "tokenizer")
    told = validated(load.CogVideoXLoadTextEncoder, text_encoder_name="mine", weight_dtype="default")
    with pytest.raises(UserError, match=words) as caught:
        load_text_encoder(pipeline)
    assert told == f"text_encoder_name: {caught.value}"
    assert validated(load.CogVideoXLoadPipeline, folder="mine", weight_dtype="default") == f"folder: {caught.value}"


def test_a_tokenizer_is_read_once(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI asks for each input of each prompt, and T5's own takes a tenth of a second."""
    read: list[Path] = []
    whole = tokenizer._read_tokenizer
    monkeypatch.setattr(tokenizer, "_read_tokenizer", lambda path: read.append(path) or whole(path))
    for _ in range(3):
        assert validated(load.CogVideoXLoadTextEncoder, text_encoder_name="mine", weight_dtype="default") is True
    assert read == [pipeline / "tokenizer" / "tokenizer.json"]


@pytest.mark.parametrize(
    ("entry", "value"), [("num_layers", 3), ("in_channels", 32), ("time_embed_dim", 8), ("num_attention_heads", 5)]
)
def test_a_transformer_s_config(pipeline: Path, entry: str, value: object) -> None:
    """A config of another model beside the weights."""
    change_json(pipeline / "transformer" / "config.json", **{entry: value})
    told = str(validated(load.CogVideoXLoadModel, model_name="mine", weight_dtype="default"))
    assert told.startswith("model_name: ") and "do not belong together" in told
    whole = str(validated(load.CogVideoXLoadPipeline, folder="mine", weight_dtype="default"))
    assert whole == told.replace("model_name", "folder", 1)


def test_a_transformer_of_no_known_size(pipeline: Path) -> None:
    """Without a config.json, and of no official size."""
    (pipeline / "transformer" / "config.json").unlink()
    told = str(validated(load.CogVideoXLoadModel, model_name="mine", weight_dtype="default"))
    assert "has no config.json and not the size of an official checkpoint" in told


def test_a_vae_s_config(pipeline: Path) -> None:
    """ComfyUI may load the VAE only after sampling."""
    change_json(pipeline / "vae" / "config.json", block_out_channels=[64, 64, 64, 64])
    told = str(validated(load.CogVideoXLoadVAE, vae_name="mine", weight_dtype="default"))
    assert "do not belong together: first channels 64 against" in told


def test_a_control_net_s_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "controlnet", ([str(tmp_path)], set()))
    write_controlnet(tmp_path / "net", "5b")
    assert validated(controlnet.CogVideoXLoadControlNet, control_net_name="net") is True
    change_json(tmp_path / "net" / "config.json", num_layers=7)
    told = str(validated(controlnet.CogVideoXLoadControlNet, control_net_name="net"))
    assert "do not belong together: num_layers 7 against" in told
    (tmp_path / "net" / "config.json").unlink()
    told = str(validated(controlnet.CogVideoXLoadControlNet, control_net_name="net"))
    assert "has no config.json, and no CogVideoX model has its width" in told
