"""Which attention kernel is fastest on this card, by a measurement at the size of the run.

ComfyUI puts FlashAttention-2 first on every card, and torch's own order depends on its version. On an H100 cuDNN's
kernel takes 0.78 of FlashAttention-2's time, which is 0.81 to 0.87 of a step's; on other cards it is the other way
round. So neither order is right: the kernels that this torch has are timed once for each size, and the choice is kept
for as long as the process lives. FlashAttention-3 is timed with them where its package is installed, and has to be as
exact as they are.
"""

import importlib
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management as mm
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.cli_args import args
from torch.nn.attention import SDPBackend, sdpa_kernel

FLASH_3 = "FLASH_ATTENTION_3"  # a package of its own, for Hopper: github.com/Dao-AILab/flash-attention, hopper
# Modules that hold it: its own build, and the package fa3-fwd, which is the same without what a training needs.
FLASH_3_MODULES = "flash_attn_interface", "fa3_fwd_interface"
# Members of torch.nn.attention.SDPBackend, and FLASH_3, with names for people.
KERNELS = {
    "FLASH_ATTENTION": "FlashAttention",
    "CUDNN_ATTENTION": "cuDNN",
    "EFFICIENT_ATTENTION": "memory-efficient attention",
    FLASH_3: "FlashAttention-3",
}
MAX_ERROR = 1.05  # times the error of the kernel that ComfyUI would take
# A kernel has to take less than this part of that kernel's time. Between kernels that are equally fast, the clock would
# choose another one in each process, and the same seed give videos that differ in their last bits.
LEAST_GAIN = 0.95
LEAST_SECONDS = 2e-4  # of that kernel's; what is shorter is launched rather than computed, and its time is chance
_REPEATS = 3
# Blocks of 128 queries, which a card's multiprocessors share: with so many for each, more heads take proportionally
# more time, and are left out of the measurement.
_QUERIES, _WAVES = 128, 8
_COMPARED_ROWS = 256  # queries whose result is compared with float64


class AttentionSize(NamedTuple):
    """What the fastest kernel depends on. tokens: of text and video. width: of one head."""

    device: torch.device
    dtype: torch.dtype
    tokens: int
    width: int


class Measured(NamedTuple):
    """seconds: the median of some calls. error: RMS of the difference from float64 over the RMS of the result."""

    seconds: float
    error: float


_OF_COMFYUI = {"scale", "enable_gqa", "skip_output_reshape"}  # what a caller may ask attention_pytorch for besides

# Size -> the kernel to put first, where another one than ComfyUI's is faster.
_CHOSEN: dict[AttentionSize, str | None] = {}


def choose_attention(size: AttentionSize, heads: int, transformer_options: dict[str, Any]) -> str:
    """Measure the kernels for `size`, unless that was done before. Returns a sentence about the choice; "" for none.

    heads: of the model, which is loaded by now; more than fill the card are not measured.

    Nothing is measured, and ComfyUI's function is called as it is, where the user or a node has chosen the attention
    (--use-sage-attention and the like, optimized_attention_override) or asked for --deterministic, or where torch
    cannot order its kernels.
    """
    order = _host_order()
    if size.device.type != "cuda" or not order or "optimized_attention_override" in transformer_options:
        return ""
    if args.deterministic:  # a clock would decide about the last bits of the video
        return ""
    if size not in _CHOSEN:
        try:
            measured = measure_kernels(size, heads, [*order, FLASH_3] if _flash_3() else order)
        except torch.OutOfMemoryError:  # another program may have taken what ComfyUI has made free
            return ""
        _CHOSEN[size] = fastest_kernel(measured)
        logging.info(f"CogVideoX attention, {size.tokens} tokens of {size.dtype}: {_describe(measured)}")
    chosen = _CHOSEN[size]
    return "" if chosen is None else f"Attention by {KERNELS[chosen]}, the fastest kernel of this card at this size."


@comfy_attention.wrap_attn  # calls a node's attention override, with this function in the place of ComfyUI's
def attention_by_choice(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """ComfyUI's attention_pytorch, with the chosen kernel first where there is a choice for this size.

    query, key, value: [B, heads, N, D] (skip_reshape). Returns [B, N, heads * D].
    """
    chosen = None
    # Everything else that attention_pytorch can do is left to it.
    if mask is None and key.shape == query.shape and options.get("skip_reshape") and not _OF_COMFYUI & options.keys():
        chosen = _CHOSEN.get(AttentionSize(query.device, query.dtype, query.shape[2], query.shape[3]))
    if chosen is None:
        return comfy_attention.attention_pytorch(query, key, value, heads, mask=mask, **options)
    out = _scaled_dot_product(query, key, value, [chosen, *_host_order()])
    return out.transpose(1, 2).flatten(2)


def measure_kernels(size: AttentionSize, heads: int, names: list[str]) -> dict[str, Measured]:
    """Time and error of each kernel that can compute attention of `size`, in the order of `names`.

    Takes a few milliseconds for each. The numbers are random, of a generator of their own.

    Raises torch.OutOfMemoryError.
    """
    heads = min(heads, _measured_heads(size))
    generator = torch.Generator(size.device).manual_seed(0)
    # In the layout that attention gets: heads lie between tokens and width.
    shape, where = (1, size.tokens, heads, size.width), {"device": size.device, "dtype": size.dtype}
    query, key, value = (torch.randn(shape, generator=generator, **where).transpose(1, 2) for _ in range(3))
    exact, found = _exact_rows(query, key, value), dict[str, Measured]()
    for name in names:
        if not _can_use(name, query, key, value):
            continue
        try:
            call = partial(_scaled_dot_product, query, key, value, [name])
            rows = _compared(call()).double()
            error = float((rows - exact).square().mean().sqrt() / exact.square().mean().sqrt())
            seconds = median(seconds_on_card(call) for _ in range(_REPEATS))
        except torch.OutOfMemoryError:
            raise
        # This torch, or this card, has no such kernel for the size. FlashAttention-3 has Python in front of its own.
        except (RuntimeError, AssertionError, TypeError, ValueError):
            continue
        found[name] = Measured(seconds, error)
    return found


def fastest_kernel(measured: dict[str, Measured]) -> str | None:
    """The kernel to prefer to the first of `measured`, which is the one that ComfyUI takes; None for no other."""
    if not measured:
        return None
    first = next(iter(measured.values()))
    if first.seconds < LEAST_SECONDS:
        return None
    # NaN fails the comparison, as it should.
    exact = {name: found for name, found in measured.items() if found.error <= MAX_ERROR * first.error}
    name, best = min(exact.items(), key=lambda item: item[1].seconds, default=("", first))
    return name if best.seconds < LEAST_GAIN * first.seconds else None


def seconds_on_card(call: Callable[[], object]) -> float:
    """The time that the card takes for `call`."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _host_order() -> list[str]:
    """The kernels in the order in which ComfyUI tries them; none where it uses something else than torch's attention,
    or where this torch takes no order (before 2.6)."""
    order = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
    if order is None or comfy_attention.optimized_attention is not comfy_attention.attention_pytorch:
        return []
    return [backend.name for backend in order if backend.name in KERNELS] if mm.is_nvidia() else []


def _scaled_dot_product(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Attention [B, heads, N, D] by the first of `names`, or where that is torch's by the first that can compute it.

    Raises RuntimeError where none can.
    """
    if names[0] == FLASH_3:
        # [B, heads, N, D] -> [B, N, heads, D]. Its first versions return the logarithms of the sums as well.
        out = _flash_3()(*(x.transpose(1, 2) for x in (query, key, value)))
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)
    kernels = [getattr(SDPBackend, name) for name in dict.fromkeys(names)]
    with sdpa_kernel(kernels, set_priority=True):
        return F.scaled_dot_product_attention(query, key, value)


@cache
def _flash_3() -> Any:
    """flash_attn_func of FlashAttention-3; None where it is not installed, or cannot be imported."""
    for name in FLASH_3_MODULES:
        with suppress(ImportError, AttributeError, OSError, RuntimeError):  # of another torch or CUDA, in most cases
            return importlib.import_module(name).flash_attn_func
    return None


def _can_use(name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch says that a kernel can compute this. Trying one that cannot prints several warnings."""
    if not query.is_cuda:
        return True
    cuda: Any = torch.backends.cuda
    ask = getattr(cuda, f"can_use_{name.lower()}", None)  # torch before 2.5 has none for cuDNN
    return ask is None or ask(cuda.SDPAParams(query, key, value, None, 0.0, False, False))


def _measured_heads(size: AttentionSize) -> int:
    """The heads that occupy all of a card."""
    processors = torch.cuda.get_device_properties(size.device).multi_processor_count
    return -(-_WAVES * processors * _QUERIES // size.tokens)


def _compared(heads: torch.Tensor) -> torch.Tensor:
    """Evenly spread rows of the first head of [B, heads, N, D]."""
    return heads[0, 0, :: max(1, heads.shape[2] // _COMPARED_ROWS)]


def _exact_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The compared rows of the attention, in float64."""
    rows = _compared(query).double()
    scores = rows @ key[0, 0].double().T * query.shape[3] ** -0.5
    return scores.softmax(dim=-1) @ value[0, 0].double()


def _describe(measured: dict[str, Measured]) -> str:
    parts = (
        f"{KERNELS[name]} {found.seconds * 1000:.2f} ms, error {found.error:.1e}" for name, found in measured.items()
    )
    return "; ".join(parts) or "no kernel can be timed"
