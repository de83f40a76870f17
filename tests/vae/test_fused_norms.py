"""The Triton kernels of the norms' scale and shift against torch's operations: on a card, and what
tests/test_interpreted_kernels.py runs in Triton's interpreter."""

from typing import Any, cast

import comfy.ops
import pytest
import torch

from cogvideox.tests.fake_card import Everything
from cogvideox.tests.support import relative_error
from cogvideox.tests.vae.test_fused import ulps
from cogvideox.vae import kernels, norms
from cogvideox.vae.fused_norms import fused_affine, fused_modulation
from cogvideox.vae.fused_statistics import fused_statistics
from cogvideox.vae.plan import FAST
from cogvideox.vae.stream import Stream

# Channels, groups, and the shapes of the parts whose statistics are taken: frames, bands of them, and many of these.
AFFINE_CASES = (
    (8, 4, ((4, 6),)),
    (48, 8, ((2, 3), (2, 3), (1, 3))),
    (64, 2, ((3, 5),) * 9),
    (32, 32, ((2, 2),) * 70),
    (160, 32, ((37, 41), (13, 7))),
)
# channels; height and width of a latent; frames of the chunk that it is one of
MODULATION_CASES = ((8, 3, 5, 1), (160, 5, 7, 3), (24, 1, 2, 2))


def affine_both_ways(case: tuple[int, int, tuple], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Rows of `dtype` with others added, and scale and shift of a norm of them: the kernels' and torch's."""
    channels, groups, shapes = case
    generator = torch.Generator().manual_seed(channels)

    def noise(*shape: int) -> torch.Tensor:
        # Groups whose mean is large next to their deviation: what a sum of squares would lose shows here.
        mean = torch.randn(1, channels, 1, 1, generator=generator) * 5
        values = torch.randn(1, channels, *shape, generator=generator) + mean
        return values.to(device, dtype, memory_format=torch.channels_last)

    stream, statistics = Stream(FAST, torch.device(device), torch.float32), norms.GroupStatistics()
    parts = []
    for number, shape in enumerate(shapes):
        frame, added, times = noise(*shape), noise(*shape) if number % 2 else None, 1 + number % 3
        want = frame if added is None else frame + added
        parts.append(fused_statistics(frame, added, times))
        assert ulps(frame.float(), want.float(), dtype) <= 1
        statistics.add(frame, times)
    norm = torch.nn.GroupNorm(groups, channels, eps=1e-6, device=device, dtype=dtype)
    for parameter in norm.parameters():
        parameter.data.copy_(torch.randn(channels, generator=generator))
    weights = norm.weight.detach(), norm.bias.detach()
    offset = torch.randn(channels, generator=generator).to(device) * 5
    ours = fused_affine(torch.cat(parts), offset, weights, groups, norm.eps)
    wide = weights[0].float(), weights[1].float()
    theirs = norms.torch_affine(*statistics.collected(stream), offset, wide, groups, norm.eps)
    return [torch.stack(ours), torch.stack(theirs)]


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


def group_norm(device: str) -> torch.nn.GroupNorm:
    """Of 8 channels in 4 groups, as ComfyUI's operations have it."""
    norm = comfy.ops.disable_weight_init.GroupNorm(4, 8, device=device).requires_grad_(False)
    norm.weight.fill_(2)
    norm.bias.fill_(3)
    return norm


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
    monkeypatch.setattr(kernels, "WITHOUT", Everything())  # torch for the second of the two ways
    found = errors("cuda")
    assert max(max(cases) for cases in found.values()) <= 1e-6, found


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Falling back to torch on every card would cost time that no other test sees."""
    monkeypatch.setattr(norms, "torch_affine", lambda *_: pytest.fail("torch's way"))
    stream, statistics = Stream(FAST, torch.device("cuda", 0), torch.float32), norms.GroupStatistics()
    monkeypatch.setattr(kernels, "WITHOUT", set())
    statistics.add(torch.randn(1, 8, 4, 6, device="cuda").to(memory_format=torch.channels_last))
    norms.channel_affine(stream, group_norm("cuda"), statistics, torch.zeros(8, device="cuda"))


def test_a_kernel_that_fails_midway_loses_nothing() -> None:
    """A driver may give up in the middle of a chunk: torch's statistics and the kernel's then make one norm."""
    stream, frames = Stream(FAST, torch.device("cpu"), torch.float32), torch.randn(3, 1, 8, 4, 6) * 2 + 5
    torch_alone, mixed = norms.GroupStatistics(), norms.GroupStatistics()
    for number, frame in enumerate(frames):
        torch_alone.add(frame, times=1 + number)
    variance, mean = torch.var_mean(frames[0], dim=(0, 2, 3), correction=0)
    mixed._parts.append(torch.stack([mean, variance, torch.full_like(mean, 24)])[None])
    for number in (1, 2):
        mixed.add(frames[number], times=1 + number)
    assert mixed.parts() is None
    affine = [
        torch.stack(norms.channel_affine(stream, group_norm("cpu"), each, torch.ones(8)))
        for each in (torch_alone, mixed)
    ]
    assert relative_error(affine[1], affine[0]) <= 1e-6
