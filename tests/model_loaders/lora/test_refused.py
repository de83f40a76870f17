"""What of a LoRA does not fit, and what is refused before any work."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.model_loaders.lora import apply as lora
from cogvideox.model_loaders.lora.report import misfit_message
from cogvideox.model_loaders.lora.stock import enable_stock_lora_nodes
from cogvideox.sockets.model import CogVideoXModel
from cogvideox.tests.lora_files import (
    ATTENTION,
    Files,
    Subject,
    adapter_header,
    assert_weights,
    fused,
    random_factors,
    save,
    write_dialect,
)


@pytest.fixture(scope="module")
def subject(tiny_pipelines: dict[str, Path]) -> Subject:
    return Subject(tiny_pipelines["5b"])


def apply(model: ModelPatcher, path: Path, strength: float = 1.0) -> ModelPatcher:
    return lora.apply_lora(model, path, strength)[0]


def test_hooks_leave_other_models_alone() -> None:
    """A wrapper that changes what other models' LoRAs do would be a bug in somebody else's workflow."""
    import comfy.lora
    import comfy.sd

    enable_stock_lora_nodes(CogVideoXModel, logging.warning)
    once = comfy.lora.load_lora, comfy.lora.model_lora_keys_unet, comfy.sd.load_lora_for_models
    enable_stock_lora_nodes(CogVideoXModel, logging.warning)
    assert once == (comfy.lora.load_lora, comfy.lora.model_lora_keys_unet, comfy.sd.load_lora_for_models)
    up, down = torch.ones(3, 2), torch.ones(2, 3)
    # a model of another family with a layer of the same name
    files = {"transformer_blocks.0.attn1.to_q.lora_A.weight": down, "transformer_blocks.0.attn1.to_q.lora_B.weight": up}
    key_map = {"transformer_blocks.0.attn1.to_q": "diffusion_model.other.weight"}
    patches = comfy.lora.load_lora(files, key_map)
    assert list(patches) == ["diffusion_model.other.weight"] and patches.popitem()[1].weights[2] is None


def test_lora_of_an_image_model_on_a_text_model(subject: Subject, tmp_path: Path) -> None:
    """An image to video LoRA works on the text to video subject.model, but for the layer that takes the image."""
    image_shapes = subject.shapes | {"patch_embed.proj": (64, 32, 2, 2)}
    factors = random_factors(image_shapes, (*ATTENTION, "patch_embed.proj"))
    files, _, _ = write_dialect("diffusers", factors)
    files["transformer.ofs_embedding.linear_1.lora_A.weight"] = torch.ones(4, 32)
    files["transformer.ofs_embedding.linear_1.lora_B.weight"] = torch.ones(32, 4)
    patched, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files), 1.0)
    del factors["patch_embed.proj"]
    assert_weights(patched, fused(subject.weights, factors, 1.0))
    assert report.matched == 2 * len(ATTENTION) and len(report.skipped) == 2
    assert "[64, 128] against this model's [64, 64]" in report.message()


def test_unmatched_keys_are_named(subject: Subject, tmp_path: Path) -> None:
    """A LoRA that fits in part is applied; what was lost must be seen."""
    files, _, _ = write_dialect("diffusers", subject.factors(ATTENTION))
    files |= {f"transformer.perceiver.{i}.to_q.lora_A.weight": torch.ones(4, 64) for i in range(5)}
    files["lora_te_encoder_block_0.lora_up.weight"] = torch.ones(3, 4)
    _, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files), 1.0)
    text = report.message()
    assert "16 of 22 keys matched: 8 layers, LoRA, rank 4, scale 1 (the file has no alpha)." in text
    assert "Not in this model: transformer.perceiver.0.to_q.lora_A.weight" in text and "2 more" in text
    assert "Skipped 1 for a text encoder: lora_te_encoder_block_0.lora_up.weight" in text
    assert len(report.details().splitlines()) == 6


OTHERS = {
    "Wan": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
    "Flux": "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    "Flux or HunyuanVideo": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "Stable Diffusion 3": "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight",
    "Stable Diffusion": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
    "LTX-Video or PixArt": "diffusion_model.transformer_blocks.0.attn2.to_q.lora_A.weight",
}


@pytest.mark.parametrize("family", OTHERS)
def test_loras_of_other_models_are_named(subject: Subject, tmp_path: Path, family: str) -> None:
    """Nothing matched is the commonest mistake; silence costs the user a run and a search."""
    path = save(tmp_path / "l.safetensors", {OTHERS[family]: torch.ones(4, 64)})
    with pytest.raises(UserError, match=f"looks like a LoRA for {family}: none of its 1 keys"):
        apply(subject.model, path)


@pytest.mark.parametrize(
    "key",
    [
        "transformer.single_transformer_blocks.0.proj_out.lora_A.weight",
        "lora_unet_single_transformer_blocks_0_proj_out.lora_down.weight",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "controlnet.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "text_encoder.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "double_blocks.0.q.lora_A.weight",
        "img_proj_out.lora_A.weight",
        "xtransformer_blocks.0.attn1.to_q.lora_A.weight",
        "_transformer_blocks.0.attn1.to_q.lora_A.weight",
    ],
)
def test_an_end_that_is_part_of_something_larger(subject: Subject, tmp_path: Path, key: str) -> None:
    """The layer of another network, of which only the last words are a layer's here, would change the wrong weight."""
    path = save(tmp_path / "l.safetensors", {key: torch.ones(4, 64)})
    with pytest.raises(UserError, match="none of its 1 keys|None of the 1 keys|for a text encoder only"):
        apply(subject.model, path)


def test_zero_matches_say_why(subject: Subject, tmp_path: Path) -> None:
    """The other reasons for a LoRA that does nothing."""

    def reason(files: Files) -> str:
        with pytest.raises(UserError) as caught:
            apply(subject.model, save(tmp_path / "l.safetensors", files))
        return str(caught.value)

    assert "is empty" in reason({})
    text = reason({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 64)})
    assert "is for a text encoder only" in text
    assert "looks like a CogVideoX-like transformer, not a LoRA" in reason(dict(subject.weights))
    assert "not a LoRA" in reason({"hello": torch.ones(1)})
    text = reason({"transformer.layers_of_mine.0.lora_A.weight": torch.ones(4, 64)})
    assert "None of the 1 keys" in text and "layers_of_mine" in text


def test_lora_of_another_size_is_refused(subject: Subject, tmp_path: Path) -> None:
    """2b and 5b share every name; ComfyUI would log an error per layer and sample without the LoRA."""
    wide = {layer: (96, 96) for layer in ATTENTION}
    files, _, _ = write_dialect("diffusers", random_factors(wide, ATTENTION))
    message = r"to_[qkv] is \[96, 96\] in the LoRA and \[64, 64\] in the model \(7 more do not fit\)"
    path = save(tmp_path / "l.safetensors", files)
    with pytest.raises(UserError, match=message):
        apply(subject.model, path)
    import comfy.sd

    with pytest.raises(UserError, match=message):  # in the stock nodes as well
        comfy.sd.load_lora_for_models(subject.model, None, files, 1.0, 0)
    one_wrong = write_dialect("diffusers", random_factors(subject.shapes | {ATTENTION[3]: (96, 64)}, ATTENTION))[0]
    with pytest.raises(UserError, match="attn1.to_out.0 is"):
        apply(subject.model, save(tmp_path / "m.safetensors", one_wrong))
    assert_weights(subject.model, subject.weights)


def test_the_official_sizes_are_named() -> None:
    """The widths of 2b and 5b are known: say so instead of two numbers."""
    text = misfit_message(
        "x", {"diffusion_model.transformer_blocks.0.attn1.to_q": ((1920, 1920), (3072, 3072))}, (1920, 3072), []
    )
    assert "trained for a model of the width of CogVideoX-2b; this model has the width of CogVideoX-5b" in text


def test_damaged_loras_are_refused(subject: Subject, tmp_path: Path) -> None:
    """NaN would turn the video black an hour later; half a pair would crash with a KeyError."""
    good, _, _ = write_dialect("diffusers", subject.factors(ATTENTION))
    first = f"transformer.{ATTENTION[0]}"

    def assert_refused(message: str, files: Files, header: dict | None = None) -> None:
        with pytest.raises(UserError, match=message):
            apply(subject.model, save(tmp_path / "l.safetensors", files, header))

    for bad in (float("nan"), float("inf")):
        broken = good[f"{first}.lora_A.weight"].clone()
        broken[0, 0] = bad
        assert_refused("NaN", good | {f"{first}.lora_A.weight": broken})
        assert_refused("NaN", good | {f"{first}.alpha": torch.tensor(bad)})
    assert_refused("NaN", good | {f"{first}.alpha": torch.ones(3)})
    assert_refused("of a dtype", good | {f"{first}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)})
    assert_refused("lacks lora_down", {key: t for key, t in good.items() if key != f"{first}.lora_A.weight"})
    assert_refused(
        "a lora_down of rank 3 and a lora_up of rank 4", good | {f"{first}.lora_A.weight": torch.ones(3, 64)}
    )
    assert_refused("shape", good | {f"{first}.lora_A.weight": torch.ones(4)})
    assert_refused("3 values in dora_scale", good | {f"{first}.dora_scale": torch.ones(3, 1)})
    assert_refused("3 values in magnitude", good | {f"{first}.lora_magnitude_vector": torch.ones(3)})
    assert_refused("two values for one part", good | {f"{ATTENTION[0]}.lora_A.weight": torch.ones(4, 64)})
    assert_refused("not a finite number", good, adapter_header({"r": 4, "lora_alpha": "many"}))
    assert_refused("not a finite number", good, {"ss_network_alpha": "1e999"})
    assert_refused("does not read", good, adapter_header({"lora_alpha": 4, "alpha_pattern": {"(a+)+$": 1}}))
    assert_refused("not a table", good, adapter_header({"lora_alpha": 4, "alpha_pattern": [1]}))
    assert_refused("does not read", good | {f"{first}.lora_mid.weight": torch.ones(4, 4, 1, 1)})
    whole = save(tmp_path / "l.safetensors", good).read_bytes()
    (tmp_path / "l.safetensors").write_bytes(whole[:-10])
    with pytest.raises(UserError, match="cut short"):
        apply(subject.model, tmp_path / "l.safetensors")
    assert_weights(subject.model, subject.weights)


def test_other_models_are_refused(subject: Subject, tmp_path: Path) -> None:
    """The node is for CogVideoX; another MODEL belongs to the stock loader."""
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", subject.factors(ATTENTION))[0])
    another_model: Any = type("Flux", (), {"model": object()})()
    with pytest.raises(UserError, match="not a CogVideoX model"):
        apply(another_model, path)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1000.0])
def test_senseless_strengths_are_refused(subject: Subject, tmp_path: Path, strength: float) -> None:
    """Linked values are not held to a widget's limits."""
    with pytest.raises(UserError, match="strength"):
        apply(subject.model, tmp_path / "none.safetensors", strength)
