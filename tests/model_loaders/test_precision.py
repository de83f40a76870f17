"""Every precision of transformer and T5: how far from fp32, how large, and what becomes of a file's own."""

from pathlib import Path
from typing import NamedTuple

import comfy.model_management as mm
import pytest
import torch

from cogvideox.benchmarks.common import stored_bytes
from cogvideox.errors import UserError
from cogvideox.model_loaders import precision
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.tests.quantized_models import (
    BOUNDS,
    GGUF_FILES,
    KINDS,
    LAYER,
    T5_BOUNDS,
    encode,
    forward,
    four_steps,
    load,
    load_changed,
    load_clip,
    model_loader,
    needs_int8,
    quantized,
    text_loader,
)
from cogvideox.tests.support import record_error, relative_error
from cogvideox.transformer.parameter_types import is_block_matrix


def exact_int_mm(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What torch._int_mm gives, int8 [m, k] x [k, n] -> int32 [m, n]: fp64 holds such sums without rounding."""
    return (first.double() @ second.double()).to(torch.int32)


def allow_fast_modes(patch: pytest.MonkeyPatch) -> None:
    """Any CPU runs them too: enough to see their numbers. One without the instructions would take half a minute over
    the integers' products, number by number."""
    if precision.int8_matmul_obstacle(torch.device("cpu")):
        patch.setattr(torch, "_int_mm", exact_int_mm)
    for name in ("fp8_matmul_obstacle", "int8_matmul_obstacle"):
        patch.setattr(precision, name, lambda device: None)


def test_int8_products_are_torch_s_own() -> None:
    """The figures of int8_fast are measured with them on CPUs without the instructions."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(-128, 128, shape, generator=generator) for shape in ((40, 2048), (2048, 24)))
    first, second = first.to(torch.int8), second.to(torch.int8)
    assert torch.equal(exact_int_mm(first, second), torch._int_mm(first, second))


class Exact(NamedTuple):
    """What every precision is compared with."""

    forward: torch.Tensor
    run: torch.Tensor
    bytes: int


@pytest.fixture(scope="module")
def exact(wide: Path) -> Exact:
    full = model_loader.load_model(wide, "fp32")
    return Exact(forward(full), four_steps(full), full.model_size())


@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs_int8 if "int8" in k else ()) for k in BOUNDS])
def test_error_against_fp32(wide: Path, exact: Exact, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures a user chooses a precision by; a wrong scale anywhere is far outside."""
    allow_fast_modes(monkeypatch)
    model = load(wide, kind, monkeypatch, same_matrices=True)
    once, run = relative_error(forward(model), exact.forward), relative_error(four_steps(model), exact.run)
    size = model.model_size() / exact.bytes
    record_error(f"transformer {kind}", once, "forward")
    record_error(f"transformer {kind}", run, "4 steps")
    record_error(f"transformer {kind}", size, "size")
    assert 0 < once <= BOUNDS[kind] and 0 < run <= 3 * BOUNDS[kind]
    assert size < (0.51 if kind in ("bf16", "fp16") else 0.75)


@needs_int8
def test_order_of_precisions(wide: Path, exact: Exact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents advise by it. Quantised in the same matrices: a table of files that quantise more, or fewer, would
    say the opposite of what is so."""
    kinds = ("fp16", "Q8_0", "int8", "fp8_e4m3fn", "Q4_0")
    errors = [
        relative_error(forward(load(wide, kind, monkeypatch, same_matrices=True)), exact.forward) for kind in kinds
    ]
    assert errors == sorted(errors), dict(zip(kinds, errors))


@pytest.mark.parametrize("kind", KINDS)
def test_only_large_matrices_are_quantized(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bits on norms, embeddings or the time path turn the picture grey."""
    model = load(wide, kind, monkeypatch)
    parameters = dict(model.model.diffusion_model.named_parameters())
    packed = {name for name, value in parameters.items() if quantized.is_quantized(value)}
    blocks = {name for name in parameters if is_block_matrix(name)}
    assert len(blocks) == 2 * 6 and blocks <= packed
    assert packed == blocks or kind in GGUF_FILES  # what a file has quantised stays so
    compute = model.model.get_dtype_inference()
    assert model.model.get_dtype() == model.model.manual_cast_dtype == compute == torch.float32
    assert {value.dtype for value in parameters.values()} == {compute}


@pytest.mark.parametrize("kind", KINDS)
def test_size_is_that_of_the_stored_bytes(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at full size, ComfyUI would unload other models for nothing and stream what fits."""
    model = load(wide, kind, monkeypatch)
    stored = sum(stored_bytes(value) for value in model.model.diffusion_model.parameters())
    sampling = sum(buffer.nbytes for buffer in model.model.buffers())
    assert stored <= model.model_size() <= 1.01 * (stored + sampling)


@pytest.mark.parametrize("kind", KINDS)
def test_default_keeps_what_the_file_holds(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantised file that is unpacked at load takes two to four times the memory it was chosen for."""
    saved = load(wide, kind, monkeypatch).model.diffusion_model
    packed = {name: p for name, p in saved.named_parameters() if quantized.is_quantized(p)}

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        return packed.get(name, weight)

    kept = load_changed(wide, monkeypatch, change)
    again = dict(kept.model.diffusion_model.named_parameters())
    for name, value in packed.items():
        assert again[name]._qdata.data_ptr() == value._qdata.data_ptr(), "copied"
    unpacked = load_changed(wide, monkeypatch, change, weight_dtype="fp16").model.diffusion_model
    for name, value in unpacked.named_parameters():
        assert not quantized.is_quantized(value) and value.dtype == torch.float16
        if name in packed:
            assert torch.equal(value, quantized.dequantized(packed[name], torch.float16))
    changed = load_changed(wide, monkeypatch, change, weight_dtype="fp8_e4m3fn").model.diffusion_model
    names = {name for name, p in changed.named_parameters() if quantized.is_quantized(p)}
    assert names == {name for name in packed if is_block_matrix(name)}


def test_plain_fp8_stays_fp8(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files cast to fp8 without scales are among the commonest; their biases and norms may be fp8 as well."""
    model = load_changed(wide, monkeypatch, lambda name, weight: weight.to(torch.float8_e4m3fn))
    originals = load(wide, "fp32", monkeypatch).model.diffusion_model.get_parameter(f"{LAYER}.weight")
    weight = model.model.diffusion_model.get_parameter(f"{LAYER}.weight")
    assert quantized.is_quantized(weight)
    assert torch.equal(weight.dequantize(), originals.to(torch.float8_e4m3fn).float())
    assert model.model.diffusion_model.get_parameter(f"{LAYER}.bias").dtype == torch.float32
    assert torch.isfinite(forward(model)).all()


def test_quantized_weights_of_other_layers_are_unpacked(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution or a table has no kernel for blocks; a VAE neither."""

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        if "patch_embed.proj" not in name:
            return weight
        return quantized.fp8_tensor(weight.to(torch.float8_e4m3fn), torch.tensor(0.5), torch.bfloat16)

    model = load_changed(wide, monkeypatch, change)
    weight = model.model.diffusion_model.patch_embed.proj.weight
    plain = load(wide, "fp32", monkeypatch).model.diffusion_model.patch_embed.proj.weight
    assert torch.equal(weight, plain.to(torch.float8_e4m3fn).float() / 2)


def test_weights_of_the_right_type_are_not_copied(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of ten gigabytes costs seconds and, on a small machine, the process."""
    seen = {}

    def remember(name: str, weight: torch.Tensor) -> torch.Tensor:
        seen[name] = weight.data_ptr()
        return weight

    model = load_changed(wide, monkeypatch, remember, weight_dtype="fp32")
    for name, value in model.model.diffusion_model.named_parameters():
        assert value.data_ptr() == seen[name]


@pytest.mark.parametrize(
    "weight_dtype, kind", [("fp8_e4m3fn_fast", "fp8"), pytest.param("int8_fast", "int8", marks=needs_int8)]
)
def test_fast_modes_are_refused_with_the_reason(
    wide: Path, monkeypatch: pytest.MonkeyPatch, weight_dtype: str, kind: str
) -> None:
    """A card without the units would run them slower than bf16, or not at all."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(UserError, match=f"needs {kind} matmul support, which this CPU does not have.*Choose"):
        model_loader.load_model(wide, weight_dtype)
    with pytest.raises(UserError, match="T5 cannot run in .*_fast: ComfyUI computes text encoders in fp32"):
        text_loader.load_text_encoder(wide, weight_dtype)
    with pytest.raises(UserError, match="VAE cannot run in"):
        load_vae(wide, weight_dtype)


@needs_int8
def test_a_cpu_with_the_instructions_computes_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    precision.check_precision("int8_fast", torch.device("cpu"))


def test_fast_modes_of_a_card(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ComfyUI says of the card; and an unknown name is refused."""
    monkeypatch.setattr(mm, "supports_fp8_compute", lambda device: False)
    with pytest.raises(UserError, match="which cuda:0 does not have"):
        precision.check_precision("fp8_e4m3fn_fast", torch.device("cuda:0"))
    monkeypatch.setattr(mm, "supports_fp8_compute", lambda device: True)
    precision.check_precision("fp8_e4m3fn_fast", torch.device("cuda:0"))
    with pytest.raises(UserError, match="There is no precision int4. Choose one of default, fp32"):
        model_loader.load_model(wide, "int4")


def test_weights_with_nan_are_named(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged layer must be named at load: int8 would hide its NaN."""

    def damage(name: str, weight: torch.Tensor) -> torch.Tensor:
        return torch.full_like(weight, float("nan")) if name == f"{LAYER}.weight" else weight

    with pytest.raises(UserError, match=rf"{LAYER}.weight: .*NaN"):
        load_changed(wide, monkeypatch, damage, weight_dtype="fp8_e4m3fn")


@pytest.mark.parametrize("kind", KINDS)
def test_text_encoder(wide: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 is nine of the pipeline's twenty gigabytes: quantised it must still say the same."""
    full, clip = (load_clip(wide, k, monkeypatch) for k in ("fp32", kind))
    error, size = relative_error(encode(clip), encode(full)), clip.patcher.model_size() / full.patcher.model_size()
    record_error(f"T5 {kind}", error, "embeddings")
    record_error(f"T5 {kind}", size, "size")
    assert 0 < error < T5_BOUNDS[kind] and size < 0.8
    parameters = dict(clip.cond_stage_model.named_parameters())
    packed = {name for name, value in parameters.items() if quantized.is_quantized(value)}
    assert packed == {name for name in parameters if precision.is_t5_matrix(name)} and packed
    assert clip.patcher.cached_patcher_init is not None
    assert clip.patcher.cached_patcher_init[0].__name__ == "_load_text_encoder_patcher"


@pytest.mark.parametrize("trained", (torch.bfloat16, torch.float16))
def test_the_host_is_asked_for_the_trained_type_first(monkeypatch: pytest.MonkeyPatch, trained: torch.dtype) -> None:
    """ComfyUI takes the first type that the card computes in: 5b in fp16, or 2b in bf16, would lose what it learnt."""
    asked = []

    def first_of(supported_dtypes: list[torch.dtype], **_: object) -> torch.dtype:
        asked.append(supported_dtypes)
        return supported_dtypes[0]

    monkeypatch.setattr(mm, "unet_dtype", first_of)
    monkeypatch.setattr(mm, "unet_manual_cast", lambda storage, device, supported: asked.append(supported))
    stored = precision.choose_dtypes("default", trained, torch.float32, 5_000_000_000, torch.device("cuda"))
    assert stored == (trained, None)
    assert asked == [asked[0]] * 2 and set(asked[0][1:]) == {torch.bfloat16, torch.float16, torch.float32} - {trained}
