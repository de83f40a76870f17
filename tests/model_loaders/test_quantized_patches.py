"""Quantised models alike however they are loaded, patched, hooked, merged and saved."""

from functools import partial
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.memory_management
import comfy.model_management as mm
import comfy.ops
import comfy.weight_adapter
import pytest
import torch
from safetensors.torch import load_file, save_file

from cogvideox.host import weight_patcher
from cogvideox.host.compat import is_dynamic
from cogvideox.tests import quantized_models as models
from cogvideox.tests.quantized_models import (
    BOUNDS,
    GGUF_FILES,
    KEY,
    KINDS,
    LAYER,
    encode,
    load,
    load_clip,
    model_loader,
    needs_int8,
    quantized,
)
from cogvideox.tests.support import host_lacks, relative_error

CPU = torch.device("cpu")
forward, four_steps = partial(models.forward, tokens=16), partial(models.four_steps, tokens=16)


def test_one_function_patches_all_weights() -> None:
    """Two copies of ComfyUI's five arguments, and of the backup that unpatch_model reads: a change of ComfyUI would be
    followed in one of them, and GGUF or fp32 models keep a LoRA for ever."""
    classes = [cls for cls in vars(weight_patcher).values() if isinstance(cls, type)]
    ours = [cls for cls in classes if cls.__module__ == weight_patcher.__name__]
    assert len([cls for cls in ours if "patch_weight_to_device" in vars(cls)]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_partial_loading_is_bit_equal(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small card ComfyUI streams weights; the video must not depend on how many."""
    model = load(wide, kind, monkeypatch)
    model.patch_model(device_to=CPU)
    whole = forward(model)
    model.unpatch_model(CPU)
    for share in (0.0001, 0.5):
        model.partially_load(CPU, extra_memory=int(model.model_size() * share))
        assert any(hasattr(m, "prev_comfy_cast_weights") for m in model.model.modules())
        assert torch.equal(forward(model), whole)
        model.partially_unload(CPU, memory_to_free=model.model_size() // 4)
        assert torch.equal(forward(model), whole)
        model.detach()


def lora(rank: int = 4, seed: int = 5) -> tuple[dict, torch.Tensor]:
    """Patches for KEY as a LoRA loader makes them, and what they add to the weight at strength 1."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(512, rank, generator=generator), torch.randn(rank, 2048, generator=generator) * 0.01
    adapter = comfy.weight_adapter.LoRAAdapter(set(), (up, down, float(rank), None, None, None))
    return {KEY: adapter}, up @ down


def patched_forward(wide: Path, weight: torch.Tensor, others: torch.nn.Module) -> torch.Tensor:
    """The reference: every other weight unpacked, and `weight` in its place, in a plain fp32 model."""
    model = model_loader.load_model(wide, "fp32")
    for name, value in others.named_parameters():
        model.model.diffusion_model.get_parameter(name).data = quantized.dequantized(value, torch.float32).clone()
    model.model.diffusion_model.get_parameter(f"{LAYER}.weight").data = weight
    return forward(model)


@pytest.mark.parametrize("strength", (0.7, -1.3))
@pytest.mark.parametrize("kind", KINDS)
def test_lora(wide: Path, kind: str, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA that is dropped, doubled or left behind on a quantised model shows only in the picture."""
    model = load(wide, kind, monkeypatch)
    layer = model.model.diffusion_model.get_submodule(LAYER)
    before, plain = layer.weight.dequantize(), forward(model)
    patches, delta = lora()
    patched = model.clone()
    assert patched.add_patches(patches, strength) == [KEY]
    want = before + strength * delta

    patched.patch_model(device_to=CPU)
    after, whole = layer.weight.dequantize(), forward(patched)
    if kind in GGUF_FILES:
        torch.testing.assert_close(after, want, rtol=1e-6, atol=1e-7)  # the order of fp32 sums
    else:
        scale = layer.weight._params.scale
        step = scale if kind == "int8" else torch.maximum(want.abs() * 2.0**-3, scale * 2.0**-9)
        assert ((after - want).abs() <= step * 1.001).all() and not torch.equal(after, want)
    patched.unpatch_model(CPU)
    assert torch.equal(layer.weight.dequantize(), before) and torch.equal(forward(model), plain)

    reference = patched_forward(wide, want, model.model.diffusion_model)
    patched.partially_load(CPU, extra_memory=1)
    streamed = forward(patched)
    assert relative_error(streamed, reference) <= 2e-6
    if kind in GGUF_FILES:
        assert torch.equal(streamed, whole)
    else:
        assert relative_error(streamed, whole) < BOUNDS[kind]
    patched.detach()
    assert torch.equal(layer.weight.dequantize(), before) and torch.equal(forward(model), plain)


def test_gguf_lora_from_whole_to_part(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unloading part of a patched model must not apply its LoRA twice, nor lose it."""
    model = load(wide, "Q8_0", monkeypatch)
    plain = forward(model)
    model.add_patches(lora()[0], 0.5)
    model.add_patches(lora(seed=6)[0], -0.25)  # stacked
    model.patch_model(device_to=CPU)
    whole = forward(model)
    assert relative_error(whole, plain) > 1e-3
    for part in (8, 2, 1):
        model.partially_unload(CPU, memory_to_free=model.model_size() // part)
        assert torch.equal(forward(model), whole)
    model.partially_load(CPU, extra_memory=2 * model.model_size())
    assert torch.equal(forward(model), whole)
    model.detach()
    assert torch.equal(forward(model), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_and_back(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA hooks switch weights within a run, from a cache the second time."""
    model = load(wide, kind, monkeypatch)
    group = comfy.hooks.HookGroup()
    group.add(hook := comfy.hooks.WeightHook())
    patches, delta = lora()
    model.add_hook_patches(hook, patches, 0.5)
    no_hooks: Any = None  # as ComfyUI calls it, against its own annotation
    model.patch_model(device_to=CPU)
    plain, layer = forward(model), model.model.diffusion_model.get_submodule(LAYER)
    want = layer.weight.dequantize() + 0.5 * delta
    for _ in range(2):
        model.patch_hooks(group)
        torch.testing.assert_close(quantized.dequantized(layer.weight, torch.float32), want, rtol=1e-6, atol=1e-7)
        assert not torch.equal(forward(model), plain)
        model.patch_hooks(no_hooks)
        assert quantized.is_quantized(layer.weight) and torch.equal(forward(model), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_run_under_inference_mode_and_again(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI loads, patches and runs under inference_mode; training and other packs do not."""
    with torch.inference_mode():
        model = load(wide, kind, monkeypatch)
        patched = model.clone()
        patched.add_patches(lora()[0], 0.5)
        first, with_lora = four_steps(model), four_steps(patched)
        assert not torch.equal(first, with_lora)
    assert torch.equal(four_steps(patched), with_lora)
    assert torch.equal(four_steps(model), first)


@pytest.mark.parametrize("resident", (True, False))
@pytest.mark.parametrize("kind", ("fp8_e4m3fn", pytest.param("int8", marks=needs_int8)))
def test_dynamic_vram_streams_and_patches(
    wide: Path, kind: str, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's loading on demand copies codes and scales through one buffer and patches what arrives."""
    if not hasattr(comfy.ops, "resolve_cast_module_with_vbar"):
        pytest.skip(host_lacks("dynamic VRAM of this kind"))
    layer = load(wide, kind, monkeypatch).model.diffusion_model.get_submodule(LAYER)
    size = comfy.memory_management.vram_aligned_size([layer.weight, layer.bias])
    buffer = torch.empty(size, dtype=torch.uint8)
    mm.cast_to_gathered([layer.weight, layer.bias], buffer)
    geometry = comfy.memory_management.tensors_to_geometries([layer.weight, layer.bias])
    patches, delta = lora()
    wanted = layer.weight.dequantize() + delta
    for function, want in ((None, layer.weight.dequantize()), (lambda weight: weight + delta, wanted)):
        layer.weight_lowvram_function, layer.seed_key = function, LAYER
        layer._prefetch = {
            "signature": 1 if resident else None,
            "resident": False,
            "xfer_dest": buffer.clone(),
            "needs_cast": False,
            "cast_geometry": geometry,
        }
        weight, bias = comfy.ops.resolve_cast_module_with_vbar(
            layer, torch.float32, CPU, torch.float32, torch.float32, False
        )
        assert weight is not None and bias is not None
        assert torch.equal(quantized.dequantized(weight, torch.float32), want) and torch.equal(bias, layer.bias)
        if resident and function:  # what the next step finds, packed again
            step = layer._v_weight._params.scale
            step = step if kind == "int8" else torch.maximum(want.abs() * 2.0**-3, step * 2.0**-9)
            assert ((layer._v_weight.dequantize() - want).abs() <= step * 1.001).all()
    assert is_dynamic(load(wide, "Q8_0", monkeypatch)) is False


@pytest.mark.parametrize("with_lora", (False, True))
@pytest.mark.parametrize("loaded", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_stock_saving(
    wide: Path, tmp_path: Path, kind: str, loaded: bool, with_lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ModelSave must write what is on the screen: ComfyUI's quantised layout, or GGUF as plain numbers."""
    model = load(wide, kind, monkeypatch)
    if with_lora:
        model.add_patches(lora()[0], 0.5)
    if loaded:
        model.patch_model(device_to=CPU)
    save_file({name: value.contiguous() for name, value in model.state_dict_for_saving().items()}, tmp_path / "out")
    saved = load_file(tmp_path / "out")
    if not loaded:
        model.patch_model(device_to=CPU)
    weight = model.model.diffusion_model.get_parameter(f"{LAYER}.weight")
    name = next(name for name in saved if name.endswith(f"{LAYER}.weight"))
    numbers = saved[name]
    if kind not in GGUF_FILES:
        layout = quantized.fp8_tensor if kind == "fp8_e4m3fn" else quantized.int8_tensor
        numbers = layout(numbers, saved[f"{name}_scale"], torch.float32).dequantize()
    assert torch.equal(numbers, weight.dequantize())
    assert (f"{name}_scale" in saved) == (kind not in GGUF_FILES)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_merging(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelMergeSimple reads every weight of one model as a patch for the other."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    first, second = load(wide, kind, monkeypatch), load(wide, "fp16", monkeypatch)
    layers = [model.model.diffusion_model.get_submodule(LAYER) for model in (first, second)]
    packed, plain = layers[0].weight.dequantize(), layers[1].weight.float()
    for model, other, layer in ((first, second, layers[0]), (second, first, layers[1])):
        (merged,) = ModelMergeSimple().merge(model, other, 0.75)
        mine, theirs = (packed, plain) if model is first else (plain, packed)
        merged.patch_model(device_to=CPU)
        weight = quantized.dequantized(layer.weight, torch.float32)
        assert relative_error(weight, 0.75 * mine + 0.25 * theirs) < (1e-3 if model is second else 0.03)
        merged.unpatch_model(CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_the_text_encoder(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoraLoader patches CLIP through the same interface."""
    with torch.inference_mode():  # as ComfyUI loads
        clip = load_clip(wide, kind, monkeypatch)
    plain = encode(clip)
    parameters = dict(clip.cond_stage_model.named_parameters())
    key = next(name for name in parameters if name.endswith("block.1.layer.0.SelfAttention.v.weight"))
    delta = torch.randn(parameters[key].shape, generator=torch.Generator().manual_seed(8)) * 0.1
    patched = clip.clone()
    patched.add_patches({key: ("diff", (delta,))}, 0.5)
    whole = encode(patched)
    assert relative_error(whole, plain) > 1e-3
    assert torch.equal(encode(clip), plain), "the LoRA was left behind"
    patched.patcher.partially_load(CPU, extra_memory=1)
    streamed = encode(patched)
    assert torch.equal(streamed, whole) if kind in GGUF_FILES else relative_error(streamed, whole) < 0.05


def test_layout_s_name_where_comfyui_reads_it(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI before 0.30 packs a patched weight again by this name: without it a LoRA on fp8 ended the run."""
    dit = load(wide, "fp8_e4m3fn", monkeypatch).model.diffusion_model
    assert dit.get_submodule(LAYER).layout_type == dit.get_submodule(LAYER).weight._layout_cls
    assert not hasattr(dit.time_embedding.linear_1, "layout_type")
