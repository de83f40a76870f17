"""The memory that the VAE asks ComfyUI to free, against what it takes: official sizes, on a simulated card."""

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import comfy.ops
import pytest
import torch

from cogvideox.host.ops import adopt_ops
from cogvideox.tests.fake_card import CARD, official_vae, peak_on_card
from cogvideox.tests.half_precision import RoundedOnce
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.vae import memory
from cogvideox.vae import plan as plans
from cogvideox.vae.counted import CountedTensor, Tally
from cogvideox.vae.memory import PeakMemory, count_peak
from cogvideox.vae.network import CogVideoXAutoencoder
from cogvideox.vae.plan import OffloadPlan
from cogvideox.vae.streaming import decode_stream, encode_stream

CPU = torch.device("cpu")
GIB = 1 << 30
ladder = pytest.mark.parametrize("plan", plans.LADDER, ids=lambda plan: plan.name)
# 49 frames at 720 x 480 are six chunks; the third is as all after it
SMALL, LARGE = (1, 16, 7, 30, 45), (1, 16, 7, 60, 90)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The official VAE, its weights on a simulated card."""
    return official_vae()


@pytest.fixture(scope="module")
def narrow() -> torch.nn.Module:
    """A VAE of other widths and depth, as nano's and the embedded checkpoints' are, with weights."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"block_out_channels": (16, 32, 32, 48), "layers_per_block": 1, "norm_num_groups": 8}
    made = CogVideoXAutoencoder(**config).eval()
    adopt_ops(made, comfy.ops.disable_weight_init)
    return made


def check(
    network: torch.nn.Module, walk: Callable, shape: tuple[int, ...], plan: OffloadPlan, dtype: torch.dtype
) -> int:
    """The bytes that `walk` takes, after comparing them with what ComfyUI is told and with the bare count."""
    used = peak_on_card(network, walk, shape, plan, dtype)
    memory = PeakMemory(network, CARD)
    estimate = (memory.decode_bytes if walk is decode_stream else memory.encode_bytes)(shape, dtype, plan)
    assert used <= estimate <= 1.25 * used, f"estimate {estimate / GIB:.3f} GiB, used {used / GIB:.3f} GiB"
    count = count_peak(walk, network, shape[1:], dtype, plan, CARD)
    assert 0.999 * used <= count <= 1.02 * used, f"counted {count / GIB:.4f} GiB, used {used / GIB:.4f} GiB"
    return used


def case_name(value: object) -> str:
    return value.name if isinstance(value, OffloadPlan) else str(value).removeprefix("torch.")


def cases(shortest: int, short: int, rare: tuple[int, ...]) -> pytest.MarkDecorator:
    """(length, plan): the last plan for the shortest, the first for a short one; the rest in the long tier."""
    standard = [(shortest, plans.LEAST), (short, plans.FAST)]
    rest = [(n, plan) for n in (shortest, short, *rare) for plan in plans.LADDER if (n, plan) not in standard]
    given = [pytest.param(*case, id=f"{case[0]}-{case[1].name}") for case in standard]
    given += [pytest.param(*case, id=f"{case[0]}-{case[1].name}", marks=pytest.mark.long) for case in rest]
    return pytest.mark.parametrize(("count", "plan"), given)


@cases(shortest=1, short=3, rare=(2, 4, 7))
def test_estimate_of_a_decode(network: torch.nn.Module, count: int, plan: OffloadPlan) -> None:
    """Too low an estimate overflows the card in the middle of a video; too high a one evicts models in vain."""
    check(network, decode_stream, (*SMALL[:2], count, *SMALL[3:]), plan, torch.bfloat16)


@cases(shortest=1, short=9, rare=(5, 13, 25))
def test_estimate_of_an_encode(network: torch.nn.Module, count: int, plan: OffloadPlan) -> None:
    """The same for a video on its way in."""
    check(network, encode_stream, (1, 3, count, 240, 360), plan, torch.bfloat16)


@pytest.mark.parametrize(
    ("plan", "latents"),
    [(plans.FAST, 1), *(pytest.param(plan, 3, marks=pytest.mark.long) for plan in (plans.FAST, plans.LOW))],
    ids=case_name,
)
def test_estimates_in_fp32(network: torch.nn.Module, plan: OffloadPlan, latents: int) -> None:
    """Twice the bytes, but for what is fp32 in any type."""
    check(network, decode_stream, (1, 16, latents, 30, 40), plan, torch.float32)
    check(network, encode_stream, (1, 3, 4 * latents - 3, 240, 320), plan, torch.float32)


@pytest.mark.parametrize(("plan", "most"), ((plans.FAST, 5.5), (plans.LOW, 2.0)), ids=("fast", "low"))
def test_49_frames_fit(network: torch.nn.Module, plan: OffloadPlan, most: float) -> None:
    """What docs/vae.md promises for 49 frames of 720 x 480 in bf16, weights included."""
    count = count_peak(decode_stream, network, LARGE[1:], torch.bfloat16, plan, CARD)
    assert count + 0.41 * GIB <= most * GIB


@pytest.mark.long
@pytest.mark.parametrize("plan", (plans.FAST, plans.LOW), ids=lambda plan: plan.name)
def test_estimate_of_49_frames(network: torch.nn.Module, plan: OffloadPlan) -> None:
    """The estimate at the size that people use; the pass at half the width and height is compared in every run."""
    check(network, decode_stream, LARGE, plan, torch.bfloat16)


@pytest.mark.parametrize(
    ("plan", "dtype"), long_but_one_in(2, (plans.FAST, plans.LOW), (torch.float32, torch.bfloat16)), ids=case_name
)
def test_count_on_a_cpu(narrow: torch.nn.Module, plan: OffloadPlan, dtype: torch.dtype) -> None:
    """Where the device is the host, nothing is moved away from it. Compared with a pass that computes, by a VAE
    of another configuration than the official one."""
    network = torch.nn.Module.to(narrow, dtype)
    for walk, size in ((decode_stream, (16, 5, 4, 5)), (encode_stream, (3, 17, 32, 40))):
        video = torch.zeros(1, *size)
        with torch.inference_mode(), RoundedOnce(), PeakBytes() as used:
            for part in walk(network, video, plan, CPU, dtype):
                del part
        count = count_peak(walk, network, size, dtype, plan, CPU)
        taken = used.peak - video.nbytes  # the input belongs to the caller
        assert 0.98 * taken <= count <= 1.1 * taken, f"counted {count}, taken {taken}"


@ladder
def test_estimate_does_not_grow_with_length(network: torch.nn.Module, plan: OffloadPlan) -> None:
    """A long video must not be refused for memory that it does not take."""
    estimates = PeakMemory(network, CARD)
    long, longer = (estimates.decode_bytes((1, 16, n, 96, 170), torch.bfloat16, plan) for n in (7, 257))
    assert long == longer
    long, longer = (estimates.encode_bytes((1, 3, n, 768, 1360), torch.bfloat16, plan) for n in (25, 1025))
    assert long == longer


def test_leaner_plans_need_less(network: torch.nn.Module) -> None:
    """Falling back to a plan that needs as much would fail again."""
    estimates = PeakMemory(network, CARD)
    assert [plan.name for plan in plans.LADDER] == ["fast", "medium", "low", "least"]
    for estimate, shape in (
        (estimates.decode_bytes, (1, 16, 21, 96, 170)),
        (estimates.encode_bytes, (1, 3, 81, 768, 1360)),
    ):
        sizes = [estimate(shape, torch.bfloat16, plan) for plan in plans.LADDER]
        assert all(leaner < 0.8 * size for size, leaner in zip(sizes, sizes[1:])), sizes
        assert sizes[0] <= 16.5 * GIB and sizes[2] <= 5.5 * GIB


def test_counts_are_kept(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI asks at every decode, and "auto" for each mode: only the first time may take its milliseconds."""
    estimates = PeakMemory(network, CARD)
    first = estimates.decode_bytes(SMALL, torch.bfloat16)
    monkeypatch.setattr(memory, "count_peak", lambda *_: pytest.fail("counted again"))
    assert estimates.decode_bytes(SMALL, torch.bfloat16) == first
    assert estimates.decode_bytes((*SMALL[:2], 41, *SMALL[3:]), torch.bfloat16) == first


def test_counting_leaves_an_interrupt_alone(network: torch.nn.Module) -> None:
    """The user has cancelled the run that computes; a count elsewhere must not take that for its own."""
    mm.interrupt_current_processing(True)
    try:
        PeakMemory(network, CARD).decode_bytes(SMALL, torch.bfloat16)
        assert mm.processing_interrupted()
    finally:
        mm.interrupt_current_processing(False)


def test_an_operation_that_is_not_known_is_named() -> None:
    """Whoever changes the pass must be told what the count does not know, or it would be wrong in silence."""
    tensor = CountedTensor.allocate(Tally(CARD, torch.channels_last), (1, 2), torch.float32, CARD)
    with pytest.raises(TypeError, match="sin"):
        torch.sin(tensor)  # type: ignore[arg-type]
