"""A saved model is the model: same weights, LoRAs merged, whole or not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open

from cogvideox.benchmarks.common import stored_bytes
from cogvideox.errors import UserError
from cogvideox.host import quantized
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders import save_model as save
from cogvideox.model_loaders.files import safetensors_writer as writer
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.support import ALL_VARIANTS


def weights_of(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """In fp32, by diffusers' names."""
    module = model.model.diffusion_model
    named = dict(module.named_parameters()) | {k: v for k, v in module.named_buffers() if k in module.state_dict()}
    return {name: quantized.dequantized(weight, torch.float32) for name, weight in named.items()}


def assert_equal(our_model: ModelPatcher, their_model: ModelPatcher, tolerance: float = 0.0) -> None:
    ours, theirs = weights_of(our_model), weights_of(their_model)
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert worst <= tolerance, worst


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_round_trip(tiny_pipelines: dict[str, Path], tmp_path: Path, variant: str) -> None:
    """The lone file must load as what it was: sizes and schedule come from its own header."""
    model = load_model(tiny_pipelines[variant], "fp32")
    path = tmp_path / "models" / "saved.safetensors"
    seen = []
    size = save.save_model(model, path, on_progress=lambda done, total: seen.append((done, total)))
    assert size == path.stat().st_size and seen[-1] == (size, size) and len(seen) > 10
    again = load_model(path, "fp32")
    assert_equal(again, model)
    ours, theirs = again.model.model_config, model.model.model_config
    assert ours.family == theirs.family and ours.sampling_settings == theirs.sampling_settings
    assert ours.latent_format.scale_factor == theirs.latent_format.scale_factor
    assert ours.inverts_image_scale == theirs.inverts_image_scale
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("weight_dtype", ("bf16", "fp16", "fp8_e4m3fn", "int8"))
def test_converted(tiny_pipelines: dict[str, Path], tmp_path: Path, weight_dtype: str) -> None:
    """Saved in another precision = loaded in it."""
    path = tmp_path / "a.safetensors"
    save.save_model(load_model(tiny_pipelines["5b"], "fp32"), path, weight_dtype)
    expected = load_model(tiny_pipelines["5b"], weight_dtype)
    again = load_model(path)
    assert_equal(again, expected, 0 if weight_dtype in ("bf16", "fp16") else 2**-8)
    if weight_dtype in ("fp8_e4m3fn", "int8"):  # and as small
        stored = sum(stored_bytes(p) for p in again.model.diffusion_model.parameters())
        assert stored <= path.stat().st_size


def with_lora(model: ModelPatcher, strength: float = 0.7) -> tuple[ModelPatcher, dict[str, torch.Tensor]]:
    """A clone with a LoRA on two layers, and what their weights become."""
    patches, merged = {}, {}
    generator = torch.Generator().manual_seed(3)
    plain = weights_of(model)
    for layer in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2"):
        weight = plain[f"{layer}.weight"]
        delta = 0.05 * torch.randn(weight.shape, generator=generator)
        patches[f"diffusion_model.{layer}.weight"] = ("diff", (delta,))
        merged[f"{layer}.weight"] = weight + strength * delta
    clone = model.clone()
    assert len(clone.add_patches(patches, strength)) == 2
    return clone, plain | merged


@pytest.mark.parametrize("is_loaded", (False, True))
@pytest.mark.parametrize("layout", ("diffusers fp32", "GGUF Q8_0", "GGUF Q4_0", "scaled fp8", "int8, ComfyUI"))
def test_loras_are_merged(tiny_pipelines: dict[str, Path], tmp_path: Path, layout: str, is_loaded: bool) -> None:
    """Whether or not the model was used before, each LoRA is in the file once."""
    shutil.copy(tiny_pipelines["5b"] / "transformer" / "config.json", tmp_path)
    weights = checkpoints.open_component(tiny_pipelines["5b"], "transformer").state_dict
    file = layouts.TRANSFORMER_LAYOUTS[layout](tmp_path, weights)
    model = load_model(tmp_path, "fp32" if layout == "diffusers fp32" else "default")
    patched, expected = with_lora(model)
    if is_loaded:
        patched.patch_model(torch.device("cpu"))
    try:
        save.save_model(patched, tmp_path / "saved" / "a.safetensors")
    finally:
        if is_loaded:
            patched.unpatch_model(torch.device("cpu"))
    ours = weights_of(load_model(tmp_path / "saved" / "a.safetensors"))
    step = {"diffusers fp32": 1e-7, "scaled fp8": 2**-4, "int8, ComfyUI": 2**-7}.get(layout, 2**-8)
    for name, weight in expected.items():
        torch.testing.assert_close(ours[name], weight, rtol=step, atol=step * float(weight.abs().max()))
    assert file.exists()
    assert_equal(load_model(tmp_path), model)


def test_gguf_stays_gguf(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Blocks that nothing changed are written as they are, and read again."""
    shutil.copy(tiny_pipelines["2b"] / "transformer" / "config.json", tmp_path)
    weights = checkpoints.open_component(tiny_pipelines["2b"], "transformer").state_dict
    layouts.write_gguf(tmp_path / "a.gguf", weights, "Q5_0")
    model = load_model(tmp_path)
    save.save_model(model, tmp_path / "saved.safetensors")
    with safe_open(tmp_path / "saved.safetensors", "pt") as file:
        assert sum(name.endswith(".Q5_0_qweight") for name in file.keys()) == 12
        assert json.loads(file.metadata()["config"])["transformer"]["num_layers"] == 2
    assert_equal(load_model(tmp_path / "saved.safetensors"), model)


def test_nothing_is_overwritten_and_nothing_half_written(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """An interrupted save must leave neither a file that looks whole nor a hidden one that fills the disk."""
    model = load_model(tiny_pipelines["2b"], "fp32")
    path = tmp_path / "a.safetensors"

    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        save.save_model(model, path, on_progress=stop)
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        save.save_model(model, path)
    assert path.read_text() == "mine"


def test_a_full_disk_is_noticed_before_anything_is_written(
    tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes of conversion must not end in "no space left on device"."""
    usage = writer.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"has 0\.0 GB free, and a\.safetensors needs"):
        save.save_model(load_model(tiny_pipelines["2b"], "fp32"), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_a_type_cannot_hold(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A weight beyond fp16's range would come back as infinity, and every video black."""
    model = load_model(tiny_pipelines["2b"], "fp32")
    model.model.diffusion_model.proj_out.weight.data[0, 0] = 1e6
    with pytest.raises(UserError, match="proj_out.weight contains NaN or Inf after rounding to torch.float16"):
        save.save_model(model, tmp_path / "a.safetensors", "fp16")
    assert not list(tmp_path.iterdir())
