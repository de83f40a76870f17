"""From the user's `weight_dtype` to the dtypes in which weights are stored and computed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.quant_ops
import comfy.utils
import torch

from ..errors import UserError
from ..host.cpu_products import computes_bf16, cpu_operations
from ..host.quantized import FP8_LAYOUTS, QUANTIZED_MODES, is_quantized, require_mode
from ..host.quantized_ops import FastQuantizedOps, QuantizedOps

# The precisions of VAEs and control nets: dtypes of torch. None: chosen for the device. In a control net, fp8_e4m3fn is
# a plain cast without scales; in a transformer or T5, the same name means quantised weights (QUANTIZED_MODES).
WEIGHT_DTYPES = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
_FAST = "_fast"
_CPU_INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")  # keys of torch.cpu.get_capabilities()
FAST_MODES = tuple(mode + _FAST for mode in QUANTIZED_MODES)
# the precisions of transformers; T5 has these without FAST_MODES
PRECISIONS = (
    *(name for name in WEIGHT_DTYPES if name not in QUANTIZED_MODES),
    *(name for pair in zip(QUANTIZED_MODES, FAST_MODES) for name in pair),
)


class Precision(NamedTuple):
    """How one model is stored and computed.

    storage: the dtype of all weights that are not quantised. compute: the dtype of the arithmetic, None where it is
    the storage dtype. mode: one of QUANTIZED_MODES, to which the blocks' matrices are converted. keeps_quantized:
    matrices that are quantised in the file stay quantised. fast: matrices are multiplied in their quantised type.
    """

    storage: torch.dtype
    compute: torch.dtype | None
    mode: str | None = None
    keeps_quantized: bool = False
    fast: bool = False

    def operations_on(self, device: torch.device) -> Any:
        """The class of ComfyUI operations that hold these weights; None leaves the choice to ComfyUI."""
        # Asked in any case: QuantizedOps multiply by the same choice, which is to be made before a run.
        plain = cpu_operations(self.compute or self.storage, device)
        if not self.mode and not self.keeps_quantized:
            return plain
        return FastQuantizedOps if self.fast else QuantizedOps


def choose_precision(
    weight_dtype: str, trained: torch.dtype, state_dict: Mapping[str, torch.Tensor], device: torch.device
) -> Precision:
    """How to store and compute a transformer on `device`.

    weight_dtype: one of PRECISIONS; "default" keeps weights that are quantised in the file. trained: the dtype in which
    the checkpoint was trained.

    Raises UserError where the device cannot run this precision.
    """
    check_precision(weight_dtype, device)
    mode, keeps = quantized_mode(weight_dtype), weight_dtype == "default" and holds_quantized(state_dict)
    parameters = comfy.utils.calculate_parameters(state_dict)
    if not mode and not keeps:
        stored = comfy.utils.weight_dtype(state_dict)
        return Precision(*choose_dtypes(weight_dtype, trained, stored, parameters, device))
    # The weights that are not quantised are few. Stored in the compute dtype, they need no cast in every step. It is
    # the dtype that ComfyUI would choose for a file in the trained dtype. The file's own dtypes say nothing: quantised
    # tensors are fp32 to the outside until convert_transformer_weights knows the compute dtype.
    storage, compute = choose_dtypes("default", trained, trained, parameters, device)
    compute = compute or storage
    return Precision(compute, compute, mode, keeps_quantized=keeps, fast=weight_dtype.endswith(_FAST))


def choose_dtypes(
    weight_dtype: str, trained: torch.dtype, stored: torch.dtype | None, parameters: int, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """(storage dtype, compute dtype or None where it is the same) for a model of plain weights on `device`.

    trained: the dtype in which the checkpoint was trained, preferred where the device computes in it.
    stored: the dtype of most weights on disk. Where it is fp16, ComfyUI's unet_dtype prefers fp16 to `trained`.

    On a CPU "default" is ComfyUI's choice, fp32. bf16 computes in bf16 where that is faster, and else in fp32 too.

    Raises UserError for a precision that needs quantised weights.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise UserError(f"weight_dtype {weight_dtype} is for transformers only. Choose {', '.join(WEIGHT_DTYPES)}.")
    # ComfyUI takes the first of a model's dtypes in which the device computes. Its usual order, fp16 first, would run
    # CogVideoX-5b in fp16, which it was not trained in: activations may overflow and the video be black.
    other = torch.float16 if trained == torch.bfloat16 else torch.bfloat16
    supported = [trained, other, torch.float32] if trained != torch.float32 else [torch.float32]
    # The second dtype, ComfyUI's manual cast, is for weights that the device can store but not compute with.
    storage = WEIGHT_DTYPES[weight_dtype]
    if storage is None:
        storage = mm.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=stored)
    elif computes_bf16(storage, device):
        return storage, None
    return storage, mm.unet_manual_cast(storage, device, supported)


def is_t5_matrix(name: str) -> bool:
    """Whether the weight `name` is one of T5's attention and feed-forward matrices.

    The embedding table and the relative position bias are matrices too, but looked up instead of multiplied: they have
    no kernel for quantised weights.
    """
    return name.endswith((".q.weight", ".k.weight", ".v.weight", ".o.weight")) or (
        ".DenseReluDense.wi" in name or ".DenseReluDense.wo" in name
    )


def quantized_mode(weight_dtype: str) -> str | None:
    """The one of QUANTIZED_MODES that `weight_dtype` selects; None for a plain dtype or "default"."""
    mode = weight_dtype.removesuffix(_FAST)
    return mode if mode in QUANTIZED_MODES else None


def holds_quantized(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether any of the weights are quantised, or in plain fp8."""
    return any(is_quantized(value) or value.dtype in FP8_LAYOUTS for value in state_dict.values())


def check_precision(weight_dtype: str, device: torch.device) -> None:
    """Raises UserError for an unknown `weight_dtype`, one that this ComfyUI has no type for, or one whose matrix
    multiplication `device` does not support."""
    if weight_dtype not in PRECISIONS:
        raise UserError(f"There is no precision {weight_dtype}. Choose one of {', '.join(PRECISIONS)}.")
    mode = quantized_mode(weight_dtype)
    if mode is None:
        return
    require_mode(mode)
    if weight_dtype not in FAST_MODES:
        return
    obstacle = fp8_matmul_obstacle(device) if mode == "fp8_e4m3fn" else int8_matmul_obstacle(device)
    if obstacle:
        raise UserError(
            f"{weight_dtype} needs {mode.split('_')[0]} matmul support, {obstacle}. Choose {mode}: it takes as little "
            "memory and multiplies in bf16, fp16 or fp32."
        )


def fp8_matmul_obstacle(device: torch.device) -> str | None:
    """Why `device` has no fp8 matrix multiplication, as a relative clause for a message; None where it has."""
    if device.type == "cpu":
        return "which this CPU does not have"
    # Looked up by name: versions of ComfyUI without the function do not multiply in fp8.
    if not getattr(mm, "supports_fp8_compute", lambda device: False)(device):
        return f"which {_device_name(device)} does not have (NVIDIA's Ada, Hopper and later cards have it)"
    return None


def int8_matmul_obstacle(device: torch.device) -> str | None:
    """Why `device` has no int8 matrix multiplication, as a relative clause for a message; None where it has."""
    if device.type == "cpu":
        # Without these instructions torch emulates int8 matmul, slower than fp32. A torch without get_capabilities
        # gives {} here: the instructions are then taken to be missing.
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        has_instructions = any(capabilities.get(name) for name in _CPU_INT8_INSTRUCTIONS)
        return None if has_instructions else "which this CPU does not have (VNNI or AMX)"
    layout = getattr(comfy.quant_ops, "TensorWiseINT8Layout", None)
    supports = getattr(layout, "supports_fast_matmul", None)
    if device.type != "cuda" or supports is None or not supports():
        return f"which ComfyUI does not have for {_device_name(device)} (NVIDIA's Turing and later cards have it)"
    return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else str(device)
