"""What one forward of a denoiser moves through memory: bytes, kernels and the peak, counted on the meta device.

Nothing is computed, so that official sizes take seconds on any machine. Outside matrix products and attention a step on
a card waits for memory: what these move is the time that can be saved.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from cogvideox.tests.peak_bytes import PeakBytes

# Operations that touch no value.
_VIEWS = frozenset(
    "_reshape_alias _unsafe_view alias as_strided chunk detach expand lift_fresh permute select slice split "
    "split_with_sizes squeeze t transpose unbind unfold unsqueeze view view_as_complex view_as_real".split()
)
_EMPTY = frozenset("empty empty_like empty_strided new_empty new_empty_strided".split())


def touches_no_value(operation: str) -> bool:
    """Whether torch's operation of this name makes a view, or memory without values."""
    return operation in _VIEWS or operation in _EMPTY


@dataclass(frozen=True)
class Traffic:
    """Of one forward. moved_bytes: activations read and written, weights not; they are the same for everybody.
    peak_bytes: of count_peak. flops: of products and attention."""

    moved_bytes: int
    kernels: int
    peak_bytes: int
    flops: int


class Counting(TorchDispatchMode):
    """Counts what the operations inside of `with` read and write. weights: tensors that are not activations."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.moved_bytes = self.kernels = 0
        self._weights = {_storage_id(weight) for weight in weights}

    def launch(self, read: Iterable[torch.Tensor], written: Iterable[torch.Tensor]) -> None:
        """Count a kernel of one pass; torch's own operations are counted by themselves."""
        self.kernels += 1
        self.moved_bytes += sum(map(_moved, (*read, *written)))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if not touches_no_value(name):
            given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor) and x.is_meta]
            read = [x for x in given if _storage_id(x) not in self._weights]
            if name == "native_layer_norm" and not args[0].is_contiguous():  # torch makes a copy first
                self.launch([args[0]], [args[0]])
            self.launch(read, made)
        return out


def count_traffic(
    forward: Callable[[], object],
    weights: Sequence[torch.Tensor],
    stand_ins: Callable[[Counting], Any],
) -> Traffic:
    """Count one call of `forward`. stand_ins: the counter -> a context in which kernels that need a card are counted
    through `Counting.launch`."""
    with torch.inference_mode(False), torch.no_grad():
        with stand_ins(Counting(weights)), _flop_counter() as flops:
            forward()
        with Counting(weights) as counting, stand_ins(counting):  # tables of positions are there by now
            forward()
    peak = count_peak(forward, weights, stand_ins)
    return Traffic(counting.moved_bytes, counting.kernels, peak, flops.get_total_flops())


def count_peak(
    forward: Callable[[], object], weights: Iterable[torch.Tensor], stand_ins: Callable[[Counting], Any]
) -> int:
    """The most bytes that the first call of `forward` in a run holds on the device beside `weights`: activations, and
    the tables of positions, which stay there for the run. stand_ins: as for count_traffic."""
    from cogvideox.transformer.positions import forget_tables

    forget_tables()
    # A kernel that is counted through `Counting.launch` allocates nothing there.
    with torch.inference_mode(False), torch.no_grad(), stand_ins(Counting(weights)):
        with PeakBytes("meta", without=weights) as held:
            forward()
    return held.peak


def _flop_counter() -> FlopCounterMode:
    """torch's, which does not know the product with an activation."""

    def product_flops(bias: Any, rows: Any, weight: Any, *_: Any, **__: Any) -> int:
        return flop_registry[torch.ops.aten.addmm](bias, rows, weight, out_val=None)

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten._addmm_activation: product_flops})


def flash_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """In the place of F.scaled_dot_product_attention, which on the meta device would make the matrix of all pairs."""
    attend: Any = torch.ops.aten._scaled_dot_product_flash_attention
    return attend(query, key, value, 0.0, False, return_debug_mask=False)[0]


def _moved(tensor: torch.Tensor) -> int:
    """Its bytes; what is repeated by a stride of 0 is read from the cache."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def _storage_id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
