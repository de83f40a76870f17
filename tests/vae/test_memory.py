"""The memory that the VAE asks ComfyUI to free, against what it really takes: official sizes, on a card that is not
there."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from cogvideox.tests.fake_card import official_vae, peak_on_card
from cogvideox.vae import memory, streaming
from cogvideox.vae import plan as plans

DECODE = streaming.decode_stream, memory.decode_bytes
ENCODE = streaming.encode_stream, memory.encode_bytes
GIB = 1 << 30
# 49 frames at 720 x 480 are six chunks; the third is as all after it
SMALL, LARGE = (1, 16, 7, 30, 45), (1, 16, 7, 60, 90)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The official VAE, its weights on a card that is not there."""
    return official_vae()


@pytest.fixture
def peak(network: torch.nn.Module) -> Callable[..., int]:
    """peak(stream, shape, plan, dtype): the most bytes on the card."""
    return partial(peak_on_card, network)


@pytest.mark.parametrize("plan", plans.LADDER, ids=lambda plan: plan.name)
@pytest.mark.parametrize("count", (1, 3, 4, 7))
def test_estimate_of_a_decode(peak: Callable[..., int], count: int, plan: object) -> None:
    """Too low an estimate overflows the card in the middle of a video; too high a one evicts models in vain."""
    shape = (*SMALL[:2], count, *SMALL[3:])
    check(memory.decode_bytes(shape, torch.bfloat16, plan), peak(DECODE[0], shape, plan, torch.bfloat16))


@pytest.mark.parametrize("plan", plans.LADDER, ids=lambda plan: plan.name)
@pytest.mark.parametrize("frames", (1, 9, 13, 25))
def test_estimate_of_an_encode(peak: Callable[..., int], frames: int, plan: object) -> None:
    """The same for a video on its way in."""
    shape = (1, 3, frames, 240, 360)
    check(memory.encode_bytes(shape, torch.bfloat16, plan), peak(ENCODE[0], shape, plan, torch.bfloat16))


@pytest.mark.parametrize("plan", plans.LADDER[:3:2], ids=lambda plan: plan.name)
def test_estimates_in_fp32(peak: Callable[..., int], plan: object) -> None:
    """Twice the bytes, but for what is fp32 in any type."""
    for (stream, estimate), shape in ((DECODE, (1, 16, 5, 30, 40)), (ENCODE, (1, 3, 17, 240, 320))):
        check(estimate(shape, torch.float32, plan), peak(stream, shape, plan, torch.float32))


@pytest.mark.parametrize(("plan", "most"), ((plans.FAST, 5.5), (plans.LOW, 2.0)), ids=("fast", "low"))
def test_49_frames_fit(peak: Callable[..., int], plan: object, most: float) -> None:
    """What README promises for 49 frames of 720 x 480 in bf16, weights included."""
    used = peak(DECODE[0], LARGE, plan, torch.bfloat16)
    check(memory.decode_bytes(LARGE, torch.bfloat16, plan), used)
    assert used + 0.41 * GIB <= most * GIB


@pytest.mark.parametrize("plan", plans.LADDER, ids=lambda plan: plan.name)
def test_estimate_does_not_grow_with_length(plan: object) -> None:
    """A long video must not be refused for memory that it does not take."""
    long, longer = (memory.decode_bytes((1, 16, n, 96, 170), torch.bfloat16, plan) for n in (7, 257))
    assert long == longer
    long, longer = (memory.encode_bytes((1, 3, n, 768, 1360), torch.bfloat16, plan) for n in (25, 1025))
    assert long == longer


def test_leaner_plans_need_less() -> None:
    """Falling back to a plan that needs more would fail again."""
    for estimate, shape in ((memory.decode_bytes, (1, 16, 21, 96, 170)), (memory.encode_bytes, (1, 3, 81, 768, 1360))):
        sizes = [estimate(shape, torch.bfloat16, plan) for plan in plans.LADDER]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] <= 16.5 * GIB and sizes[2] <= 5.5 * GIB


def check(estimate: int, used: int) -> None:
    assert used <= estimate <= 1.25 * used, f"estimate {estimate / GIB:.3f} GiB, used {used / GIB:.3f} GiB"
