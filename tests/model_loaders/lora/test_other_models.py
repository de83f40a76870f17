"""LoRAs of which only a part fits: those of other models are refused, those of fine-tunes are applied."""

from collections.abc import Callable, Iterable
from pathlib import Path

import comfy.lora
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.model_loaders.lora import apply as lora
from cogvideox.tests.lora_files import (
    ATTENTION,
    Files,
    Subject,
    assert_weights,
    fused,
    random_factors,
    save,
    write_dialect,
)

FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
ATTENTION_PARTS = ("to_q", "to_k", "to_v", "to_out.0")
FLUX = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "ff_context.net.2", *FEED_FORWARD)


@pytest.fixture(scope="module")
def subject(tiny_pipelines: dict[str, Path]) -> Subject:
    return Subject(tiny_pipelines["5b"])


def blocks(count: int, parts: Iterable[str], stem: str = "transformer_blocks") -> list[str]:
    return [f"{stem}.{number}.{part}" for number in range(count) for part in parts]


def flat(layers: Iterable[str]) -> list[str]:
    return [layer.replace(".", "_") for layer in layers]


def pairs(subject: Subject, prefix: str, layers: Iterable[str]) -> Files:
    """The two factors of each layer, in the size of the model's own where it has one: no shape gives it away."""
    own = {name: shape for layer, shape in subject.shapes.items() for name in (layer, layer.replace(".", "_"))}
    files: Files = {}
    for layer in layers:
        same_block = layer.replace("transformer_blocks.2.", "transformer_blocks.0.")
        rows, columns = own.get(same_block, (64, 64))
        files |= {f"{prefix}{layer}.lora_A.weight": torch.ones(4, columns)}
        files |= {f"{prefix}{layer}.lora_B.weight": torch.ones(rows, 4)}
    return files


# name -> (prefix, layers of which some are named and sized as ours, what the message says)
OTHERS: dict[str, tuple[str, list[str], str]] = {
    "Flux": (
        "transformer.",
        blocks(2, FLUX) + blocks(2, ("attn.to_q", "proj_out", "proj_mlp"), "single_transformer_blocks") + ["proj_out"],
        r"another model \(Flux\): 36 of its 46 keys",
    ),
    "Flux, mostly its feed-forward": (
        "transformer.",
        blocks(2, ("attn.to_q", *FEED_FORWARD)),
        r"another model \(Flux, Stable Diffusion 3, Qwen-Image or HunyuanVideo\): 4 of its 12 keys",
    ),
    "HunyuanVideo, flat": (
        "lora_unet_",
        flat(blocks(2, ("attn.to_q", *FEED_FORWARD))),
        r"another model \(Flux, Stable Diffusion 3, Qwen-Image or HunyuanVideo\): 4 of its 12 keys",
    ),
    "Mochi, its attention alone": (
        "transformer.",
        blocks(3, [f"attn1.{part}" for part in ATTENTION_PARTS]),
        "a model of at least 3 transformer blocks; this model has 2",
    ),
    "Mochi": (
        "",
        blocks(3, [f"attn1.{part}" for part in (*ATTENTION_PARTS, "add_q_proj", "to_add_out")]),
        "a model of at least 3 transformer blocks, and looks like one for Mochi; this model has 2",
    ),
    "EasyAnimate, flat": (
        "lora_unet__",
        flat(blocks(3, [*(f"attn{n}.{part}" for n in (1, 2) for part in ATTENTION_PARTS), *FEED_FORWARD])),
        "a model of at least 3 transformer blocks",
    ),
    "no family that is known": (
        "diffusion_model.",
        blocks(2, ("mine.a", "mine.b", "mine.c", *FEED_FORWARD)),
        "another model: 12 of its 20 keys name layers that this model does not have, such as diffusion_model.transf",
    ),
}


def by_node(model: ModelPatcher, files: Files, folder: Path) -> object:
    return lora.apply_lora(model, save(folder / "l.safetensors", files), 1.0)


def by_stock_node(model: ModelPatcher, files: Files, _: Path) -> object:
    return comfy.sd.load_lora_for_models(model, None, files, 1.0, 0)


def by_hook(model: ModelPatcher, files: Files, _: Path) -> object:
    return comfy.lora.load_lora(files, comfy.lora.model_lora_keys_unet(model.model, {}))


@pytest.mark.parametrize("way", [by_node, by_stock_node, by_hook])
@pytest.mark.parametrize("name", OTHERS)
def test_another_model_s_is_refused(
    subject: Subject, tmp_path: Path, name: str, way: Callable[[ModelPatcher, Files, Path], object]
) -> None:
    """Flux has 5b's width: its feed-forward layers fitted, changed the video, and the rest stood in the report."""
    prefix, layers, words = OTHERS[name]
    files = pairs(subject, prefix, layers)
    with pytest.raises(UserError, match=f"was trained for {words}"):
        way(subject.model, files, tmp_path)
    assert_weights(subject.model, subject.weights)


def of_width(width: int, layers: list[str]) -> Files:
    return write_dialect("diffusers", random_factors(dict.fromkeys(layers, (width, width)), layers))[0]


def test_a_wider_and_deeper_model_of_ours(subject: Subject, tmp_path: Path) -> None:
    """A LoRA of 5b on 2b: the width says more than the number of blocks. A deeper one of this width has only that."""
    layers = blocks(5, [f"attn1.{part}" for part in ATTENTION_PARTS])
    with pytest.raises(UserError, match="layers of another size: .* is .96, 96. in the LoRA and .64, 64. in the"):
        by_node(subject.model, of_width(96, layers), tmp_path)
    with pytest.raises(UserError, match="of at least 5 transformer blocks; this model has 2. Choose a LoRA for this"):
        by_node(subject.model, of_width(64, layers), tmp_path)


T5 = [f"encoder.block.{n}.layer.0.SelfAttention.{part}" for n in range(6) for part in "qkvo"]
T5 += [f"encoder.block.{n}.layer.1.DenseReluDense.wo" for n in range(6)]


@pytest.mark.parametrize(
    "prefix", ["text_encoder.", "base_model.model.", "pipe.text_encoder.", "t5xxl.", "text_encoders.t5xxl.transformer."]
)
def test_t5_beside_it(subject: Subject, tmp_path: Path, prefix: str) -> None:
    """A LoRA that trained T5 as well, in more layers than the transformer has, is still one for this model."""
    factors = subject.factors(ATTENTION)
    files = write_dialect("diffusers", factors)[0] | pairs(subject, prefix, T5)
    patched, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files), 1.0)
    assert_weights(patched, fused(subject.weights, factors, 1.0))
    assert list(report.skipped) == ["for a text encoder"] and not report.unmatched and not report.hint
    with pytest.raises(UserError, match="is for a text encoder only"):
        by_node(subject.model, pairs(subject, prefix, T5), tmp_path)


# Layers that a fine-tune has beside the model's: at most as many as the model's own.
BESIDE = {
    "another attention": blocks(2, ("attn2.to_q", "attn2.to_k", "norm2_x.linear")),
    "blocks of a control branch": blocks(2, [f"attn1.{part}" for part in ATTENTION_PARTS], "control_blocks"),
    "a few modules": [f"perceiver_cross_attention.{n}.to_q" for n in range(3)],
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_fine_tune_s_layers_beside_it(subject: Subject, tmp_path: Path, name: str) -> None:
    """What fits is applied, and the user is told that it is not all."""
    factors = subject.factors(ATTENTION)
    more = pairs(subject, "transformer.", BESIDE[name])
    files = write_dialect("diffusers", factors)[0] | more
    patched, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files), 1.0)
    assert_weights(patched, fused(subject.weights, factors, 1.0))
    assert set(report.unmatched) == set(more)
    assert "trained with layers that this model does not have. The rest is applied" in report.message()


OWN_WEIGHTS = (
    "transformer.norm_out.linear.weight",
    "base_model.model.proj_out.bias",
    # as peft's model has them in its own state dict
    "base_model.model.proj_out.original_module.weight",
    "base_model.model.proj_out.modules_to_save.default.weight",
    "base_model.model.proj_out.modules_to_save.default.bias",
    "base_model.model.patch_embed.proj.modules_to_save.weight",
    "base_model.model.norm_out.modules_to_save.default.linear.weight",
    "base_model.model.norm_out.original_module.linear.weight",
)


def test_own_weights_beside_it(subject: Subject, tmp_path: Path) -> None:
    """peft's modules_to_save: whole layers in a LoRA's file are not applied, and are called what they are."""
    factors = subject.factors(ATTENTION)
    beside = dict.fromkeys(OWN_WEIGHTS, torch.ones(2))
    files = write_dialect("diffusers", factors)[0] | beside
    patched, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files), 1.0)
    assert_weights(patched, fused(subject.weights, factors, 1.0))
    assert report.skipped == {"of the model's own weights, which are not applied": sorted(beside)} and not report.hint


def test_a_whole_model_with_its_lora(subject: Subject, tmp_path: Path) -> None:
    """A model that peft has saved unmerged: as a LoRA, its adapter is applied and its own weights are left out."""
    factors = subject.factors(ATTENTION)
    own = {
        f"base_model.model.{name.replace('.to_q.', '.to_q.base_layer.')}": weight
        for name, weight in subject.weights.items()
    }
    assert any(".base_layer." in name for name in own)
    files = write_dialect("peft, named adapter", factors)[0] | own
    patched, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files), 1.0)
    assert_weights(patched, fused(subject.weights, factors, 1.0))
    assert sorted(own) == report.skipped["of the model's own weights, which are not applied"] and not report.unmatched


@pytest.mark.parametrize("way", [by_node, by_stock_node, by_hook])
@pytest.mark.parametrize("part", ["lora_E", "lora_E.default", "oft_R.default.weight", "vera_lambda_b", "lora_A.bias"])
def test_parts_that_are_not_read(
    subject: Subject, tmp_path: Path, part: str, way: Callable[[ModelPatcher, Files, Path], object]
) -> None:
    """AdaLoRA's A and B without its E are another LoRA, tens of times too strong."""
    files = write_dialect("peft", subject.factors(ATTENTION))[0]
    files[f"base_model.model.{ATTENTION[0]}.{part}"] = torch.ones(4, 1)
    kind = " of AdaLoRA" if part.startswith("lora_E") else ""
    with pytest.raises(UserError, match=f"does not read “{part}”{kind}. Merge the adapter into the model"):
        way(subject.model, files, tmp_path)
