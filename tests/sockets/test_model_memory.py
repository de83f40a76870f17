"""The memory that the pack asks ComfyUI to free, against what a forward really takes: at full width, without memory."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from cogvideox.benchmarks import bench_traffic
from cogvideox.benchmarks.traffic import count_traffic
from cogvideox.benchmarks.traffic_kernels import no_stand_in, torch_rotation, triton_kernels
from cogvideox.host import memory_rules
from cogvideox.sockets import model as model_module
from cogvideox.tests.fake_card import CARD, SizedCard, SizedPatcher
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.transformer import dit as dit_module
from cogvideox.transformer import token_passes

GIB = 1 << 30
# What turns queries and keys, and whether the transformer's own kernels are there.
KERNELS = {"torch": torch_rotation, "a kernel for the rotation": no_stand_in, "Triton": triton_kernels}


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module.mm, "get_torch_device", lambda: CARD)
    monkeypatch.setattr(token_passes, "_has_triton", lambda: True)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Say how many bytes there are for activations: of the run, and in the step."""

    def set_free(free_bytes: float) -> None:
        monkeypatch.setattr(model_module, "free_for_run", lambda device: free_bytes)
        monkeypatch.setattr(dit_module, "free_in_step", lambda device: free_bytes)

    set_free(math.inf)
    return set_free


def estimate(dit: torch.nn.Module, shape: Sequence[int]) -> float:
    model: Any = SimpleNamespace(diffusion_model=dit, get_dtype_inference=lambda: torch.bfloat16)
    return model_module.CogVideoXModel.memory_required(model, list(shape))


# Variant, batch, latents if not the official ones.
RUNS: dict[str, tuple[str, int, bench_traffic.Latent | None]] = {
    "2b": ("2b", 1, None),
    "5b, both prompts": ("5b", 2, None),
    "1.5-5B": ("1.5-5B", 1, None),
    "5b, 9 frames": ("5b", 1, (3, 60, 90)),
}


@pytest.mark.parametrize(("run", "mode", "kernels"), long_but_one_in(2, tuple(RUNS), ("default", "lean"), [*KERNELS]))
def test_estimate_covers_the_peak(
    run: str,
    mode: str,
    kernels: str,
    free: Callable[[float], None],
    request: pytest.FixtureRequest,
) -> None:
    """Too low an estimate overflows the card in the middle of a run; too high a one evicts models in vain."""
    if kernels == "Triton":
        request.getfixturevalue("with_triton")
    if mode == "lean":
        free(0)
    variant, batch, latent = RUNS[run]
    size = bench_traffic.SIZES[variant]
    inputs = bench_traffic.latent_inputs(latent or size.latent, batch)
    dit, forward = bench_traffic.our_forward(size.config | {"num_layers": 2}, *inputs)
    with bench_traffic.torch_attention():
        counted = count_traffic(forward, [*dit.parameters(), *dit.buffers()], KERNELS[kernels])
    assert counted.peak_bytes <= estimate(dit, inputs[0].shape) <= 1.1 * counted.peak_bytes


def test_a_kernel_that_has_failed_is_not_counted_on(
    with_triton: None, free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a forward takes nearly twice the memory; so do few tokens, for which no kernel is launched."""
    size = bench_traffic.SIZES["5b"]
    shape = (1, 16, *size.latent)
    dit, _ = bench_traffic.our_forward(size.config | {"num_layers": 1}, *bench_traffic.latent_inputs(size.latent, 1))
    with_kernels, small = estimate(dit, shape), estimate(dit, (1, 16, 3, 16, 16))
    monkeypatch.setattr(token_passes, "_WITHOUT", {(token_passes.ROTATION, CARD, torch.bfloat16)})
    assert estimate(dit, shape) > 1.7 * with_kernels
    assert estimate(dit, (1, 16, 3, 16, 16)) == small


def test_the_lean_mode_is_offered_where_nothing_else_fits(
    free: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for the default mode on a card that is too small for it, ComfyUI would keep no weights there, and asked for
    the lean one on a larger card, it would leave no room for the faster mode. Prompt and negative prompt need not fit
    together: two passes of the default mode are as fast."""
    size = bench_traffic.SIZES["5b"]
    dit, _ = bench_traffic.our_forward(size.config | {"num_layers": 1}, *bench_traffic.latent_inputs(size.latent, 1))
    one, both = (1, 16, *size.latent), (2, 16, *size.latent)
    default = estimate(dit, one)
    free(default)
    assert estimate(dit, one) == default and estimate(dit, both) == pytest.approx(2 * default, rel=0.01)
    free(default - 1)
    lean = estimate(dit, one)
    assert lean < 0.6 * default and estimate(dit, both) == pytest.approx(2 * lean, rel=0.03)
    # A model that has no lean mode is not promised to take so little.
    monkeypatch.setattr(dit.get_submodule("transformer_blocks.0.attn1.to_q"), "forward", lambda x: x)
    assert estimate(dit, one) == default


def test_room_for_a_run_is_that_of_an_empty_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text encoder, or the model's own weights, may fill the card when ComfyUI asks: it unloads them. What the user
    keeps for others (--reserve-vram) is not there for a run."""
    model, encoder = SizedPatcher(6 * GIB, 3 * GIB), SizedPatcher(4 * GIB, 4 * GIB)
    SizedCard(monkeypatch, 8 * GIB, model, encoder)
    monkeypatch.setattr(mm, "extra_reserved_memory", lambda: GIB)
    assert memory_rules.free_for_run(CARD) == 7 * GIB
    assert memory_rules.free_in_step(CARD) == GIB
    assert memory_rules.free_in_step(torch.device("meta")) == math.inf
