"""The rows of a video divided among several passes, here in threads: what they make is what one pass makes."""

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, cast

import comfy.ops
import pytest
import torch

from cogvideox.host.ops import adopt_ops
from cogvideox.tests.half_precision import RoundedOnce
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.tests.support import check_at_most, check_parity, relative_error
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.vae import plan as plans
from cogvideox.vae.memory import count_peak
from cogvideox.vae.network import CogVideoXAutoencoder
from cogvideox.vae.plan import OffloadPlan
from cogvideox.vae.stream import Stream
from cogvideox.vae.streaming import decode_stream, encode_stream

CPU = torch.device("cpu")
SECONDS = 60  # that one pass waits for another
WAYS = (*plans.LADDER, plans.in_bands(plans.LOW, 1), plans.in_bands(plans.LEAST, 300))
# How many latent rows each pass has: one of them, as many each, and not; one in the middle has two neighbours.
PARTS = ((2, 1), (1, 1, 1), (3, 2, 2), (1, 4, 9, 1))
LENGTHS = (1, 3, 6)  # latent frames: of one chunk and of more, and an even number


class RowsOfThreads:
    """vae.shared_rows.SharedRows of one of several threads."""

    def __init__(self, number: int, parts: tuple[int, ...], table: SimpleNamespace):
        self.above, self.below = int(number > 0), int(number + 1 < len(parts))
        self._number, self._table = number, table

    def neighbours(self, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        inbox, number = self._table.inbox, self._number
        if self.above:
            inbox[number - 1, "below"].put(first.clone())
        if self.below:
            inbox[number + 1, "above"].put(last.clone())
        return (
            inbox[number, "above"].get(timeout=SECONDS) if self.above else None,
            inbox[number, "below"].get(timeout=SECONDS) if self.below else None,
        )

    def gathered(self, moments: torch.Tensor) -> torch.Tensor:
        self._table.moments[self._number] = moments
        self._table.barrier.wait(SECONDS)
        out = torch.stack(self._table.moments)
        self._table.barrier.wait(SECONDS)
        return out


def table_for(count: int) -> SimpleNamespace:
    inbox = {(number, side): queue.SimpleQueue() for number in range(count) for side in ("above", "below")}
    return SimpleNamespace(inbox=inbox, moments=[torch.empty(0)] * count, barrier=threading.Barrier(count))


Walk = Callable[..., Iterator[torch.Tensor]]


def alone(walk: Walk, network: torch.nn.Module, video: torch.Tensor, plan: OffloadPlan, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(walk(network, video, plan, CPU, video.dtype, **options)), dim=2)


def divided(
    walk: Walk, network: torch.nn.Module, video: torch.Tensor, plan: OffloadPlan, parts: tuple[int, ...], zoom: int
) -> torch.Tensor:
    """`walk` in a thread for each of `parts`, rows of the latents. zoom: rows of `video` for each of these."""
    table = table_for(len(parts))

    def work(number: int) -> torch.Tensor:
        rows = RowsOfThreads(number, parts, table)
        start, stop = (zoom * sum(parts[:count]) for count in (number, number + 1))
        own = video[:, :, :, start - rows.above : stop + rows.below]
        try:
            return alone(walk, network, own, plan, make_stream=partial(Stream, rows=rows))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(len(parts)) as pool:
        return torch.cat(list(pool.map(work, range(len(parts)))), dim=3)


@pytest.fixture(scope="module")
def network() -> CogVideoXAutoencoder:
    """With unlike widths and groups of several channels, as the official one has."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"block_out_channels": (16, 32, 32, 48), "layers_per_block": 1, "norm_num_groups": 8}
    made = CogVideoXAutoencoder(**config).eval()
    adopt_ops(made, comfy.ops.disable_weight_init)
    return made


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@cache
def of_one(
    walk: Walk, network: torch.nn.Module, shape: tuple[int, ...], plan: OffloadPlan, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return alone(walk, network, random(*shape).to(dtype), plan)


@cache
def exact_encode(network: CogVideoXAutoencoder, shape: tuple[int, ...]) -> torch.Tensor:
    """In float64."""
    double = torch.nn.Module.to(copy.deepcopy(network), torch.float64)
    return alone(encode_stream, double, random(*shape).double(), plans.FAST)


cases = pytest.mark.parametrize(("plan", "parts", "length"), long_but_one_in(6, WAYS, PARTS, LENGTHS))


@cases
def test_decode(network: torch.nn.Module, plan: OffloadPlan, parts: tuple[int, ...], length: int) -> None:
    """A row of another process in the wrong place, or a norm of some rows alone, shows as a seam."""
    shape = 1, 16, length, sum(parts), 3
    got = divided(decode_stream, network, random(*shape), plan, parts, 1)
    check_parity("VAE decode, rows divided, against one pass", got, of_one(decode_stream, network, shape, plan), 1e-6)


@cases
def test_encode(network: torch.nn.Module, plan: OffloadPlan, parts: tuple[int, ...], length: int) -> None:
    """The same on the way in, where a downsampler needs a row of the next process. These weights blow rounding up, as
    test_streaming.py has it: both are compared with float64."""
    shape = 1, 3, 4 * length - 3, 8 * sum(parts), 16
    got = divided(encode_stream, network, random(*shape), plan, parts, 8)
    one, exact = of_one(encode_stream, network, shape, plan), exact_encode(network, shape)
    assert relative_error(got, exact) <= 2 * relative_error(one, exact)
    check_parity("VAE encode, rows divided, against one pass, noisy weights", got, one, 3e-6)


@pytest.mark.parametrize("plan", (plans.FAST, plans.LOW), ids=("fast", "low"))
def test_half_precision(network: torch.nn.Module, plan: OffloadPlan) -> None:
    """In bf16 too a pass that has some of the rows loses no more than one that has them all."""
    half = CogVideoXAutoencoder(**cast(Any, network.config)).eval()
    rounded = {name: value.bfloat16() for name, value in network.state_dict().items()}
    torch.nn.Module.to(half, torch.bfloat16).load_state_dict(rounded)
    adopt_ops(half, comfy.ops.disable_weight_init)
    for walk, shape, zoom in ((decode_stream, (1, 16, 5, 5, 3), 1), (encode_stream, (1, 3, 17, 40, 24), 8)):
        exact, video = of_one(walk, network, shape, plan), random(*shape).bfloat16()
        one = alone(walk, half, video, plan)
        got = divided(walk, half, video, plan, (3, 1, 1), zoom)
        what = "VAE in bf16, rows divided, error over that of one pass"
        check_at_most(what, relative_error(got, exact) / relative_error(one, exact), 1.05)


@pytest.mark.parametrize("plan", plans.LADDER, ids=lambda plan: plan.name)
@pytest.mark.parametrize("around", ((0, 1), (1, 1)), ids=("first", "middle"))
def test_memory_is_counted(network: torch.nn.Module, plan: OffloadPlan, around: tuple[int, int]) -> None:
    """A process that has an eighth of the rows must not be sent to a leaner mode for the whole frame's bytes."""

    class Echo:
        """Rows whose neighbours are like them."""

        above, below = around

        def neighbours(self, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
            return first.clone() if self.above else None, last.clone()

        def gathered(self, moments: torch.Tensor) -> torch.Tensor:
            return torch.stack([moments, moments])

    for walk, shape in ((decode_stream, (16, 5, 4, 5)), (encode_stream, (3, 17, 32, 40))):
        video = random(1, *shape[:2], shape[2] + sum(around), shape[3])
        with torch.inference_mode(), RoundedOnce(), PeakBytes() as used:
            for part in walk(network, video, plan, CPU, video.dtype, make_stream=partial(Stream, rows=Echo())):
                del part
        count = count_peak(walk, network, shape, video.dtype, plan, CPU, around=around)
        taken = used.peak - video.nbytes  # the input belongs to the caller
        assert 0.98 * taken <= count <= 1.1 * taken, f"counted {count}, taken {taken}"
        assert count < 1.6 * count_peak(walk, network, shape, video.dtype, plan, CPU)
