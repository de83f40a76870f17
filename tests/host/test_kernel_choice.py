"""The choice of an attention kernel: by time and error, at the size of the run, and never against the user's own."""

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management as mm
import comfy.ops
import comfy.sample
import pytest
import torch
from torch.nn.attention import SDPBackend

from cogvideox.host import attention_kernels
from cogvideox.host.attention_kernels import (
    FLASH_3,
    FLASH_3_MODULES,
    AttentionSize,
    Measured,
    attention_by_choice,
    choose_attention,
    fastest_kernel,
    measure_kernels,
)
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nodes.long import CogVideoXContextWindows
from cogvideox.samplers import outer_sample

FLASH, CUDNN, EFFICIENT = "FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"
ON_A_CARD = AttentionSize(torch.device("cuda:0"), torch.bfloat16, 17776, 64)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "_CHOSEN", {})


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AttentionSize]]:
    """A card on which cuDNN is faster; the sizes that were measured there."""
    measured: list[AttentionSize] = []

    def measure(size: AttentionSize, heads: int, names: list[str]) -> dict[str, Measured]:
        measured.append(size)
        return {FLASH: Measured(0.024, 2e-3), CUDNN: Measured(0.018, 2e-3)}

    monkeypatch.setattr(attention_kernels, "_host_order", lambda: [FLASH, CUDNN])
    monkeypatch.setattr(attention_kernels, "measure_kernels", measure)
    yield measured


@pytest.mark.parametrize(
    ("measured", "chosen"),
    (
        ({FLASH: (0.024, 2e-3), CUDNN: (0.018, 2e-3), EFFICIENT: (0.056, 2e-3)}, CUDNN),
        ({FLASH: (0.018, 2e-3), CUDNN: (0.024, 2e-3)}, None),
        ({FLASH: (0.0240, 2e-3), CUDNN: (0.0236, 2e-3)}, None),  # the next process might find the opposite
        ({FLASH: (0.0001, 2e-3), CUDNN: (0.00006, 2e-3)}, None),  # the same
        ({FLASH: (0.024, 2e-3), CUDNN: (0.018, 2.2e-3)}, None),
        ({FLASH: (0.024, 2e-3), CUDNN: (0.018, float("nan")), EFFICIENT: (0.02, 1e-3)}, EFFICIENT),
        ({FLASH: (0.024, float("nan")), CUDNN: (0.018, 2e-3)}, None),
        ({EFFICIENT: (0.1, 1e-7)}, None),
        ({}, None),
    ),
)
def test_the_fastest_exact_kernel(measured: dict[str, tuple[float, float]], chosen: str | None) -> None:
    """A faster kernel that is less exact, or hardly faster, must not change anybody's videos."""
    assert fastest_kernel({name: Measured(*found) for name, found in measured.items()}) == chosen


def test_a_size_is_measured_once_and_named_at_every_run(card: list[AttentionSize]) -> None:
    """The measurement takes a part of a step, and the second run's user wants to know as well."""
    sentences = {choose_attention(ON_A_CARD, 48, {}) for _ in range(3)}
    assert card == [ON_A_CARD] and sentences == {"Attention by cuDNN, the fastest kernel of this card at this size."}


def test_what_the_user_has_chosen_stays(card: list[AttentionSize], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts ComfyUI with SageAttention, or takes a node for the attention, has decided; a CPU has one kernel."""
    assert not choose_attention(ON_A_CARD, 48, {"optimized_attention_override": lambda *a, **k: None})
    assert not choose_attention(AttentionSize(torch.device("cpu"), torch.float32, 100, 64), 48, {})
    monkeypatch.setattr(attention_kernels.args, "deterministic", True)
    assert not choose_attention(ON_A_CARD, 48, {})
    assert card == []


def test_the_order_of_comfyui(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order is there where ComfyUI computes with torch's kernels on an NVIDIA card, and nowhere else."""
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    monkeypatch.setattr(comfy.ops, "SDPA_BACKEND_PRIORITY", order, raising=False)
    monkeypatch.setattr(comfy_attention, "optimized_attention", comfy_attention.attention_pytorch)
    monkeypatch.setattr(attention_kernels.mm, "is_nvidia", lambda: True)
    assert attention_kernels._host_order() == [FLASH, CUDNN]
    with monkeypatch.context() as amd:
        amd.setattr(attention_kernels.mm, "is_nvidia", lambda: False)
        assert attention_kernels._host_order() == []
    monkeypatch.setattr(comfy_attention, "optimized_attention", comfy_attention.attention_sage)
    assert attention_kernels._host_order() == []


def test_a_full_card_is_asked_again(card: list[AttentionSize], monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement comes before ComfyUI makes room. It must not end a run, nor decide for the ones after it."""

    def fail(*_: Any) -> dict[str, Measured]:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as full:
        full.setattr(attention_kernels, "measure_kernels", fail)
        assert choose_attention(ON_A_CARD, 48, {}) == ""
    assert choose_attention(ON_A_CARD, 48, {})


def inputs(tokens: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, tokens, 4, 64, generator=generator).transpose(1, 2) for _ in range(3)]


def test_the_chosen_kernel_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's function is left for torch's: heads, layout and scale have to be those of ComfyUI's."""
    query, key, value = inputs()
    called: list[list[str]] = []
    compute = attention_kernels._scaled_dot_product

    def spy(*arguments: Any) -> torch.Tensor:
        called.append(arguments[3])
        return compute(*arguments)

    monkeypatch.setattr(attention_kernels, "_scaled_dot_product", spy)
    monkeypatch.setattr(attention_kernels, "_host_order", lambda: [EFFICIENT, FLASH])
    theirs = comfy_attention.attention_pytorch(query, key, value, 4, skip_reshape=True)
    assert torch.equal(attention_by_choice(query, key, value, 4, skip_reshape=True), theirs) and not called
    attention_kernels._CHOSEN[AttentionSize(query.device, query.dtype, 30, 64)] = FLASH
    assert torch.equal(attention_by_choice(query, key, value, 4, skip_reshape=True), theirs)
    assert called == [[FLASH, EFFICIENT, FLASH]]
    # A mask, or fewer queries than keys, is ComfyUI's.
    mask = torch.zeros(30, 30)
    masked = attention_by_choice(query, key, value, 4, mask, skip_reshape=True)
    assert torch.allclose(masked, theirs, atol=1e-6) and len(called) == 1
    attention_by_choice(query[:, :, :7], key, value, 4, skip_reshape=True)
    # So is whatever else a node's override may ask for.
    attention_by_choice(query, key, value, 4, skip_reshape=True, scale=0.01)
    assert len(called) == 1


def test_an_override_gets_the_chosen_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that put something around the attention call what they are given."""
    query, key, value = inputs()

    def doubled(function: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        return 2 * function(*arguments, **options)

    options = {"skip_reshape": True, "transformer_options": {"optimized_attention_override": doubled}}
    plain = attention_by_choice(query, key, value, 4, skip_reshape=True)
    assert torch.equal(attention_by_choice(query, key, value, 4, **options), 2 * plain)


def test_kernels_are_measured_with_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel lacks is left out; a CPU's own is exact; and the numbers of the program's generator stay."""
    monkeypatch.setattr(attention_kernels, "seconds_on_card", lambda call: (call(), 0.5)[1])
    monkeypatch.setattr(attention_kernels, "_measured_heads", lambda size: 3)
    size = AttentionSize(torch.device("cpu"), torch.float32, 300, 64)
    before = torch.get_rng_state()
    found = measure_kernels(size, 48, [CUDNN, FLASH])
    assert list(found) == [FLASH] and found[FLASH].error < 1e-6 and found[FLASH].seconds == 0.5
    assert torch.equal(torch.get_rng_state(), before)
    assert measure_kernels(AttentionSize(size.device, torch.bfloat16, 300, 64), 48, [FLASH])[FLASH].error > 1e-4


def install_flash_3(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, with_sums: bool = False, name: str = FLASH_3_MODULES[0]
) -> None:
    """A stand-in for FlashAttention-3's package that computes in `dtype`. with_sums: as its first versions return."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        assert query.is_contiguous(), "not [B, N, heads, D]"
        q, k, v = (x.transpose(1, 2).to(dtype).to(query.dtype) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return (out, None) if with_sums else out

    for other in FLASH_3_MODULES:
        monkeypatch.setitem(sys.modules, other, None)
    module: Any = ModuleType(name)
    module.flash_attn_func = attend
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(attention_kernels, "_flash_3", cache(attention_kernels._flash_3.__wrapped__))


@pytest.mark.parametrize(
    ("name", "dtype", "with_sums", "chosen"),
    (
        ("flash_attn_interface", torch.bfloat16, False, FLASH_3),
        ("flash_attn_interface", torch.bfloat16, True, FLASH_3),
        ("fa3_fwd_interface", torch.bfloat16, False, FLASH_3),
        ("flash_attn_interface", torch.float8_e4m3fn, False, None),
    ),
)
def test_flash_attention_3(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, with_sums: bool, chosen: str | None
) -> None:
    """Who has installed it wants its speed, and nobody a less exact video: in fp8 it is passed over."""
    install_flash_3(monkeypatch, dtype, with_sums, name)
    seconds = {FLASH: 0.02, FLASH_3: 0.01}
    monkeypatch.setattr(attention_kernels, "_host_order", lambda: [FLASH])
    monkeypatch.setattr(attention_kernels, "seconds_on_card", lambda call: seconds[call.args[-1][0]])
    monkeypatch.setattr(attention_kernels, "_measured_heads", lambda size: 3)
    size = AttentionSize(torch.device("cpu"), torch.bfloat16, 300, 64)

    def measure_here(_: AttentionSize, *rest: Any) -> dict[str, Measured]:
        return measure_kernels(size, *rest)

    monkeypatch.setattr(attention_kernels, "measure_kernels", measure_here)
    told = choose_attention(ON_A_CARD, 48, {})
    assert attention_kernels._CHOSEN == {ON_A_CARD: chosen} and ("by FlashAttention-3," in told) == bool(chosen)
    attention_kernels._CHOSEN[size] = FLASH_3
    query, key, value = (x.bfloat16() for x in inputs(300))
    theirs = comfy_attention.attention_pytorch(query, key, value, 4, skip_reshape=True)
    ours = attention_by_choice(query, key, value, 4, skip_reshape=True)
    assert ours.shape == theirs.shape and torch.equal(ours, theirs) == bool(chosen)


def test_flash_attention_3_that_is_not_there(card: list[AttentionSize], monkeypatch: pytest.MonkeyPatch) -> None:
    """A package for another torch must not end a run, and is not asked for at each size."""
    for name in FLASH_3_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(attention_kernels, "_flash_3", cache(attention_kernels._flash_3.__wrapped__))
    assert attention_kernels._flash_3() is None and "cuDNN" in choose_attention(ON_A_CARD, 48, {})


@pytest.mark.parametrize(("variant", "frames", "windows"), (("5b", 3, False), ("1.5-5B", 3, False), ("5b", 13, True)))
def test_a_run_measures_the_sizes_that_it_has(
    tiny_pipelines: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    inference: None,
    variant: str,
    frames: int,
    windows: bool,
) -> None:
    """Another size than that of the model's own attention would be measured, and never used."""
    told: list[str] = []
    model = load_model(tiny_pipelines[variant], "fp32", notify=told.append)
    if windows:
        model = CogVideoXContextWindows.execute(model, 29, 4, "standard_static", "pyramid", False).args[0]
    measured, used = set[AttentionSize](), set[AttentionSize]()

    def choose(size: AttentionSize, heads: int, _: dict[str, Any]) -> str:
        # Earlier it might measure on a card that is full of other models, without the room that loading makes.
        assert model.model in [loaded.model.model for loaded in mm.current_loaded_models if loaded.model], "not loaded"
        assert not used, "a step was computed before"
        assert heads == model.model.diffusion_model.config.num_attention_heads
        measured.add(size)
        return "Attention by a kernel."

    def record(function: Any, query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        used.add(AttentionSize(query.device, query.dtype, query.shape[2], query.shape[3]))
        return function(query, *arguments, **options)

    monkeypatch.setattr(outer_sample, "choose_attention", choose)
    options: Any = model.model_options["transformer_options"]
    options["optimized_attention_override"] = record
    noise = torch.randn(1, 16, frames, 8, 12)
    text = [[torch.randn(1, 226, 32), {}]]
    comfy.sample.sample(model, noise, 1, 1.0, "euler", "simple", text, text, noise * 0, seed=1)
    assert used and measured == used
    assert told == ["Attention by a kernel."]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_of_a_card() -> None:
    """On a card each kernel that it has is timed, and its error is that of bf16."""
    size = AttentionSize(torch.device("cuda:0"), torch.bfloat16, 4096, 64)
    found = measure_kernels(size, 48, [FLASH, CUDNN, EFFICIENT])
    assert FLASH in found and all(1e-4 < one.error < 1e-2 and 0 < one.seconds < 0.1 for one in found.values())
