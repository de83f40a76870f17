"""Kernels that need a card, counted by what they read and write: Triton's, cuBLASLt's and comfy-kitchen's."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch

from cogvideox.benchmarks.traffic import Counting


class Affine(NamedTuple):
    """As token_kernels.Affine, whose module needs Triton."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


@contextmanager
def no_stand_in(counting: Counting) -> Iterator[None]:
    """Nothing: torch's operations are counted by themselves, and comfy-kitchen's rotation is one of them."""
    yield


@contextmanager
def torch_rotation(counting: Counting) -> Iterator[None]:
    """Queries and keys rotated by torch's operations, where comfy-kitchen has no kernel for this torch."""
    import comfy.ldm.flux.math as math

    from cogvideox.transformer import token_passes

    with mock.patch.object(token_passes, "rotate_pairs", math._apply_rope1):
        yield


def in_lean_mode(stand_in: Callable[[Counting], Any]) -> Callable[[Counting], Any]:
    """`stand_in`, in steps that find no memory free."""

    @contextmanager
    def lean(counting: Counting) -> Iterator[None]:
        from cogvideox.transformer import dit

        with mock.patch.object(dit, "free_in_step", lambda device: 0), stand_in(counting):
            yield

    return lean


@contextmanager
def triton_kernels(counting: Counting) -> Iterator[None]:
    """transformer/token_kernels.py, each launch counted, and the product with gelu as one kernel."""
    from cogvideox.transformer import token_passes as passes

    def run_token_kernel(source: Any, added: Any, normed: Any) -> None:
        read, written = list(source), []
        if added is not None:
            output, _, target = added
            read.append(output)
            written += target
        if normed is not None:
            written.append(normed[2])
        counting.launch(read, written)

    def run_head_kernel(query: torch.Tensor, key: torch.Tensor, of_query: Any, of_key: Any, rotary: Any) -> None:
        counting.launch([query, key, *([] if rotary is None else [rotary])], [query, key])

    stand_in: Any = ModuleType("token_kernels")
    stand_in.Affine, stand_in.run_token_kernel, stand_in.run_head_kernel = Affine, run_token_kernel, run_head_kernel
    key = passes._gelu_key(torch.empty(0, device="meta", dtype=torch.bfloat16))
    with ExitStack() as patches:
        patches.enter_context(mock.patch.dict(sys.modules, {"cogvideox.transformer.token_kernels": stand_in}))
        patches.enter_context(mock.patch.object(passes, "use_kernels", lambda x: x.numel() >= passes.LEAST_VALUES))
        patches.enter_context(mock.patch.object(passes, "_EXACT", {key}))
        patches.enter_context(mock.patch.object(passes, "_gelu_key", lambda _: key))
        patches.enter_context(mock.patch.object(passes, "_is_exact", lambda *_: True))  # nothing is computed
        patches.enter_context(mock.patch.object(torch.version, "cuda", "13.0"))
        yield
