"""The Triton kernels of the norms' scale and shift against torch's operations: on a card, and what
tests/test_interpreted_kernels.py runs in Triton's interpreter."""

from typing import Any, cast

import pytest
import torch

from cogvideox.tests.support import relative_error
from cogvideox.vae import kernels, norms
from cogvideox.vae.fused_norms import fused_affine, fused_modulation
from cogvideox.vae.plan import FAST
from cogvideox.vae.stream import Stream

# Channels, groups, and the shapes of the parts whose statistics are taken: frames, bands of them, and many of these.
AFFINE_CASES = (
    (8, 4, ((4, 6),)),
    (48, 8, ((2, 3), (2, 3), (1, 3))),
    (64, 2, ((3, 5),) * 9),
    (32, 32, ((2, 2),) * 70),
)
# channels; height and width of a latent; frames of the chunk that it is one of
MODULATION_CASES = ((8, 3, 5, 1), (160, 5, 7, 3), (24, 1, 2, 2))


def affine_both_ways(case: tuple[int, int, tuple], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Scale and shift of a norm of `dtype`, the kernel's and torch's."""
    channels, groups, shapes = case
    generator = torch.Generator().manual_seed(channels)
    stream, statistics = Stream(FAST, torch.device(device), torch.float32), norms.GroupStatistics()
    for shape in shapes:
        # Groups whose mean is large next to their deviation: what a sum of squares would lose shows here.
        mean = torch.randn(1, channels, 1, 1, generator=generator) * 5
        statistics.add((torch.randn(1, channels, *shape, generator=generator) + mean).to(device))
    norm = torch.nn.GroupNorm(groups, channels, eps=1e-6, device=device, dtype=dtype)
    for parameter in norm.parameters():
        parameter.data.copy_(torch.randn(channels, generator=generator))
    moments, shares = statistics.collected(stream)
    weights = norm.weight.detach(), norm.bias.detach()
    offset = torch.randn(channels, generator=generator).to(device) * 5
    ours = fused_affine(moments, shares, offset, weights, groups, norm.eps)
    theirs = norms.torch_affine(moments, shares, offset, (weights[0].float(), weights[1].float()), groups, norm.eps)
    return torch.stack(ours), torch.stack(theirs)


def modulation_both_ways(case: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Scale and shift by latent, with weights of `dtype`, the kernel's and torch's."""
    channels, height, width, count = case
    generator = torch.Generator().manual_seed(sum(case))

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    scale, shift = noise(channels), noise(channels)
    weights = [noise(*shape).to(dtype) for shape in ((channels, 16, 1, 1, 1), (channels,)) * 2]
    latent = noise(1, 16, count, height, width).to(dtype)[:, :, -1]
    ours = fused_modulation(scale, shift, (weights[0], weights[1]), (weights[2], weights[3]), latent[0])
    assert all(values.is_contiguous(memory_format=torch.channels_last) for values in ours)
    wide = [cast(Any, values.float()) for values in weights]
    theirs = norms.torch_modulation(scale, shift, (wide[0], wide[1]), (wide[2], wide[3]), latent.float())
    return torch.cat(ours), torch.cat(theirs)


def errors(device: str) -> dict[str, list[float]]:
    """The largest differences of both kernels, by type."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pairs = [affine_both_ways(case, dtype, device) for case in AFFINE_CASES]
        pairs += [modulation_both_ways(case, dtype, device) for case in MODULATION_CASES]
        found[str(dtype)] = [relative_error(*pair) for pair in pairs]
    return found


def measure() -> dict[str, list[float]]:
    """What tests/test_interpreted_kernels.py runs in a process of its own."""
    return errors("cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_equal_torch_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels add up in an order of their own: they must be the interpreter's, within rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = errors("cuda")
    assert max(max(cases) for cases in found.values()) <= 1e-6, found


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Falling back to torch on every card would cost time that no other test sees."""
    monkeypatch.setattr(norms, "torch_affine", lambda *_: pytest.fail("torch's way"))
    stream, statistics = Stream(FAST, torch.device("cuda", 0), torch.float32), norms.GroupStatistics()
    statistics.add(torch.randn(1, 8, 4, 6, device="cuda"))
    monkeypatch.setattr(kernels, "WITHOUT_TRITON", set())
    norm = torch.nn.GroupNorm(4, 8, device="cuda").requires_grad_(False)
    norms.channel_affine(stream, norm, statistics, torch.zeros(8, device="cuda"))
