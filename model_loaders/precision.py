"""From the user's `weight_dtype` to the types weights are stored and computed in."""

from collections.abc import Mapping
from dataclasses import dataclass

import comfy.model_management as mm
import comfy.quant_ops
import comfy.utils
import torch

from ..errors import UserError
from ..host.quantized import FP8_LAYOUTS, QUANTIZED_MODES, is_quantized
from ..host.quantized_ops import FastQuantizedOps, QuantizedOps

# what a VAE and a control net can be stored in: types of torch's own
WEIGHT_DTYPES = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
_FAST = "_fast"
_CPU_INT8_UNITS = ("avx512_vnni", "avx_vnni", "amx_int8")  # as torch.cpu.get_capabilities names them
FAST_MODES = tuple(mode + _FAST for mode in QUANTIZED_MODES)
# what a transformer and T5 can be stored in
PRECISIONS = (
    *(name for name in WEIGHT_DTYPES if name not in QUANTIZED_MODES),
    *(name for pair in zip(QUANTIZED_MODES, FAST_MODES) for name in pair),
)


@dataclass(frozen=True)
class Precision:
    """How one model is stored and computed."""

    storage: torch.dtype  # of all that is not quantised
    compute: torch.dtype | None  # None where it is the storage type
    mode: str | None = None  # one of QUANTIZED_MODES: the blocks' matrices are converted to it
    keeps: bool = False  # matrices that are quantised in the file stay so
    fast: bool = False  # matrices are multiplied in their quantised type

    @property
    def operations(self) -> type | None:
        """ComfyUI operations that can hold these weights; None leaves the choice to ComfyUI."""
        if not self.mode and not self.keeps:
            return None
        return FastQuantizedOps if self.fast else QuantizedOps


def choose_precision(
    weight_dtype: str, trained: torch.dtype, state_dict: Mapping[str, torch.Tensor], device: torch.device
) -> Precision:
    """How to store and compute a transformer on `device`.

    weight_dtype: one of PRECISIONS; "default" keeps what is quantised in the file. trained: the checkpoint's own type.

    Raises UserError where the device cannot run it.
    """
    check_precision(weight_dtype, device)
    mode, keeps = quantized_mode(weight_dtype), weight_dtype == "default" and holds_quantized(state_dict)
    parameters = comfy.utils.calculate_parameters(state_dict)
    if not mode and not keeps:
        stored = comfy.utils.weight_dtype(state_dict)
        return Precision(*choose_dtypes(weight_dtype, trained, stored, parameters, device))
    # what is not quantised weighs little: in the type that is computed in, nothing has to be cast in every step
    storage, compute = choose_dtypes("default", trained, trained, parameters, device)
    compute = compute or storage
    return Precision(compute, compute, mode, keeps, weight_dtype.endswith(_FAST))


def choose_dtypes(
    weight_dtype: str, trained: torch.dtype, stored: torch.dtype, parameters: int, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """(storage type, compute type or None where it is the same) for a model of plain weights on `device`.

    trained: the checkpoint's own precision, preferred where the device computes in it.
    stored: the type most weights have on disk.

    Raises UserError for a precision that needs quantised weights.
    """
    if weight_dtype not in WEIGHT_DTYPES:
        raise UserError(f"{weight_dtype} is for the transformer only. Choose {', '.join(WEIGHT_DTYPES)}.")
    other = torch.float16 if trained == torch.bfloat16 else torch.bfloat16
    supported = [trained, other, torch.float32] if trained != torch.float32 else [torch.float32]
    storage = WEIGHT_DTYPES[weight_dtype]
    if storage is None:
        storage = mm.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=stored)
    return storage, mm.unet_manual_cast(storage, device, supported)


def is_t5_matrix(name: str) -> bool:
    """Whether the weight `name` is one of T5's attention and feed-forward matrices."""
    return name.endswith((".q.weight", ".k.weight", ".v.weight", ".o.weight")) or (
        ".DenseReluDense.wi" in name or ".DenseReluDense.wo" in name
    )


def quantized_mode(weight_dtype: str) -> str | None:
    """The one of QUANTIZED_MODES that `weight_dtype` asks for."""
    mode = weight_dtype.removesuffix(_FAST)
    return mode if mode in QUANTIZED_MODES else None


def holds_quantized(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether any of the weights is quantised, or in fp8."""
    return any(is_quantized(value) or value.dtype in FP8_LAYOUTS for value in state_dict.values())


def check_precision(weight_dtype: str, device: torch.device) -> None:
    """Raises UserError where `device` cannot multiply in the type that `weight_dtype` asks for."""
    if weight_dtype not in PRECISIONS:
        raise UserError(f"There is no precision {weight_dtype}. Choose one of {', '.join(PRECISIONS)}.")
    if weight_dtype not in FAST_MODES:
        return
    mode = quantized_mode(weight_dtype)
    lack = _lacks_fp8(device) if mode == "fp8_e4m3fn" else _lacks_int8(device)
    if lack:
        raise UserError(
            f"{weight_dtype} multiplies in {mode.split('_')[0]}, and {lack}. Choose {mode}: it takes as little memory "
            "and multiplies in the usual type."
        )


def _lacks_fp8(device: torch.device) -> str | None:
    if device.type == "cpu":
        return "a CPU has no such units"
    if not getattr(mm, "supports_fp8_compute", lambda device: False)(device):
        return f"{_device_name(device)} has no such units (NVIDIA's Ada and Hopper, and later, have)"
    return None


def _lacks_int8(device: torch.device) -> str | None:
    if device.type == "cpu":
        # without them torch multiplies int8 in ordinary steps, slower than fp32
        known = getattr(torch.cpu, "get_capabilities", dict)()
        return None if any(known.get(unit) for unit in _CPU_INT8_UNITS) else "this CPU has no such units (VNNI or AMX)"
    layout = getattr(comfy.quant_ops, "TensorWiseINT8Layout", None)
    supports = getattr(layout, "supports_fast_matmul", None)
    if device.type != "cuda" or supports is None or not supports():
        return f"{_device_name(device)} has no such units that ComfyUI can use (NVIDIA's Turing, and later, have)"
    return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else str(device)
