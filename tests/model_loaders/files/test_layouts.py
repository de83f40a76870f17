"""Every layout that CogVideoX weights come in, for every family: what is on disk must arrive in diffusers' names."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.host import quantized
from cogvideox.model_loaders import checkpoints, variants
from cogvideox.model_loaders.load_model import check_model, load_model
from cogvideox.model_loaders.load_text_encoder import check_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.measured import LAYOUT_MATRIX
from cogvideox.tests.support import ALL_VARIANTS, write_fp32_transformer


@cache
def tiny_weights(folder: Path, component: str) -> dict[str, torch.Tensor]:
    """The component's weights in fp32, read without the pack."""
    from safetensors.torch import load_file

    merged: dict[str, torch.Tensor] = {}
    for file in sorted((folder / component).glob("*.safetensors")):
        merged |= load_file(file)
    return merged


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of every variant, without its VAE and text encoder."""
    folder = tmp_path_factory.mktemp("transformers")
    for variant in ALL_VARIANTS:
        write_fp32_transformer(folder / variant, variant)
    return folder


def assert_same(found: dict, expected: dict[str, torch.Tensor], layout: str) -> None:
    """Every tensor there, none besides, with the numbers that the layout keeps."""
    assert found.keys() == expected.keys()
    unpacked = layout.startswith("int8") and not quantized.has_int8()  # to bf16
    for name, weight in expected.items():
        ours = quantized.dequantized(found[name], torch.float32)
        is_exact = layouts.is_matrix(name) and not unpacked
        if layouts.is_matrix(name):
            weight = layouts.held_matrix(layout, weight)
        torch.testing.assert_close(ours, weight, rtol=1e-6 if is_exact else 2**-8, atol=2**-20)


def pairs() -> Iterator[Any]:
    """Every variant in every layout. A third is for every run: every variant in six layouts or seven, every layout of
    four variants."""
    for number, variant in enumerate(ALL_VARIANTS):
        for at, layout in enumerate(layouts.TRANSFORMER_LAYOUTS):
            yield pytest.param(variant, layout, marks=() if (number + at) % 3 == 2 else pytest.mark.long)


@pytest.mark.parametrize("variant, layout", pairs())
def test_transformer(transformers: Path, tmp_path: Path, variant: str, layout: str) -> None:
    """A checkpoint must load whatever its maker called its tensors, and be taken for what it is."""
    weights = tiny_weights(transformers / variant, "transformer")
    shutil.copy(transformers / variant / "transformer" / "config.json", tmp_path)
    layouts.TRANSFORMER_LAYOUTS[layout](tmp_path, weights)
    check_model(tmp_path)  # nothing of it may be refused when a prompt is queued
    found = checkpoints.open_component(tmp_path, "transformer")
    assert_same(found.state_dict, weights, layout)
    family = variants.detect_family(variants.resolve_config(found.state_dict, found.config, "test"))
    assert family.name.replace("CogVideoX", "").strip("-") == variant
    LAYOUT_MATRIX.setdefault(layout, set()).add(variant)


def test_renamed_files_are_the_same(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Neither a file's name nor its suffix says what is in it."""
    weights = tiny_weights(tiny_pipelines["2b"], "transformer")
    config = (tiny_pipelines["2b"] / "transformer" / "config.json").read_text()
    for number, layout in enumerate(("SAT .pt", "GGUF Q8_0", "diffusers fp32")):
        for suffix in (".pt", ".safetensors", ".gguf", ".bin", ".ckpt"):
            folder = tmp_path / f"{number}{suffix}"
            folder.mkdir()
            (folder / "config.json").write_text(config)
            file = layouts.TRANSFORMER_LAYOUTS[layout](folder, weights)
            file.rename(folder / f"wan_flux_5b_i2v{suffix}")
            found = checkpoints.open_component(folder, "transformer")
            assert_same(found.state_dict, weights, layout)


@pytest.mark.parametrize("layout", layouts.VAE_LAYOUTS)
def test_vae(tiny_pipelines: dict[str, Path], tmp_path: Path, layout: str) -> None:
    """The VAE too: THUDM's own 3d-vae.pt is what many people have."""
    weights = tiny_weights(tiny_pipelines["5b"], "vae")
    shutil.copy(tiny_pipelines["5b"] / "vae" / "config.json", tmp_path)
    layouts.VAE_LAYOUTS[layout](tmp_path, weights)
    checkpoints.check_component(tmp_path, "vae")
    found = checkpoints.open_component(tmp_path, "vae").state_dict
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name].float(), weights[name]) for name in weights)
    load_vae(tmp_path, "fp32")


@pytest.mark.parametrize("layout", layouts.T5_LAYOUTS)
def test_text_encoder(tiny_pipelines: dict[str, Path], tmp_path: Path, layout: str) -> None:
    """T5 comes in as many layouts as the models that read it."""
    weights = tiny_weights(tiny_pipelines["5b"], "text_encoder")
    weights = {name: weight for name, weight in weights.items() if name != "encoder.embed_tokens.weight"}
    folder = tmp_path / "text_encoder"
    shutil.copytree(tiny_pipelines["5b"] / "tokenizer", tmp_path / "tokenizer")
    folder.mkdir()
    shutil.copy(tiny_pipelines["5b"] / "text_encoder" / "config.json", folder)
    layouts.T5_LAYOUTS[layout](folder, weights)
    check_text_encoder(folder)
    found = checkpoints.open_component(folder, "text_encoder")
    assert_same(found.state_dict, weights, layout)


WRAPPED = ("module.", "_orig_mod.", "module._orig_mod.", "base_model.model.", "pipe.dit.", "model.0.", "a_b.c.")


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("part", ("transformer", "vae", "text_encoder", "controlnet"))
def test_wrapped_in_other_modules(tiny_pipelines: dict[str, Path], tmp_path: Path, part: str, prefix: str) -> None:
    """Trainers save what they have wrapped: the names are the same behind any prefix, in every component."""
    weights = tiny_component(tiny_pipelines["5b"], part, tmp_path)
    path = layouts.write_safetensors(tmp_path / "a.safetensors", layouts.prefixed(prefix, weights))
    found = checkpoints.open_component(path, part).state_dict
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("prefix", ("", "pipe.dit."))
@pytest.mark.parametrize("variant", ("2b", "5b", "Fun-5b-Control"))
def test_diffsynth(tiny_pipelines: dict[str, Path], tmp_path: Path, variant: str, prefix: str) -> None:
    """DiffSynth-Studio's names, of CogVideoX 1.0, which is all that its code has."""
    weights = tiny_weights(tiny_pipelines[variant], "transformer")
    shutil.copy(tiny_pipelines[variant] / "transformer" / "config.json", tmp_path)
    layouts.write_safetensors(tmp_path / "a.safetensors", layouts.prefixed(prefix, layouts.diffsynth_names(weights)))
    found = checkpoints.open_component(tmp_path, "transformer").state_dict
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    load_model(tmp_path)


@pytest.mark.parametrize("names", (layouts.comfyui_names, layouts.sat_names), ids=("ComfyUI", "SAT"))
def test_other_dialects_wrapped(tiny_pipelines: dict[str, Path], tmp_path: Path, names: Callable) -> None:
    """A wrapper and a dialect that is not diffusers'."""
    weights = tiny_weights(tiny_pipelines["5b"], "transformer")
    path = layouts.write_safetensors(tmp_path / "a.safetensors", layouts.prefixed("module._orig_mod.", names(weights)))
    found = checkpoints.open_component(path, "transformer").state_dict
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_each_block_wrapped(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """torch.compile and FSDP block by block put their names into the middle."""
    weights = tiny_weights(tiny_pipelines["5b"], "transformer")
    renamed = {re.sub(r"^(\w+_blocks\.\d+)\.", r"\1._fsdp_wrapped_module._orig_mod.", n): w for n, w in weights.items()}
    found = checkpoints.open_component(layouts.write_safetensors(tmp_path / "a.safetensors", renamed), "transformer")
    assert found.state_dict.keys() == weights.keys()
    assert all(torch.equal(found.state_dict[name], weights[name]) for name in weights)


def test_wrapped_by_peft(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A whole model saved with peft's layers in it, without adapters, is the model; with them, see test_unmerged.py."""
    weights = tiny_weights(tiny_pipelines["5b"], "transformer")
    names = {name: re.sub(r"\.(to_[qkv])\.", r".\1.base_layer.", f"base_model.model.{name}") for name in weights}
    assert any("base_layer" in name for name in names.values())
    wrapped = {names[name]: weight for name, weight in weights.items()}
    path = layouts.write_safetensors(tmp_path / "a.safetensors", wrapped)
    found = checkpoints.open_component(path, "transformer").state_dict
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_wrapped_in_dicts_of_a_trainer(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """The names of these dicts are the trainer's, beside the state of its optimizer."""
    weights = tiny_weights(tiny_pipelines["5b"], "transformer")
    state = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    nested: dict = {"step": 3, "networks": {"generator": layouts.prefixed("module.", weights)}, "optimizer": state}
    nested["networks"]["itself"] = nested
    torch.save(nested, tmp_path / "a.pt")
    found = checkpoints.open_component(tmp_path / "a.pt", "transformer").state_dict
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_two_copies_in_one_file(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A model and its moving average, or a student and its teacher: which one is meant only the user can say."""
    weights = tiny_weights(tiny_pipelines["5b"], "transformer")
    both = layouts.prefixed("student.", weights) | layouts.prefixed("teacher.", weights)
    with pytest.raises(UserError, match=r"transformer \(2 times\), under the prefixes student. and teacher."):
        checkpoints.check_component(layouts.write_safetensors(tmp_path / "a.safetensors", both), "transformer")
    compiled = layouts.prefixed("_orig_mod.", weights) | weights
    with pytest.raises(UserError, match="twice, once as"):
        checkpoints.check_component(layouts.write_safetensors(tmp_path / "c.safetensors", compiled), "transformer")
    # a control net beside its transformer is no second one
    net = tiny_component(tiny_pipelines["5b"], "controlnet", tmp_path)
    both = layouts.prefixed("transformer.", weights) | layouts.prefixed("controlnet.", net)
    path = layouts.write_safetensors(tmp_path / "b.safetensors", both)
    assert checkpoints.open_component(path, "transformer").state_dict.keys() == weights.keys()
    assert checkpoints.open_component(path, "controlnet").state_dict.keys() == net.keys()


def tiny_component(folder: Path, part: str, tmp_path: Path) -> dict[str, torch.Tensor]:
    """The fp32 weights of a part of a pipeline, or of a control net that is made for it."""
    if part != "controlnet":
        return tiny_weights(folder, part)
    return tiny_weights(write_controlnet(tmp_path / "controlnet", "5b", dtype=torch.float32).parent, part)


def all_in_one(folder: Path, path: Path, prefixes: tuple[str, str, str]) -> Path:
    """Transformer, VAE and T5 of a pipeline in one file, with their configs in its header."""
    parts = ("transformer", "vae", "text_encoder")
    weights: dict[str, torch.Tensor] = {}
    for prefix, part in zip(prefixes, parts):
        weights |= layouts.prefixed(prefix, tiny_weights(folder, part))
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in parts}
    configs["scheduler"] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return layouts.write_safetensors(path, weights, {"config": json.dumps(configs)})


@pytest.mark.parametrize(
    "prefixes",
    (
        ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.t5xxl.transformer."),
        ("model.diffusion_model.", "vae.", "text_encoders.t5xxl.transformer."),
        ("model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.transformer."),
        ("transformer.", "vae.", "text_encoder."),
        ("", "vae.", "text_encoder."),
        ("module.dit.", "module.vae.", "module.t5."),
        ("", "my_vae.", "my_t5."),
        ("model.", "model.vae.", "model.t5."),
    ),
)
def test_all_in_one_file(tiny_pipelines: dict[str, Path], tmp_path: Path, prefixes: tuple[str, str, str]) -> None:
    """One file with everything, as ComfyUI's Save Checkpoint writes it: each loader finds its own part."""
    path = all_in_one(tiny_pipelines["2b"], tmp_path / "all.safetensors", prefixes)
    for part in ("transformer", "vae", "text_encoder"):
        found = checkpoints.open_component(path, part)
        expected = tiny_weights(tiny_pipelines["2b"], part)
        assert found.state_dict.keys() == expected.keys()
        assert all(torch.equal(found.state_dict[name], expected[name]) for name in expected)
        assert found.siblings["scheduler"]["snr_shift_scale"] == 3.0 and found.config


def test_2b_s_own_table_is_not_a_learned_one(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """SAT writes 2b's computed table into its file; taken for a learned one it would make 2b an unknown model."""
    weights = tiny_weights(tiny_pipelines["2b"], "transformer") | {"patch_embed.pos_embedding": torch.zeros(1, 300, 64)}
    shutil.copy(tiny_pipelines["2b"] / "transformer" / "config.json", tmp_path)
    layouts.write_sat(tmp_path / "a.pt", layouts.sat_names(weights))
    found = checkpoints.open_component(tmp_path, "transformer")
    assert "patch_embed.pos_embedding" not in found.state_dict


def test_shards_without_an_index_and_a_shard_by_itself(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Whoever picks one shard from the list, or lost the index, still means the whole model."""
    folder = Path(shutil.copytree(tiny_pipelines["5b"] / "transformer", tmp_path / "transformer"))
    next(folder.glob("*.index.json")).unlink()
    expected = tiny_weights(tiny_pipelines["5b"], "transformer").keys()
    assert checkpoints.open_component(folder, "transformer").state_dict.keys() == expected
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert checkpoints.open_component(shards[1], "transformer").state_dict.keys() == expected
    shards[0].unlink()
    with pytest.raises(UserError, match=f"lacks {shards[0].name} of {len(shards)} parts"):
        checkpoints.check_component(shards[1], "transformer")


def test_sat_s_own_folder(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """THUDM's download is a folder "transformer" with "latest" and 1/mp_rank_00_model_states.pt."""
    weights = tiny_weights(tiny_pipelines["2b"], "transformer")
    (tmp_path / "1").mkdir()
    (tmp_path / "latest").write_text("1")
    shutil.copy(tiny_pipelines["2b"] / "transformer" / "config.json", tmp_path)
    layouts.write_sat(tmp_path / "1" / "mp_rank_00_model_states.pt", layouts.sat_names(weights))
    assert checkpoints.open_component(tmp_path, "transformer").state_dict.keys() == weights.keys()
