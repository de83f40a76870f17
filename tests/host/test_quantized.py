"""Quantised weights as numbers and as layers, against their formulas and ComfyUI's own operations."""

from collections.abc import Callable
from typing import Any

import comfy.ops
import pytest
import torch

from cogvideox.benchmarks.common import stored_bytes
from cogvideox.errors import UserError
from cogvideox.host import quantized
from cogvideox.host import quantized_ops as ops
from cogvideox.model_loaders.files.gguf_blocks import gguf_tensor
from cogvideox.tests.support import host_lacks, relative_error

MODES = quantized.QUANTIZED_MODES
needs_int8 = pytest.mark.skipif("TensorWiseINT8Layout" not in quantized.FORMATS, reason=host_lacks("int8 weights"))
EACH_MODE = pytest.mark.parametrize("mode", [pytest.param(m, marks=needs_int8 if m == "int8" else ()) for m in MODES])


def matrix(rows: int = 48, columns: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def linear(weight: torch.Tensor, operations: Any = ops.QuantizedOps) -> Any:
    layer = operations.Linear(weight.shape[1], weight.shape[0], dtype=torch.float32)
    layer.load_state_dict({"weight": weight, "bias": torch.linspace(-1, 1, weight.shape[0])}, assign=True)
    return layer.requires_grad_(False)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_fp8_stands_for_its_codes_times_the_scale(dtype: torch.dtype) -> None:
    """A scale that is rounded or left out bends every layer of a scaled fp8 file."""
    codes, scale = (matrix() * 1000).to(torch.float8_e4m3fn), torch.tensor([0.00217])
    tensor = quantized.fp8_tensor(codes, scale, dtype)
    assert tensor.shape == codes.shape and tensor.dtype == dtype
    assert torch.equal(quantized.dequantized(tensor, dtype), (codes.float() * scale).to(dtype))
    assert torch.equal(quantized.dequantized(quantized.fp8_tensor(codes, None, dtype), torch.float32), codes.float())
    assert stored_bytes(tensor) == codes.numel() + 4


@needs_int8
@pytest.mark.parametrize("shape", [(), (1,), (48,), (48, 1)])
def test_int8_stands_for_its_codes_times_the_scales(shape: tuple[int, ...]) -> None:
    """torchao's files have one scale a row, ComfyUI's may have one a matrix."""
    codes = torch.randint(-128, 128, (48, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    tensor = quantized.int8_tensor(codes, scale, torch.bfloat16)
    want = codes.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)
    assert torch.equal(quantized.dequantized(tensor, torch.float32), want)
    assert torch.equal(tensor.dequantize(), want.to(torch.bfloat16))


@EACH_MODE
def test_quantizing_rounds_once(mode: str) -> None:
    """Error beyond half a step is a wrong scale: pictures get grey or noisy."""
    weight = matrix()
    weight[3] *= 40  # one row of outliers costs the others nothing in int8, and fp8 nothing at all
    weight[5] = 0
    tensor = quantized.quantize(weight, mode, torch.float32)
    off = (quantized.dequantized(tensor, torch.float32) - weight).abs()
    step = tensor._params.scale
    # e4m3: three bits after the leading one, and below 2^-6 steps of 2^-9
    half = step / 2 if mode == "int8" else torch.maximum(weight.abs() * 2.0**-4, step * 2.0**-10)
    assert (off <= half * 1.0001).all() and off.max() > 0
    assert stored_bytes(tensor) == weight.numel() + step.numel() * 4


def test_fp8_is_exact_in_every_type_it_is_multiplied_in() -> None:
    """ComfyUI unpacks into bf16 with a scale in bf16; only a power of two survives that."""
    for seed in range(5):
        tensor = quantized.quantize(matrix(seed=seed) * 3**seed, "fp8_e4m3fn", torch.float32)
        exact = tensor.dequantize()
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(tensor.to(dtype=dtype).dequantize().float(), exact)


@EACH_MODE
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_nan_and_inf_are_refused(mode: str, value: float) -> None:
    """In int8 a NaN would become an innocent zero."""
    weight = matrix()
    weight[7, 7] = value
    with pytest.raises(UserError, match=r"shape \[48, 64\] contains NaN or Inf"):
        quantized.quantize(weight, mode, torch.float32)


@EACH_MODE
def test_packing_again_what_was_unpacked_changes_nothing(mode: str) -> None:
    """ComfyUI unpacks and packs small layers when it loads them: each time would add noise."""
    tensor = quantized.quantize(matrix(), mode, torch.float32)
    again = quantized.requantize(tensor, tensor.dequantize(), seed=11)
    assert again.dtype == tensor.dtype
    changed = (again._qdata.float() != tensor._qdata.float()).float().mean()
    # a code that comes out just off its value may round to its neighbour
    assert changed < 5e-3


def test_host_without_the_types_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older ComfyUI must name what it lacks, not fail in a lookup."""
    codes = torch.zeros(2, 32, dtype=torch.int8)
    monkeypatch.setattr(quantized, "FORMATS", {})
    for make in (
        lambda: quantized.int8_tensor(codes, torch.ones(2), torch.float32),
        lambda: quantized.quantize(torch.ones(2, 2), "int8", torch.float32),
        lambda: quantized.fp8_tensor(codes.to(torch.float8_e4m3fn), None, torch.float32),
    ):
        with pytest.raises(UserError, match="this version of ComfyUI, [0-9.]+, has no such type.* Update ComfyUI"):
            make()
    monkeypatch.setattr(quantized, "_AVAILABLE", False)
    assert not quantized.is_quantized(codes)
    with pytest.raises(UserError, match="Weights in GGUF cannot be used: its package comfy-kitchen"):
        gguf_tensor(torch.zeros(2, 34, dtype=torch.uint8), "Q8_0", (2, 32), torch.float32)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@EACH_MODE
def test_layer_multiplies_the_unpacked_weight(mode: str, dtype: torch.dtype) -> None:
    """A layer that quantises its input without being asked loses more than its weights do."""
    weight = quantized.quantize(matrix(), mode, dtype)
    layer = linear(weight)
    x = matrix(5, 64, seed=3).to(dtype).unsqueeze(0)
    want = torch.nn.functional.linear(x, weight.dequantize(), layer.bias.to(dtype))
    assert torch.equal(layer(x), want)


@EACH_MODE
def test_fast_layer_quantizes_its_input(mode: str) -> None:
    """The fast modes must be the same layer up to the rounding of the input, at any size of it."""
    weight = quantized.quantize(matrix(64, 128), mode, torch.bfloat16)
    plain, fast = linear(weight), linear(weight, ops.FastQuantizedOps)
    for layer in (plain, fast):
        layer.bias.zero_()
    for size in (1.0, 1e-3, 2000.0):
        x = (matrix(2 * 16, 128, seed=4) * 20 * size).to(torch.bfloat16).reshape(2, 16, 128)
        error = relative_error(fast(x), plain(x))
        assert fast(x).shape == (2, 16, 64) and 1e-4 < error < (0.04 if mode == "fp8_e4m3fn" else 0.015)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_fast_layer_gets_its_rows_in_parts(parts: int) -> None:
    """Several cards and lean memory modes multiply some of the rows at a time, whose largest values differ: fp8 has
    another scale then. The result is another one and no worse, which docs/many-cards.md says."""
    weight = quantized.quantize(matrix(64, 128), "fp8_e4m3fn", torch.bfloat16)
    plain, fast = linear(weight), linear(weight, ops.FastQuantizedOps)
    for layer in (plain, fast):
        layer.bias.zero_()
    x = (matrix(2 * 24, 128, seed=4) * 20).to(torch.bfloat16).reshape(2, 24, 128)
    x = x * torch.linspace(0.1, 40, 24, dtype=x.dtype)[:, None]
    exact, whole = plain(x), fast(x)
    divided = torch.cat([fast(part) for part in x.tensor_split(parts, dim=1)], dim=1)
    assert not torch.equal(divided, whole)
    assert relative_error(divided, whole) < 0.04
    assert relative_error(divided, exact) < 1.2 * relative_error(whole, exact)


@EACH_MODE
def test_state_dict_is_comfyui_s_own(mode: str) -> None:
    """What stock nodes save must load in stock loaders."""
    layer = linear(quantized.quantize(matrix(), mode, torch.bfloat16))
    saved = layer.state_dict(prefix="a.b.")
    assert set(saved) == {"a.b.weight", "a.b.weight_scale", "a.b.comfy_quant", "a.b.bias"}
    stock = comfy.ops.mixed_precision_ops({}, torch.bfloat16).Linear(64, 48, device="cpu", dtype=torch.bfloat16)
    stock.load_state_dict({name.removeprefix("a.b."): value for name, value in saved.items()}, strict=False)
    assert torch.equal(stock.weight.dequantize(), layer.weight.dequantize())


@EACH_MODE
@pytest.mark.parametrize("assign", (True, False))
def test_layer_takes_a_quantized_weight_as_it_is(mode: str, assign: bool) -> None:
    """torch copies into the old parameter, which would unpack the weight again."""
    module: Any = torch.nn.Sequential(ops.QuantizedOps.Linear(64, 48, dtype=torch.float32))
    weight = quantized.quantize(matrix(), mode, torch.float32)
    module.load_state_dict({"0.weight": weight, "0.bias": torch.ones(48)}, assign=assign)
    assert quantized.is_quantized(module[0].weight) and (module[0].bias == 1).all()
    assert module[0].weight._qdata.data_ptr() == weight._qdata.data_ptr()
    with pytest.raises(RuntimeError, match=r"0.weight has shape \[48, 64\], the model \[64, 64\]"):
        torch.nn.Sequential(ops.QuantizedOps.Linear(64, 64, dtype=torch.float32)).load_state_dict({"0.weight": weight})
    module.load_state_dict({"0.weight": torch.ones(48, 64), "0.bias": torch.ones(48)}, assign=True)
    assert not quantized.is_quantized(module[0].weight)


def each_kind() -> dict[str, Callable[[], torch.Tensor]]:
    blocks = torch.randint(0, 60, (48, 68), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    kinds = {mode: lambda mode=mode: quantized.quantize(matrix(), mode, torch.float32) for mode in MODES}
    return kinds | {"gguf": lambda: gguf_tensor(blocks, "Q8_0", (48, 64), torch.float32)}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs_int8 if k == "int8" else ()) for k in each_kind()])
def test_module_moves_with_its_quantized_weight(kind: str) -> None:
    """ComfyUI moves and casts whole modules; the weight's scales and blocks must go along."""
    module: Any = torch.nn.Sequential(linear(each_kind()[kind]()))
    x, before = matrix(4, 64, seed=6), module[0].weight.dequantize()
    want = module(x)
    module.to(torch.bfloat16)
    assert module[0].weight.dtype == module[0].bias.dtype == torch.bfloat16
    module.to(torch.float32)
    assert torch.equal(module[0].weight.dequantize(), before)
    module.to("meta")
    assert module[0].weight.device.type == "meta" and module[0].weight._qdata.device.type == "meta"
    with torch.inference_mode():
        module = torch.nn.Sequential(linear(each_kind()[kind]())).to("cpu")
    assert torch.equal(module(x), want)
    assert torch.equal(torch.nn.Sequential(linear(each_kind()[kind]().clone()))(x), want)
