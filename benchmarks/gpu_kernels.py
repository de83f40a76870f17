"""The transformer's Triton kernels at the model's own shapes: right to the last bits of torch, and how near to the
card's bandwidth."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from cogvideox.benchmarks.gpu_rows import (
    FAILED,
    MISSING,
    PASSED,
    Bench,
    kernel_seconds,
    relative_error,
    seconds_of,
    spread,
)

Case = tuple[int, int, int, tuple[int, int, int]]  # of tests.transformer.test_token_passes
CASES: dict[str, Case] = {"2b": (2, 30, 226, (13, 30, 45)), "5b": (2, 48, 226, (13, 30, 45))}
SMALL: Case = (1, 30, 2, (1, 3, 5))
# Tensors of all tokens that a pass reads or writes, once each.
TRAFFIC = {"adaptive norm": 2, "residual": 3, "residual and adaptive norm": 4, "norm and rotation of heads": 4}
ROWS, WARPS, HEADS, HEAD_WARPS = (1, 2, 4, 8), (4, 8, 16), (8, 16, 32, 64), (2, 4, 8)  # that are tried
MOST = 1.05  # times the error of torch's operations


def measure(bench: Bench) -> None:
    """The section."""
    bench.start_comfyui()
    cases = {"small": SMALL} if bench.smoke else {"small": SMALL, **CASES}
    for name, case in cases.items():
        for dtype in (torch.float32, torch.bfloat16):
            bench.attempt(
                f"{name}, {dtype}", lambda case=case, name=name, dtype=dtype: _errors(bench, name, case, dtype)
            )
    for name, case in ({"5b": SMALL} if bench.smoke else CASES).items():
        bench.attempt(f"times, {name}", lambda name=name, case=case: _times(bench, name, case))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        bench.attempt(f"gelu, {dtype}", lambda dtype=dtype: _gelu(bench, dtype))
    case = SMALL if bench.smoke else CASES["5b"]
    bench.attempt("launch settings of the token kernel", lambda: _token_settings(bench, case))
    bench.attempt("launch settings of the head kernel", lambda: _head_settings(bench, case))
    _given_up(bench)


def kernel_rows(bench: Bench, launches: Mapping[str, int]) -> None:
    """Whether each kernel of the transformer has been launched at all, and none has failed. launches: by name."""
    from cogvideox.transformer import token_passes as passes

    if not bench.on_card:
        return bench.row("kernels that were launched", "there is no card", MISSING)
    names = passes.NORM, passes.RESIDUAL, passes.RESIDUAL_NORM, passes.ROTATION
    listed = ", ".join(f"{name} {launches.get(name, 0)}" for name in names)
    verdict = PASSED if all(launches.get(name) for name in names) else FAILED
    bench.row("kernels that were launched", listed, verdict, launches=dict(launches))
    _given_up(bench)


def _errors(bench: Bench, name: str, case: Case, dtype: torch.dtype) -> None:
    """Each pass against fp64, beside torch's operations."""
    from cogvideox.tests.transformer.test_token_passes import compare

    if not bench.on_card:
        return bench.row(f"{name}, {dtype}: errors", "there is no card", PASSED)
    found = compare(case, dtype, "cuda")
    ratios = {part: ours / theirs for part, (ours, theirs) in found.items()}
    listed = ", ".join(f"{part} {found[part][0]:.2e} ({ratio:.2f})" for part, ratio in ratios.items())
    verdict = PASSED if all(ratio <= MOST for ratio in ratios.values()) else FAILED
    what = f"{name}, {str(dtype).removeprefix('torch.')}: error against fp64 (over torch's)"
    bench.row(what, listed, verdict, predicted=f"at most {MOST}", errors=found)


def _passes(case: Case, device: torch.device, in_place: bool = True) -> tuple[dict[str, Callable[[], object]], int]:
    """The passes as the transformer calls them, and the bytes of all tokens."""
    from cogvideox.tests.transformer.test_token_passes import make_layers
    from cogvideox.transformer import token_passes as passes

    of = make_layers(case, 64, torch.bfloat16, str(device))
    (first, second), (query, key) = of.modulations, of.heads
    calls: dict[str, Callable[[], object]] = {
        "adaptive norm": lambda: passes.modulated_norm(of.norm, first, of.tokens),
        "residual": lambda: passes.added(first, of.tokens, of.output, in_place),
        "residual and adaptive norm": lambda: passes.added_and_normed(
            first, of.tokens, of.output, of.norm, second, in_place
        ),
        "norm and rotation of heads": lambda: passes.normed_heads(of.attn, query, key, of.rotary),
    }
    return {name: _without_gradient(call) for name, call in calls.items()}, of.output.nbytes


def _without_gradient(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def _times(bench: Bench, name: str, case: Case) -> None:
    """Each pass by its kernel and by torch, in turn."""
    from cogvideox.benchmarks.gpu_models import without_kernels

    calls, size = _passes(case, bench.device)
    for what, call in calls.items():
        both: dict[str, Callable[[], Any]] = {"kernel": call, "torch": without_kernels(call)}  # type: ignore[dict-item]
        seconds = kernel_seconds(bench, both, 10, warm=2)
        alone = {f"{kind}, with its launch": times for kind, times in seconds_of(bench, both, 6, warm=0).items()}
        rate = TRAFFIC[what] * size / seconds["kernel"]
        listed = ", ".join(f"{kind} {1e3 * min(times):.3f} ms" for kind, times in alone.items())
        found = f"{1e3 * seconds['kernel']:.3f} ms, {rate / 1e12:.2f} TB/s; torch {1e3 * seconds['torch']:.3f} ms; "
        bench.row(f"{name}, {what}", found + listed, predicted="2.4 TB/s or more", seconds=seconds, bytes_per_s=rate)


def _gelu(bench: Bench, dtype: torch.dtype) -> None:
    """The feed-forward's first product: cuBLASLt's gelu beside torch's two operations, error against fp64, and time."""
    tokens, width = (64, 48) if bench.smoke else (35552, 3072)
    torch.manual_seed(0)
    x = torch.randn(tokens, width, device=bench.device).to(dtype)
    weight = (torch.randn(4 * width, width, device=bench.device) * width**-0.5).to(dtype)
    bias = torch.randn(4 * width, device=bench.device).to(dtype)
    gelu_in_place: Any = torch.ops.aten.gelu_
    product: Any = torch._addmm_activation
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "product alone": lambda: F.linear(x, weight, bias),
        "product, gelu": lambda: F.gelu(F.linear(x, weight, bias), approximate="tanh"),
        "product, gelu in place": lambda: gelu_in_place(F.linear(x, weight, bias), approximate="tanh"),
        "one kernel": lambda: product(bias, x, weight.T, use_gelu=True),
    }
    corner = F.linear(*(t.double() for t in (x[:512], weight[:512], bias[:512])))
    exact = F.gelu(corner, approximate="tanh")
    error = {name: relative_error(call()[:512, :512], exact) for name, call in calls.items()}
    seconds = seconds_of(bench, calls, 2 if dtype == torch.float32 else 6)
    listed = ", ".join(f"{name} {spread(times)} {error[name]:.2e}" for name, times in seconds.items())
    kind = str(dtype).removeprefix("torch.")
    bench.row(f"gelu, {kind}: seconds and error against fp64", listed, seconds=seconds, errors=error)


def _token_settings(bench: Bench, case: Case) -> None:
    """Bandwidth of the token kernel by rows and warps."""
    calls, size = _passes(case, bench.device)
    names = ("residual and adaptive norm", "adaptive norm", "residual")
    for rows, warps in [(4, 8)] if bench.smoke else itertools.product(ROWS, WARPS):
        if bench.left() < 4:
            return
        _try_settings(bench, calls, size, names, {"ROWS": rows, "WARPS": warps, "WIDE_WARPS": warps})


def _head_settings(bench: Bench, case: Case) -> None:
    """Bandwidth of the head kernel by heads and warps."""
    calls, size = _passes(case, bench.device)
    for heads, warps in [(16, 4)] if bench.smoke else itertools.product(HEADS, HEAD_WARPS):
        if bench.left() < 3:
            return
        _try_settings(bench, calls, size, ("norm and rotation of heads",), {"HEADS": heads, "HEAD_WARPS": warps})


def _try_settings(
    bench: Bench, calls: dict[str, Callable[[], object]], size: int, names: tuple[str, ...], settings: dict[str, int]
) -> None:
    if not bench.on_card:
        return bench.row(f"settings {settings}", "there is no card")
    from cogvideox.transformer import token_kernels

    changed: Any = settings
    with mock.patch.multiple(token_kernels, **changed):
        seconds = kernel_seconds(bench, {name: calls[name] for name in names}, 5, warm=2)
        found = {name: TRAFFIC[name] * size / seconds[name] for name in names}
    listed = ", ".join(f"{name} {rate / 1e12:.2f} TB/s" for name, rate in found.items())
    bench.row(f"settings {settings}", listed, bytes_per_s=found, settings=settings)


def _given_up(bench: Bench) -> None:
    """Kernels that have failed and were replaced by torch's operations; the log above has the reasons."""
    from cogvideox.transformer import token_passes

    names = sorted(f"{name} in {dtype}" for name, _, dtype in token_passes._WITHOUT)
    bench.row("kernels that were given up", ", ".join(names) or "none", FAILED if names else PASSED, names=names)
