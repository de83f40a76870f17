"""What a decode launches on a card, counted on a simulated one at the official size: each costs the host time."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cogvideox.benchmarks.common import Table
from cogvideox.benchmarks.traffic import touches_no_value

LATENTS = 13, 60, 90  # 49 frames of 480 x 720
# What torch's operations count as; any other counts as arithmetic.
KINDS = {
    "convolution": "convolutions",
    "upsample_nearest2d": "enlargements",
    "fill_": "fills",
    **dict.fromkeys(("clone", "copy_", "cat", "stack", "contiguous", "_to_copy", "to", "repeat_interleave"), "copies"),
}
# What a card launches for torch's statistics of one tensor: the kernel, and a fill of its semaphores.
STATISTICS = "statistics, 2 each"


class Launches(TorchDispatchMode):
    """Counts what the operations inside of `with` launch on the card, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if touches_no_value(name) or not any(x.is_cuda for x in made):
            return out
        # What has a single number of the host among its arguments gives the kernel that number.
        if any(x.device.type == "cpu" and x.ndim for x in given):
            self.counts["uploads"] += 1
        elif name.endswith("_") or not any(_same_memory(x, y) for x in made for y in given):  # else it is a view
            self.counts[KINDS.get(name, "arithmetic")] += 1
            if name == "convolution" and args[2] is not None:
                self.counts["biases of convolutions"] += 1  # cuDNN's come without
        return out


class _Kernels:
    """Stands for the modules of Triton's kernels."""

    def __init__(self, counts: Counter[str]):
        self._counts = counts

    def fused_modulated_silu(self, *_: Any) -> None:
        self._counts["Triton: activations"] += 1

    def fused_statistics(self, rows: torch.Tensor, *_: Any) -> torch.Tensor:
        self._counts["Triton: statistics and residual sums"] += 1
        return rows.new_empty(1, 3, rows.shape[1], dtype=torch.float32)

    def fused_affine(self, parts: torch.Tensor, *_: Any) -> Any:
        self._counts["Triton: scale and shift of channels"] += 1
        return parts.new_empty(2, parts.shape[2]).unbind(0)

    def fused_modulation(self, scale: torch.Tensor, *rest: Any) -> Any:
        self._counts["Triton: scale and shift of latents"] += 1
        return scale.new_empty(2, len(scale), *rest[-1].shape[1:]).split(1)


def operations_table() -> Table:
    """What one decode in mode fast launches, with Triton and without."""
    counted = [_count(with_triton) for with_triton in (True, False)]
    kinds = sorted({kind for counts in counted for kind in counts}, key=lambda kind: -counted[0][kind])
    rows = [[kind, *(str(counts[kind]) for counts in counted)] for kind in kinds]
    rows.append(["in all", *(str(sum(counts.values())) for counts in counted)])
    notes = (
        "Mode fast, bf16, 49 frames of 480 x 720, official size, counted on a simulated card; what a library launches "
        "beside its convolution is not known there.",
    )
    return Table("Operations of a decode", notes, ("kind", "with Triton's kernels", "without"), rows)


def _count(with_triton: bool) -> Counter[str]:
    from cogvideox.tests.fake_card import CARD, fake_card, official_vae
    from cogvideox.vae.plan import FAST
    from cogvideox.vae.streaming import decode_stream

    network = official_vae()
    with fake_card(), torch.inference_mode(False), torch.no_grad(), Launches() as launches:
        for module in network.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    weight = torch.empty(value.shape, dtype=torch.bfloat16, device=CARD)
                    module._parameters[name] = torch.nn.Parameter(weight, requires_grad=False)
        with _stand_ins(launches.counts, with_triton):
            for part in decode_stream(network, torch.empty(1, 16, *LATENTS), FAST, CARD, torch.bfloat16):
                del part
    return launches.counts


@contextmanager
def _stand_ins(counts: Counter[str], with_triton: bool) -> Iterator[None]:
    """Kernels and statistics that need a card are counted and not launched."""
    from cogvideox.vae import activation, norms

    def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts[STATISTICS] += 2
        mean, variance = rows.new_empty(2, rows.shape[1], dtype=torch.float32).unbind(0)
        return mean, variance

    def launch(like: torch.Tensor, kernel: str, size: tuple[int, int], launch: Callable[[Any], Any]) -> Any:
        return launch(getattr(_Kernels(counts), kernel)) if with_triton else None

    def fused(*arguments: Any) -> bool:
        return with_triton and bool(_Kernels(counts).fused_modulated_silu(*arguments) or True)

    with (
        mock.patch.object(norms, "_channel_moments", moments),
        mock.patch.object(norms, "try_kernel", launch),
        # A fake convolution's result is not in the card's memory format.
        mock.patch.object(norms, "_in_one_piece", lambda rows: True),
        mock.patch.object(activation, "_fused", fused),
    ):
        yield


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata
