"""Products on the CPU: by oneDNN, and in bf16, where a timing finds that faster; the same results in any case."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch
import torch.nn.functional as F

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.host import cpu_products
from cogvideox.host.cpu_products import (
    OneDnnLinear,
    OneDnnOps,
    bf16_is_faster,
    cpu_operations,
    linear,
    onednn_is_faster,
)
from cogvideox.host.ops import is_plain_layer
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.sockets.control import CogVideoXControl
from cogvideox.tests.controlnet_reference import reference_rotary
from cogvideox.tests.quantized_models import encode, forward, four_steps, load
from cogvideox.tests.support import check_parity, record_error, reference_transformer, relative_error

CPU = torch.device("cpu")
TOKENS = 20  # of the text, where a CPU may take ten times as long as usual
pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs a torch with oneDNN, which this one is built without"
)
Product = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def unmeasured() -> Iterator[None]:
    """Each test finds, and leaves, a process in which nothing has been timed."""
    cached = cpu_products.measured_onednn, cpu_products.measured_bf16
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """As on a CPU where oneDNN is faster. The shapes of what it has multiplied."""
    shapes: list[torch.Size] = []
    multiply = cpu_products._by_onednn

    def noted(x: torch.Tensor, *others: Any) -> torch.Tensor:
        shapes.append(x.shape)
        return multiply(x, *others)

    monkeypatch.setattr(cpu_products, "_by_onednn", noted)
    monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: True)
    return shapes


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[Any, float]) -> None:
    """Let the clock go on by `seconds` of a call: of F.linear by its dtype, and of torch's product in the place of
    oneDNN's, whose error is larger on some CPUs."""
    now = [0.0]

    def waiting(call: Product, name: Any) -> Product:
        def run(x: torch.Tensor, *others: Any) -> torch.Tensor:
            now[0] += seconds.get(name, seconds.get(x.dtype, 0.0))
            return call(x, *others)

        return run

    monkeypatch.setattr(cpu_products, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cpu_products, "_by_onednn", waiting(F.linear, "oneDNN"))
    monkeypatch.setattr(cpu_products.F, "linear", waiting(F.linear, "torch"))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 96), (2, 50, 96), (1, 32, 96), (3, 4, 5, 96)])
def test_products_are_as_exact_as_torch_s(by_onednn: list, shape: tuple, has_bias: bool) -> None:
    """An error beyond rounding would add up over 42 blocks and 50 steps."""
    generator = torch.Generator().manual_seed(1)
    x, weight = torch.randn(shape, generator=generator), torch.randn(70, 96, generator=generator)
    bias = torch.randn(70, generator=generator) if has_bias else None
    # as a view of wider tensors, which is what the lean mode's spans, a LoRA's slices, and weights of a torch file are
    wide = torch.cat([x, x], dim=-1)[..., :96]
    tall = torch.cat([weight, weight], dim=1)[:, :96]
    strided = None if bias is None else torch.stack([bias, bias], dim=1)[:, 0]
    with torch.inference_mode():
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        for got in (linear(x, weight, bias), linear(wide, tall, strided)):
            assert got.shape == exact.shape and got.dtype == torch.float32
            check_parity("product by oneDNN, against fp64", got, exact, 3e-7)
    assert len(by_onednn) == 2


def test_torch_multiplies_what_onednn_should_not(by_onednn: list) -> None:
    """The operator has no gradients: a training would stand still. A few rows take longer to hand over than to
    multiply."""
    weight = torch.randn(8, 96)
    with torch.inference_mode():
        few, half = torch.randn(1, 8, 96), torch.randn(1, 40, 96).bfloat16()
        assert torch.equal(linear(few, weight, None), F.linear(few, weight))
        assert torch.equal(linear(half, weight.bfloat16(), None), F.linear(half, weight.bfloat16()))
        assert linear(torch.empty(0, 96), weight, None).shape == (0, 8)
        assert linear(torch.empty(40, 0), torch.empty(8, 0), None).shape == (40, 8)
        assert linear(torch.ones(40, 96), weight, torch.ones(1)).shape == (40, 8)  # broadcast
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(torch.randn(40, 96), weight, None).dtype == torch.bfloat16
    with torch.inference_mode():
        x = torch.randn(40, 96)
        compiled = torch.compile(linear, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, weight, None), F.linear(x, weight))
    x = torch.randn(40, 96, requires_grad=True)
    linear(x, weight, None).sum().backward()
    assert x.grad is not None
    assert by_onednn == []


@pytest.mark.parametrize(("onednn_seconds", "is_faster"), [(0.55, True), (0.79, True), (0.9, False), (1.2, False)])
def test_the_faster_product_is_taken(
    monkeypatch: pytest.MonkeyPatch, onednn_seconds: float, is_faster: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    timed(monkeypatch, {"oneDNN": onednn_seconds, "torch": 1.0})
    assert onednn_is_faster() is is_faster
    assert f"in {onednn_seconds:.2f} of the time" in caplog.text  # a report of slow runs has it


@pytest.mark.parametrize(
    "failing",
    [
        pytest.param(AttributeError("'_OpNamespace' 'mkldnn' object has no attribute"), id="is not there"),
        pytest.param(RuntimeError("expected at most 5 arguments"), id="has other arguments"),
        pytest.param(TypeError("unhashable"), id="takes other types"),
    ],
)
def test_without_the_operator_torch_multiplies(monkeypatch: pytest.MonkeyPatch, failing: Exception) -> None:
    """It is not documented: the next torch may lack it, and a model must load all the same."""

    def by_onednn(*_: Any) -> torch.Tensor:
        raise failing

    monkeypatch.setattr(cpu_products, "_by_onednn", by_onednn)
    x, weight = torch.randn(40, 96), torch.randn(8, 96)
    with torch.inference_mode():
        assert torch.equal(linear(x, weight, None), F.linear(x, weight))


@pytest.mark.parametrize("wrong", [1.0 + 1e-5, float("nan")])
def test_an_inexact_product_is_not_taken(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    """However fast: oneDNN may be told to multiply fp32 in fewer bits (ONEDNN_DEFAULT_FPMATH_MODE)."""
    timed(monkeypatch, {"oneDNN": 0.1, "torch": 1.0})
    multiply = cpu_products._by_onednn
    monkeypatch.setattr(cpu_products, "_by_onednn", lambda *call: multiply(*call) * wrong)
    assert not onednn_is_faster()


def test_onednn_that_is_switched_off_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"oneDNN": 0.1, "torch": 1.0})
    assert cpu_operations(torch.float32, CPU) is OneDnnOps
    x, weight = torch.randn(40, 96), torch.randn(8, 96)
    monkeypatch.setattr(cpu_products, "_by_onednn", lambda *_: pytest.fail("oneDNN was called"))
    with torch.backends.mkldnn.flags(enabled=False), torch.inference_mode():
        assert cpu_operations(torch.float32, CPU) is None
        linear(x, weight, None)


def test_a_timing_leaves_torch_as_it_was() -> None:
    """And is not misled by what another node has set for all of torch."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.device("meta"):
        assert cpu_products.measured_onednn() is not None
        cpu_products.measured_bf16()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)  # a seed's video would depend on whether it is the first


@pytest.mark.parametrize("variant", ["2b", "5b", "1.5-5B"])
def test_a_run_by_onednn(variant: str, tiny_pipelines: dict[str, Path], by_onednn: list) -> None:
    """The same result but for rounding, with every product of a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_products, "onednn_is_faster", lambda: False)
        usual = four_steps(load_model(tiny_pipelines[variant], "fp32"))
    assert not by_onednn
    model = load_model(tiny_pipelines[variant], "fp32")
    check_parity(f"four steps by oneDNN, {variant}", four_steps(model), usual, 3e-6)
    blocks = model.model.diffusion_model.transformer_blocks
    assert len(by_onednn) >= 4 * 6 * len(blocks)  # steps x products of a block
    # or neither the lean mode nor a LoRA on the fly would know them
    assert all(is_plain_layer(layer) for layer in (blocks[0].attn1.to_q, blocks[0].ff.net[2]))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16", "fp8_e4m3fn", "Q8_0"])
def test_every_precision_by_onednn(wide: Path, kind: str, by_onednn: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked or cast to fp32 for the product is multiplied as quickly."""
    monkeypatch.setattr(cpu_products, "bf16_is_faster", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(cpu_products, "onednn_is_faster", lambda: False)
        usual = forward(load(wide, kind, monkeypatch))
    assert not by_onednn
    check_parity(f"forward by oneDNN, {kind}", forward(load(wide, kind, monkeypatch)), usual, 1e-6)
    assert len(by_onednn) >= 2 * 6


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp8_e4m3fn"])
def test_t5_by_onednn(
    tiny_pipelines: dict[str, Path], kind: str, by_onednn: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt takes T5-XXL longer on a CPU than a step takes a card."""
    with monkeypatch.context() as patch:
        patch.setattr(cpu_products, "onednn_is_faster", lambda: False)
        usual = encode(load_text_encoder(tiny_pipelines["5b"], kind))
    assert not by_onednn
    check_parity(f"T5 by oneDNN, {kind}", encode(load_text_encoder(tiny_pipelines["5b"], kind)), usual, 2e-6)
    assert by_onednn


def test_control_nets_by_onednn(tmp_path: Path, by_onednn: list, monkeypatch: pytest.MonkeyPatch) -> None:
    net = load_controlnet(write_controlnet(tmp_path / "net", "5b"), "fp32")
    layers = [layer for layer in _net(net).modules() if isinstance(layer, torch.nn.Linear)]
    assert layers and all(isinstance(layer, OneDnnLinear) for layer in layers)
    monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: False)
    again = load_controlnet(tmp_path / "net", "fp32")
    assert not any(isinstance(layer, OneDnnLinear) for layer in _net(again).modules())


def test_a_card_s_model_has_comfyui_s_layers(by_onednn: list) -> None:
    for compute, device in ((torch.float32, torch.device("cuda")), (torch.bfloat16, CPU)):
        assert cpu_operations(compute, device) is None
    assert cpu_operations(torch.float32, CPU) is OneDnnOps


@pytest.mark.parametrize("is_faster", [True, False])
def test_bf16_is_computed_in_bf16_where_that_is_faster(
    wide: Path, monkeypatch: pytest.MonkeyPatch, is_faster: bool
) -> None:
    """ComfyUI's rule, fp32 on every CPU, takes 2.2 times diffusers' time on a CPU with AVX512-BF16."""
    monkeypatch.setattr(cpu_products, "bf16_is_faster", lambda: is_faster)
    exact, model = forward(load_model(wide, "fp32"), TOKENS), load_model(wide, "bf16")
    compute = torch.bfloat16 if is_faster else torch.float32
    assert model.model.get_dtype() == torch.bfloat16 and model.model.get_dtype_inference() == compute
    error = relative_error(forward(model, TOKENS), exact)
    theirs = relative_error(_in_bf16(wide), exact)
    record_error("transformer bf16 on a CPU", error, f"computed in {compute}")
    assert 1e-3 < error <= (1.05 * theirs if is_faster else 5e-3)


def test_bf16_in_a_control_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "bf16_is_faster", lambda: True)
    net = load_controlnet(write_controlnet(tmp_path / "net", "5b"), "bf16")
    assert _net(net).dtype == torch.bfloat16


@pytest.mark.parametrize("weight_dtype", ["default", "fp32", "fp16", "fp8_e4m3fn", "int8"])
def test_bf16_is_computed_for_nobody_else(weight_dtype: str, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of a CPU stays exact."""
    monkeypatch.setattr(cpu_products, "bf16_is_faster", lambda: True)
    assert load_model(wide, weight_dtype).model.get_dtype_inference() == torch.float32


def test_two_threads_leave_torch_its_threads() -> None:
    """Two models that are loaded at once: the second timing would put back the one thread of the first."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        for asked in [
            pool.submit(measure)
            for measure in (cpu_products.measured_onednn, cpu_products.measured_bf16)
            for _ in range(2)
        ]:
            asked.result()
        assert {pool.submit(torch.get_num_threads).result() for _ in range(8)} == {threads}
    assert torch.get_num_threads() == threads


def test_who_asks_for_fp32_gets_it(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--force-fp32 is the user's own word."""
    monkeypatch.setattr(cpu_products, "bf16_is_faster", lambda: True)
    monkeypatch.setattr(mm, "FORCE_FP32", True)
    assert load_model(wide, "bf16").model.get_dtype_inference() == torch.float32


@pytest.mark.parametrize(
    ("half", "by_onednn_seconds", "is_faster"),
    [(0.5, 2.0, True), (0.9, 2.0, False), (8.0, 2.0, False), (0.5, 0.5, False)],
)
def test_the_faster_dtype_is_taken(
    monkeypatch: pytest.MonkeyPatch, half: float, by_onednn_seconds: float, is_faster: bool
) -> None:
    """Compared with the fp32 product that would be taken instead, be it oneDNN's."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    timed(monkeypatch, {torch.bfloat16: half, torch.float32: 1.0, "oneDNN": by_onednn_seconds})
    assert bf16_is_faster() is is_faster


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": False, "avx512_f": True}])
def test_bf16_takes_instructions_for_it(monkeypatch: pytest.MonkeyPatch, capabilities: dict) -> None:
    """A clock alone would have it decide, on a bad day, about another video for the same seed."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    timed(monkeypatch, {torch.bfloat16: 0.1, torch.float32: 1.0})
    assert not bf16_is_faster()


def _net(control: CogVideoXControl) -> Any:
    return control.patcher.model


def _in_bf16(folder: Path) -> torch.Tensor:
    """diffusers' forward in bf16, of the input that `forward` has."""
    theirs = reference_transformer(folder).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, theirs.config.in_channels, 2, 8, 12, generator=generator).bfloat16()
    text = torch.randn(1, TOKENS, theirs.config.text_embed_dim, generator=generator).bfloat16()
    rotary = reference_rotary(theirs, (2, 8, 12))
    with torch.inference_mode():
        call: Any = {"image_rotary_emb": rotary, "return_dict": False}
        return theirs(latents.transpose(1, 2), text, torch.tensor([500.0]), **call)[0].transpose(1, 2).float()
