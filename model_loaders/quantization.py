"""Weights of a file -> weights of a model: kept, cast, quantised or unpacked."""

from collections.abc import Mapping

import torch

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..host.quantized import (
    FORMATS,
    FP8_LAYOUTS,
    dequantized,
    fp8_tensor,
    is_gguf,
    is_quantized,
    quantize,
    with_logical_dtype,
)
from ..host.quantized_ops import QuantizedLinear
from ..transformer.parameter_types import is_block_matrix
from .precision import Precision, is_t5_matrix

# our modes -> ComfyUI's names of them (comfy/quant_ops.py, QUANT_ALGOS)
_COMFYUI_FORMATS = {"fp8_e4m3fn": "float8_e4m3fn", "int8": "int8_tensorwise"}


def convert_transformer_weights(
    module: torch.nn.Module, state_dict: dict[str, torch.Tensor], precision: Precision, cast: bool
) -> dict[str, torch.Tensor]:
    """The weights of `state_dict`, which is emptied, as `module` is to hold them.

    cast: whether plain weights are cast to the dtypes that the module has; otherwise they stay memory-mapped.

    Each weight is removed from `state_dict` before it is converted, so that only one at a time is in memory twice.
    """
    dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
    quantizable = {f"{name}.weight" for name, leaf in module.named_modules() if isinstance(leaf, QuantizedLinear)}
    converted = {}
    for name in list(state_dict):
        throw_if_interrupted()
        value = state_dict.pop(name)
        if name in dtypes:
            value = _convert(
                name,
                value,
                precision,
                can_be_quantized=name in quantizable,
                is_mode_target=is_block_matrix(name),
                plain=dtypes[name],
                cast=cast,
            )
        elif is_quantized(value):  # a buffer, such as a position table: used outside of any Linear
            value = dequantized(value, torch.float32)
        converted[name] = value
    return converted


def convert_t5_weights(state_dict: dict[str, torch.Tensor], precision: Precision) -> dict[str, torch.Tensor]:
    """The weights of a T5 encoder from `state_dict`, which is emptied. Plain ones are not cast; ComfyUI casts them.

    T5 is built later, by comfy.sd.CLIP, so that names have to tell which layers can hold quantised weights.
    """
    converted = {}
    for name in list(state_dict):
        throw_if_interrupted()
        is_matrix = is_t5_matrix(name)
        converted[name] = _convert(
            name,
            state_dict.pop(name),
            precision,
            can_be_quantized=is_matrix,
            is_mode_target=is_matrix,
            plain=precision.storage,
            cast=False,
        )
    return converted


def _convert(
    name: str,
    value: torch.Tensor,
    precision: Precision,
    *,
    can_be_quantized: bool,
    is_mode_target: bool,
    plain: torch.dtype,
    cast: bool,
) -> torch.Tensor:
    """One weight.

    can_be_quantized: whether its layer can hold quantised weights. is_mode_target: whether it is one of the weights
    that a mode quantises. plain: its dtype where it is not quantised. cast: whether a weight that is plain in the file
    is cast to that dtype.

    Raises UserError, which names a weight that cannot be quantised.
    """
    compute = precision.compute or precision.storage
    if precision.mode and is_mode_target and can_be_quantized:
        # Quantised in the same way already: the codes are kept. Quantising their values again would round them twice.
        if _is_in_mode(value, precision.mode):
            return _as_quantized(value, compute)
        try:
            return quantize(value, precision.mode, compute)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    # Quantised in the file, in another way than asked for, or a weight whose layer has to be plain.
    if is_quantized(value) or value.dtype in FP8_LAYOUTS:
        keep = precision.keeps_quantized and can_be_quantized
        return _as_quantized(value, compute) if keep else dequantized(value, plain)
    return value.to(plain) if cast else value


def any_gguf(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether any of the weights are GGUF blocks.

    Such a model cannot use ComfyUI's dynamic VRAM, which quantises patched weights again: for GGUF's blocks this pack
    has only the inverse (host.quantized.with_patches).
    """
    return any(is_gguf(value) for value in state_dict.values())


def _is_in_mode(value: torch.Tensor, mode: str) -> bool:
    if is_quantized(value):
        return FORMATS.get(value._layout_cls) == _COMFYUI_FORMATS[mode]
    return mode == "fp8_e4m3fn" and value.dtype == torch.float8_e4m3fn


def _as_quantized(value: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    return with_logical_dtype(value, compute) if is_quantized(value) else fp8_tensor(value, None, compute)
