"""Products of matrices on a CPU, by the library and in the dtype that a timing finds faster there.

torch multiplies fp32 with MKL. On one AMD processor MKL made 91 to 99 GFLOP/s in a thread and oneDNN, which torch has
as well, 171 to 211; on another, without AVX-512, 88 and 75, with twice the error. bf16 is twice as fast as fp32 with
AVX512-BF16, and took eight times as long without. No table of processors would be complete, so both are timed when a
model is loaded, once in a process. A timing may come out differently one day: by it fp32 changes in the last bits, and
bf16 is computed in bf16 only where the CPU has instructions for it as well.
"""

import logging
from collections.abc import Callable
from functools import cache
from threading import RLock
from time import perf_counter
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.ops
import torch
import torch.nn.functional as F

from .patches import one_thread

LEAST_GAIN = 0.8  # of the seconds: less gain is not worth other last bits than torch's own
MOST_ERROR = 3e-7  # relative, of a product; torch's own has 2.5e-7
_ROWS, _WIDTH = 128, 1024  # what is timed: 3 ms in fp32 on one core
_ROUNDS = 12
# One at a time: each sets the number of threads for all of torch, and puts back what it has found.
_TIMING = RLock()
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # keys of torch.cpu.get_capabilities()
_LEAST_ROWS = 32  # below, such as for a timestep, a call takes longer than the product


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear, by oneDNN where that is faster. x: [..., in]. weight: [out, in]. bias: [out]. Returns [..., out]."""
    return _by_onednn(x, weight, bias) if _suits_onednn(x, weight, bias) else F.linear(x, weight, bias)


def _suits_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """oneDNN's operator has no gradients and knows no autocast, and torch.compile, which is asked first so that it need
    not compile again for another number of rows, chooses by itself."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and (bias is None or (bias.dtype == torch.float32 and bias.shape == weight.shape[:1]))
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= _LEAST_ROWS * max(1, x.shape[-1])
        and torch.backends.mkldnn.enabled
        and onednn_is_faster()
    )


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # The operator that torch.compile takes for a Linear on the CPU (torch/_inductor/fx_passes/mkldnn_fusion.py). It is
    # not documented, so that a torch without it, or with other arguments, is reckoned with: onednn_is_faster.
    operator: Any = torch.ops.mkldnn._linear_pointwise
    # It takes a bias for contiguous whatever its strides are, and torch files may hold strided ones.
    return operator(x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous(), "none", [], "")


class Measured(NamedTuple):
    """A product on this CPU: its seconds as a share of those of the one it would replace, and its relative error."""

    share: float
    error: float


def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies fp32 faster than torch's own product, and within fp32's rounding."""
    measured = measured_onednn()
    # NaN fails it, as it should.
    return measured is not None and measured.share <= LEAST_GAIN and measured.error <= MOST_ERROR


def bf16_is_faster() -> bool:
    """Whether this CPU has instructions for bf16 and multiplies it faster than fp32."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # {} of a torch without it
    return any(known.get(name) for name in _BF16_INSTRUCTIONS) and measured_bf16().share <= LEAST_GAIN


@cache
def measured_onednn() -> Measured | None:
    """oneDNN's product of fp32 against torch's; None where it cannot be used."""
    if not torch.backends.mkldnn.is_available():
        return None
    values = _matrices()
    try:
        with _TIMING, torch.inference_mode():
            error = _error(_by_onednn(*values), values)
            share = _share(lambda: _by_onednn(*values), lambda: F.linear(*values))
    except (AttributeError, RuntimeError, TypeError) as failed:
        logging.debug("CogVideoX: oneDNN's product cannot be used.", exc_info=failed)
        return None
    logging.info(
        f"CogVideoX: oneDNN multiplies fp32 in {share:.2f} of the time of torch's own product on this CPU, with an "
        f"error of {error:.1e}."
    )
    return Measured(share, error)


@cache
def measured_bf16() -> Measured:
    """torch's product of bf16 against the fp32 product that this CPU would take."""
    values = _matrices()
    half = [value.bfloat16() for value in values]
    onednn_is_faster()  # not within the timing of something else
    with _TIMING, torch.inference_mode():
        error = _error(F.linear(*half), values)
        share = _share(lambda: F.linear(*half), lambda: linear(*values))
    logging.info(f"CogVideoX: bf16 is multiplied in {share:.2f} of the time of fp32 on this CPU.")
    return Measured(share, error)


def computes_bf16(storage: torch.dtype, device: torch.device) -> bool:
    """Whether weights in bf16 are computed in bf16 on a CPU, where ComfyUI's rule is fp32 for all of them.

    --force-fp32 wins, as it does on a card.
    """
    is_bf16_on_cpu = device.type == "cpu" and storage == torch.bfloat16
    return is_bf16_on_cpu and not getattr(mm, "FORCE_FP32", False) and bf16_is_faster()


class OneDnnLinear(comfy.ops.manual_cast.Linear):
    """ComfyUI's Linear, with `linear`."""

    def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias, offload_stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
        output = linear(input, weight, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, offload_stream)
        return output


class OneDnnOps(comfy.ops.manual_cast):
    """Operations for a model whose arithmetic is fp32 on a CPU on which onednn_is_faster."""

    Linear = OneDnnLinear


def cpu_operations(compute: torch.dtype, device: torch.device) -> type | None:
    """OneDnnOps where they gain; None leaves the choice to ComfyUI. compute: the dtype of the arithmetic."""
    suits = device.type == "cpu" and compute == torch.float32 and torch.backends.mkldnn.enabled
    return OneDnnOps if suits and onednn_is_faster() else None


def _matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [_ROWS, _WIDTH], a weight and a bias, in fp32."""
    generator = torch.Generator().manual_seed(0)  # not torch's global one, from which others draw
    shapes = (_ROWS, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH,)
    # By name, because another node may have chosen another default for all of torch.
    where: Any = {"generator": generator, "device": "cpu", "dtype": torch.float32}
    x, weight, bias = (torch.randn(shape, **where) for shape in shapes)
    return x, weight, bias


def _error(found: torch.Tensor, values: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    """RMS of the difference from the product in fp64 over RMS of that."""
    exact = F.linear(*(value.double() for value in values))
    return float((found.double() - exact).norm() / exact.norm())


def _share(call: Callable[[], object], of: Callable[[], object]) -> float:
    """The seconds of `call` as a share of those of `of`, both the fastest of several in turn.

    In one thread: with several, that share was 0.2 to 4.4 for the same call beside other programs, in one 0.9 to 1.1.
    """
    calls = call, of
    seconds: list[list[float]] = [[], []]
    with one_thread():
        for _ in range(_ROUNDS):
            for timed, found in zip(calls, seconds):
                begin = perf_counter()
                timed()
                found.append(perf_counter() - begin)
    # The first round also prepares the kernels.
    fastest, other = (min(found[1:]) for found in seconds)
    return fastest / other
