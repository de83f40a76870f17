"""Every dialect on every precision: the dialect × precision matrix of the README."""

from pathlib import Path

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.host import quantized
from cogvideox.model_loaders.lora.apply import apply_lora
from cogvideox.tests.layout_files import write_gguf
from cogvideox.tests.lora_files import DIALECTS, Subject, fused, save, write_dialect
from cogvideox.tests.support import host_lacks, reference_transformer
from cogvideox.tests.tiers import long_but_one_in

CPU = torch.device("cpu")
PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = (*PLAIN, "fp8_e4m3fn", "int8", "GGUF Q8_0")


@pytest.fixture(scope="module", params=KINDS)
def subject(
    request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Subject]:
    folder, kind = tiny_pipelines["5b"], request.param
    if kind == "int8" and quantized.INT8_LAYOUT not in quantized.FORMATS:
        pytest.skip(host_lacks("int8 weights"))
    if kind in (*PLAIN, "fp8_e4m3fn", "int8"):
        return kind, Subject(folder, kind)
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(file, reference_transformer(folder).state_dict(), kind.split()[1])
    (file.parent / "config.json").write_text((folder / "transformer" / "config.json").read_text())
    return kind, Subject(folder, "default", file.parent)


def now(model: ModelPatcher, layer: str) -> torch.Tensor:
    """The numbers that a weight stands for, in fp32."""
    return quantized.dequantized(model.model.diffusion_model.get_submodule(layer).weight, torch.float32).clone()


def used(model: ModelPatcher, layer: str) -> torch.Tensor:
    """The weight as the forward pass of a streamed layer sees it, in fp32."""
    module = model.model.diffusion_model.get_submodule(layer)
    weight = comfy.ops.cast_bias_weight(module, torch.empty(1, dtype=torch.float32))[0]
    return quantized.dequantized(weight, torch.float32)


@pytest.mark.parametrize(
    ("subject", "dialect"), long_but_one_in(2, KINDS, [*DIALECTS]), indirect=["subject"], scope="module"
)
def test_dialect_on_precision(subject: tuple[str, Subject], tmp_path: Path, dialect: str) -> None:
    """A LoRA that is lost, doubled or left behind where weights are stored in few bits shows only in the picture."""
    kind, tiny = subject
    factors = tiny.factors(DIALECTS[dialect][1])
    files, header, scale = write_dialect(dialect, factors, "header")
    path = save(tmp_path / "l.safetensors", files, header)
    patched, report = apply_lora(tiny.model, path, 0.8)
    assert report.matched == report.total
    before = {f"{layer}.weight": now(tiny.model, layer) for layer in factors}
    want = fused(before, factors, 0.8 * scale)

    patched.patch_model(device_to=CPU)
    for layer in factors:
        weight = patched.model.diffusion_model.get_submodule(layer).weight
        after, expected = now(patched, layer), want[f"{layer}.weight"]
        if not quantized.is_quantized(weight):
            assert torch.equal(after, expected.to(weight.dtype).float()), layer
        elif kind.startswith("GGUF"):
            assert torch.equal(after, expected), layer
        else:  # packed again, stochastically: at most one step away
            step = weight._params.scale
            if kind != "int8":
                step = torch.maximum(expected.abs() * 2.0**-3, step * 2.0**-9)
            assert ((after - expected).abs() <= step * 1.001).all(), layer
    patched.unpatch_model(CPU)

    patched.partially_load(CPU, extra_memory=1)
    for layer in factors:
        assert torch.equal(used(patched, layer), want[f"{layer}.weight"]), f"{layer}, streamed"
    patched.detach()
    assert all(torch.equal(now(tiny.model, name.removesuffix(".weight")), weight) for name, weight in before.items())


@pytest.mark.parametrize("inplace", (False, True))
def test_lora_on_fp32_is_merged_in_fp32(
    tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inplace: bool
) -> None:
    """On a card ComfyUI computes every patch in fp16, which would round an fp32 model: 8e-4 on an H100."""
    tiny = Subject(tiny_pipelines["5b"], "fp32")
    monkeypatch.setattr(comfy.model_management, "lora_compute_dtype", lambda device: torch.float16)
    factors = tiny.factors(DIALECTS["diffusers"][1])
    files, header, scale = write_dialect("diffusers", factors, "header")
    patched, _ = apply_lora(tiny.model, save(tmp_path / "l.safetensors", files, header), 0.8)
    patched.weight_inplace_update = inplace
    before = {f"{layer}.weight": now(tiny.model, layer) for layer in factors}
    want = fused(before, factors, 0.8 * scale)

    saved = patched.state_dict_for_saving()
    for name in before:
        assert torch.equal(saved[f"model.diffusion_model.{name}"].to("cpu"), want[name]), f"{name}, saved"
    patched.patch_model(device_to=CPU)
    for name in before:
        assert torch.equal(now(patched, name.removesuffix(".weight")), want[name]), name
    patched.unpatch_model(CPU)
    patched.detach()
    assert all(torch.equal(now(tiny.model, name.removesuffix(".weight")), weight) for name, weight in before.items())
