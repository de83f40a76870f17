"""The memory that the pack asks ComfyUI to free, against what a forward really takes: at full width, without memory."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cogvideox.benchmarks import bench_traffic
from cogvideox.benchmarks.traffic import count_traffic
from cogvideox.benchmarks.traffic_kernels import no_stand_in, torch_rotation, triton_kernels
from cogvideox.sockets import model as model_module
from cogvideox.transformer import token_passes

CARD = torch.device("cuda", 0)
# What turns queries and keys, and whether the transformer's own kernels are there.
MODES = {"torch": torch_rotation, "a kernel for the rotation": no_stand_in, "Triton": triton_kernels}


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module.mm, "get_torch_device", lambda: CARD)
    monkeypatch.setattr(token_passes, "_has_triton", lambda: True)


def estimate(dit: torch.nn.Module, latents: torch.Tensor) -> float:
    model: Any = SimpleNamespace(diffusion_model=dit, get_dtype_inference=lambda: latents.dtype)
    return model_module.CogVideoXModel.memory_required(model, list(latents.shape))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("variant", "batch"), [("2b", 1), ("5b", 2), ("1.5-5B", 1)])
def test_estimate_covers_the_peak(variant: str, batch: int, mode: str, request: pytest.FixtureRequest) -> None:
    """Too low an estimate overflows the card in the middle of a run; too high a one evicts models in vain."""
    if mode == "Triton":
        request.getfixturevalue("with_triton")
    size = bench_traffic.SIZES[variant]
    inputs = bench_traffic.latent_inputs(size.latent, batch)
    dit, forward = bench_traffic.our_forward(size.config | {"num_layers": 2}, *inputs)
    with bench_traffic.torch_attention():
        counted = count_traffic(forward, [*dit.parameters(), *dit.buffers()], MODES[mode])
    assert counted.peak_bytes <= estimate(dit, inputs[0]) <= 1.1 * counted.peak_bytes


def test_a_kernel_that_has_failed_is_not_counted_on(with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a forward takes nearly twice the memory; so do few tokens, for which no kernel is launched."""
    size = bench_traffic.SIZES["5b"]
    inputs = bench_traffic.latent_inputs(size.latent, 1)
    dit, _ = bench_traffic.our_forward(size.config | {"num_layers": 1}, *inputs)
    few = bench_traffic.latent_inputs((3, 16, 16), 1)[0]
    with_kernels, small = estimate(dit, inputs[0]), estimate(dit, few)
    monkeypatch.setattr(token_passes, "_WITHOUT", {(token_passes.ROTATION, CARD, torch.bfloat16)})
    assert estimate(dit, inputs[0]) > 1.7 * with_kernels
    assert estimate(dit, few) == small
