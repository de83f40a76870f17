"""One weight of a file -> what stands in the model: kept, cast, quantised or unpacked."""

from collections.abc import Mapping

import torch

from ..errors import UserError
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

_STORED_AS = {"fp8_e4m3fn": "float8_e4m3fn", "int8": "int8_tensorwise"}  # ComfyUI's names of our modes


def convert_transformer_weights(
    module: torch.nn.Module, state_dict: dict[str, torch.Tensor], precision: Precision, cast: bool
) -> dict[str, torch.Tensor]:
    """The weights of `state_dict`, which is emptied on the way, as they stand in `module`.

    cast: whether plain weights take the type that the module has; if not, they stay mapped in the file.
    """
    types = {name: parameter.dtype for name, parameter in module.named_parameters()}
    holders = {f"{name}.weight" for name, leaf in module.named_modules() if isinstance(leaf, QuantizedLinear)}
    converted = {}
    for name in list(state_dict):
        value = state_dict.pop(name)
        if name in types:
            matrix = is_block_matrix(name)
            value = _convert(name, value, precision, name in holders, matrix, types[name], cast)
        elif is_quantized(value):  # a buffer
            value = dequantized(value, torch.float32)
        converted[name] = value
    return converted


def convert_t5_weights(state_dict: dict[str, torch.Tensor], precision: Precision) -> dict[str, torch.Tensor]:
    """The weights of a T5 encoder, which are emptied on the way; plain ones are left to ComfyUI, which casts them."""
    converted = {}
    for name in list(state_dict):
        matrix = is_t5_matrix(name)
        converted[name] = _convert(name, state_dict.pop(name), precision, matrix, matrix, precision.storage, False)
    return converted


def _convert(
    name: str,
    value: torch.Tensor,
    precision: Precision,
    can_hold: bool,
    is_matrix: bool,
    plain: torch.dtype,
    cast: bool,
) -> torch.Tensor:
    """One weight.

    can_hold: its layer takes quantised weights. is_matrix: it is one of those that a mode quantises. plain: the type
    of one that is not quantised. cast: whether one that is plain in the file takes that type.

    Raises UserError naming a weight that cannot be quantised.
    """
    if precision.mode and is_matrix and can_hold:
        if _is_stored_as(value, precision.mode):
            return _as_quantized(value, precision.compute)
        try:
            return quantize(value, precision.mode, precision.compute)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    if is_quantized(value) or value.dtype in FP8_LAYOUTS:
        keep = precision.keeps and can_hold
        return _as_quantized(value, precision.compute) if keep else dequantized(value, plain)
    return value.to(plain) if cast else value


def any_gguf(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether GGUF blocks are among the weights.

    ComfyUI's loading on demand packs patched weights again, which they do not allow.
    """
    return any(is_gguf(value) for value in state_dict.values())


def _is_stored_as(value: torch.Tensor, mode: str) -> bool:
    if is_quantized(value):
        return FORMATS.get(value._layout_cls) == _STORED_AS[mode]
    return mode == "fp8_e4m3fn" and value.dtype == torch.float8_e4m3fn


def _as_quantized(value: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    return with_logical_dtype(value, compute) if is_quantized(value) else fp8_tensor(value, None, compute)
