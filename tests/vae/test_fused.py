"""The Triton kernel of norm, scale and SiLU against the torch path: on a card, and what
tests/test_interpreted_kernels.py runs in Triton's interpreter."""

import importlib.util
from pathlib import Path

import pytest
import torch

from cogvideox.tests.support import relative_error
from cogvideox.vae import activation as activation_module
from cogvideox.vae import kernels
from cogvideox.vae.activation import modulated_silu
from cogvideox.vae.fused import fused_modulated_silu
from cogvideox.vae.layout import empty_frames
from cogvideox.vae.modulation import Modulation

ROOT = Path(__file__).resolve().parent.parent.parent
# channels, height and width of a frame; first row and last + 1 of the band; pixels of one row and column of patches
CASES = (
    (8, 6, 10, 0, 6, 1, 1),
    (8, 12, 20, 3, 11, 2, 4),
    (24, 16, 24, 5, 7, 8, 8),
    (160, 9, 70, 1, 9, 3, 2),
    (32, 8, 12, 0, 8, 8, 12),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def both_ways(case: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A band of a frame through the kernel and through torch, each into a slot of a ring of three frames."""
    channels, height, width, start, stop, zoom_y, zoom_x = case
    layout = torch.channels_last
    generator = torch.Generator().manual_seed(sum(case))
    size = (1, channels, height // zoom_y, width // zoom_x)
    scale, shift = (torch.randn(size, generator=generator).to(device, memory_format=layout) for _ in range(2))
    modulation = Modulation(scale, shift, zoom_y, zoom_x)
    frame = torch.randn(1, channels, height, width, generator=generator) * 3
    x = frame.to(device, dtype, memory_format=layout)[:, :, start:stop]
    slots = []
    for function in (fused_modulated_silu, modulated_silu):
        ring = empty_frames(3, channels, stop - start + 2, width, dtype, x.device, layout)
        ring.fill_(7)
        function(x, modulation, start, ring[:, 1, :, 1:-1])
        around = ring.clone()
        around[:, 1, :, 1:-1] = 7
        assert (around == 7).all(), "something outside the slot was written"
        slots.append(ring[:, 1, :, 1:-1].float())
    return slots[0], slots[1]


def ulps(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest difference, in units of the last digit that `dtype` has at a number of this size."""
    tiny = torch.finfo(dtype).tiny
    exponent = torch.floor(torch.log2(theirs.abs().maximum(ours.abs()).clamp_min(tiny)))
    return float(((ours - theirs).abs() / (torch.finfo(dtype).eps * 2**exponent)).max())


def measure() -> dict[str, list[float]]:
    """What tests/test_interpreted_kernels.py runs in a process of its own."""
    return {
        name: [relative_error(*pair) if name == "fp32" else ulps(*pair, dtype) for pair in pairs]
        for name, dtype in DTYPES.items()
        for pairs in [[both_ways(case, dtype, "cpu") for case in CASES]]
    }


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", DTYPES)
def test_kernel_equals_torch_on_a_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernel rounds and divides in its own way: it must be the interpreter's, within rounding."""
    from cogvideox.vae import activation

    monkeypatch.setattr(activation, "_fused", lambda *_: False)  # torch for the second of the two ways
    for case in CASES:
        ours, theirs = both_ways(case, DTYPES[name], "cuda")
        if name == "fp32":
            assert relative_error(ours, theirs) <= 1e-6
        else:
            assert ulps(ours, theirs, DTYPES[name]) <= 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_takes_the_kernel() -> None:
    """Falling back to torch on every card would cost time that no other test sees."""
    activation, ones = activation_module, torch.ones(1, 8, 1, 1, device="cuda")
    x = torch.zeros(1, 8, 4, 6, device="cuda").to(memory_format=torch.channels_last)
    assert activation._fused(x, Modulation(ones, ones, 4, 6), 0, torch.empty_like(x))


def test_a_card_without_triton_decodes_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken Triton (no compiler, another driver) must cost speed and one line of log, never the video."""
    activation, modulation = activation_module, Modulation(torch.ones(()), torch.ones(()), 1, 1)
    monkeypatch.setattr(kernels, "WITHOUT", set())
    x = torch.zeros(1, 8, 4, 6, device="meta").to(memory_format=torch.channels_last)
    tries = [activation._fused(x, modulation, 0, x) for _ in range(3)]
    assert tries == [False] * 3
    assert sum("does not work on" in line for line in caplog.messages) == (
        importlib.util.find_spec("triton") is not None
    )
