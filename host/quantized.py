"""Weights in fp8, int8 and GGUF blocks as ComfyUI's QuantizedTensor.

Such a tensor has the shape and the type of the weight that it stands for, its logical ones, so that layers, LoRAs and
state dicts treat it as any other weight. Stored are its codes and their scales.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import comfy.lora
import comfy.quant_ops
import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import WeightAdapterBase

from ..errors import UserError
from .compat import comfyui_version
from .patches import register_layout

# Without the package comfy-kitchen ComfyUI defines an empty class QuantizedTensor, so that importing the name succeeds.
_AVAILABLE = hasattr(QuantizedTensor, "from_float")
_ALGORITHMS = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
FP8_LAYOUTS = {torch.float8_e4m3fn: "TensorCoreFP8E4M3Layout", torch.float8_e5m2: "TensorCoreFP8E5M2Layout"}
_INT8_SINCE = "0.30.0"  # of the versions that the tests know the first with this type; 0.24.0 lacks it
INT8_LAYOUT, GGUF_LAYOUT = "TensorWiseINT8Layout", "CogVideoXGGUFLayout"
# layout -> its name in the files that ComfyUI writes
FORMATS = {algorithm["comfy_tensor_layout"]: name for name, algorithm in _ALGORITHMS.items()}
# what `quantize` makes, by the names that weight_dtype has for it
QUANTIZED_MODES = ("fp8_e4m3fn", "int8")


class BlockFormat(NamedTuple):
    """How GGUF packs neighbouring weights of a row into one block."""

    name: str
    weights: int  # in a block
    size: int  # of a block in bytes
    unpack: Callable[[torch.Tensor], torch.Tensor]  # uint8 [n, size] -> fp32, [n, weights] in all

    def row_bytes(self, columns: int) -> int | None:
        """Bytes of a row of `columns` weights; None where the last block would not be full."""
        return columns // self.weights * self.size if columns % self.weights == 0 else None

    def row_columns(self, size: int) -> int | None:
        """Weights in a row of `size` bytes; None where the last block would not be complete."""
        return size // self.size * self.weights if size % self.size == 0 else None

    def unpack_rows(self, blocks: torch.Tensor) -> torch.Tensor:
        """uint8 [rows, bytes per row] -> weights, fp32 [rows, columns]."""
        return self.unpack(blocks.reshape(-1, self.size)).reshape(blocks.shape[0], -1)


def is_quantized(tensor: object) -> TypeGuard[QuantizedTensor]:
    """Whether `tensor` is a QuantizedTensor."""
    return _AVAILABLE and isinstance(tensor, QuantizedTensor)


def is_gguf(tensor: object) -> TypeGuard[QuantizedTensor]:
    """Whether `tensor` is a QuantizedTensor of GGUF blocks."""
    return is_quantized(tensor) and tensor._layout_cls == GGUF_LAYOUT


def fp8_tensor(data: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> QuantizedTensor:
    """`data` [out, in] in fp8, times `scale` (one number; None is 1).

    dtype: the logical type, in which it is multiplied.

    Raises UserError where this ComfyUI has no such type.
    """
    layout = FP8_LAYOUTS[data.dtype]
    _require(layout)
    scale = torch.ones((), device=data.device) if scale is None else scale.detach().float().reshape(())
    return _wrap(data, layout, scale=scale, orig_dtype=dtype, orig_shape=tuple(data.shape))


def int8_tensor(data: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> QuantizedTensor:
    """`data` int8 [out, in] times `scale`, one number or one a row ([out] or [out, 1]).

    dtype: the logical type, in which it is multiplied.

    Raises UserError where this ComfyUI has no such type.
    """
    _require(INT8_LAYOUT)
    # [] and [out, 1] are the shapes that ComfyUI's own quantisation gives the scales. A patched weight that ComfyUI
    # requantises is copied over this one, scales included; whether it gets one scale or one a row follows from the
    # shape (comfy_kitchen.tensor.int8.TensorWiseINT8Layout.requantize_kwargs).
    scale = scale.detach().float().reshape(() if scale.numel() == 1 else (data.shape[0], 1))
    return _wrap(data, INT8_LAYOUT, scale=scale, orig_dtype=dtype, orig_shape=tuple(data.shape))


def block_tensor(
    blocks: torch.Tensor, block_format: BlockFormat, shape: tuple[int, ...], dtype: torch.dtype
) -> QuantizedTensor:
    """A matrix of `shape` from GGUF blocks, uint8 [rows, bytes per row].

    dtype: the logical type, in which it is multiplied.

    Raises UserError where the blocks do not fill the shape, or this ComfyUI has no quantised tensors.
    """
    _require(GGUF_LAYOUT)
    if len(shape) != 2 or tuple(blocks.shape) != (shape[0], block_format.row_bytes(shape[1])):
        raise UserError(
            f"Blocks of type {block_format.name} with {list(blocks.shape)} bytes do not make a matrix {list(shape)}. "
            "The file is damaged: download it again."
        )
    return _wrap(blocks, GGUF_LAYOUT, orig_dtype=dtype, orig_shape=tuple(shape), block_format=block_format)


def quantize(weight: torch.Tensor, mode: str, dtype: torch.dtype) -> QuantizedTensor:
    """A matrix [out, in] in `mode` ("fp8_e4m3fn": one scale; "int8": one scale a row), rounded to nearest.

    dtype: the logical type of the result.

    Raises UserError where the matrix contains NaN or Inf, or this ComfyUI lacks the type.
    """
    weight = dequantized(weight, torch.float32)
    if mode == "int8":
        _require(INT8_LAYOUT)
        quantized = QuantizedTensor.from_float(weight, INT8_LAYOUT, is_weight=True, per_channel=True)
    else:
        layout = FP8_LAYOUTS[torch.float8_e4m3fn]
        _require(layout)
        quantized = QuantizedTensor.from_float(weight, layout, scale=fp8_scale(weight, torch.float8_e4m3fn))
    # A scale comes from the largest weight that it covers, so that one NaN or Inf among them shows in it. In the codes
    # of int8 a NaN would become an ordinary number.
    if not torch.isfinite(quantized._params.scale).all():
        raise UserError(
            f"A weight of shape {list(weight.shape)} contains NaN or Inf. The file is damaged: download it again."
        )
    return with_logical_dtype(quantized, dtype)


def requantize(old: QuantizedTensor, weight: torch.Tensor, seed: int | None = None) -> QuantizedTensor:
    """`weight` in the layout and logical type of `old`, with new scales, rounded stochastically where a seed is given.

    weight: plain, of the shape of `old`.
    """
    # A seed of 0 stands for rounding to nearest.
    if old._layout_cls == INT8_LAYOUT:
        new = old.requantize_from_float(weight, scale="recalculate", stochastic_rounding=seed or 0)
    else:
        scale = fp8_scale(weight, old._qdata.dtype)
        new = QuantizedTensor.from_float(weight, old._layout_cls, scale=scale, stochastic_rounding=seed or 0)
    return with_logical_dtype(new, old.dtype)


def fp8_scale(weight: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    """The smallest power of two that brings `weight` into the range of `storage`.

    The usual scale, the largest weight over the largest number of `storage`, is a fraction of many bits. comfy-kitchen
    unpacks fp8 into bf16 with the scale rounded to bf16 (dequantize_per_tensor_fp8): every weight of the matrix would
    be off by up to 0.4 %. A power of two is exact in every type that the matrix may be multiplied in, and the codes
    lose no precision by it, since fp8 is itself a floating point format.
    """
    largest = weight.abs().amax().float()
    scale = torch.exp2(torch.ceil(torch.log2(largest / torch.finfo(storage).max)))
    # A matrix of zeros has no scale of its own. The lower bound is the smallest scale whose inverse, by which weights
    # are multiplied, fp16 can hold: 2^15; the next power of two is beyond its largest number, 65504.
    return torch.where(largest == 0, torch.ones_like(scale), scale.clamp(min=2.0**-15))


def with_logical_dtype(tensor: QuantizedTensor, dtype: torch.dtype) -> QuantizedTensor:
    """`tensor` with another logical type, on the same codes.

    QuantizedTensor.to would copy the codes, and so read into memory those that are still mapped from a file.
    """
    params = dataclasses.replace(tensor._params, orig_dtype=dtype)
    return QuantizedTensor(tensor._qdata, tensor._layout_cls, params)


def dequantized(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` as a plain tensor of `dtype`. A quantised one is unpacked in fp32 and then cast, so that the product of
    code and scale is rounded once."""
    if not is_quantized(tensor):
        return tensor.to(dtype)
    return with_logical_dtype(tensor, torch.float32).dequantize().to(dtype)


def quantized_state_dict(tensor: QuantizedTensor, prefix: str) -> dict[str, torch.Tensor]:
    """A weight in fp8 or int8 as ComfyUI's files hold it: the codes, their scales, and the name of the format.

    prefix: of the layer, with its dot.
    """
    # ComfyUI's comfy/ops.py writes and reads `comfy_quant` as the bytes of a JSON object.
    note = {"format": FORMATS[tensor._layout_cls]}
    if getattr(tensor._params, "convrot", False):
        note |= {"convrot": True, "convrot_groupsize": tensor._params.convrot_groupsize}
    codes = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    return {**tensor.state_dict(f"{prefix}weight"), f"{prefix}comfy_quant": codes}


def with_patches(
    tensor: QuantizedTensor, key: str, patches: Sequence[tuple], device: torch.device | None
) -> torch.Tensor:
    """A GGUF tensor on the same blocks that applies `patches` whenever it is unpacked.

    patches: a ModelPatcher's, of the weight `key`. The patched weight cannot be packed again: this pack only unpacks
    GGUF's block formats.
    """
    params = dataclasses.replace(tensor._params, key=key, patches=_moved(tuple(patches), device))
    return QuantizedTensor(tensor._qdata, GGUF_LAYOUT, params).to(device=device or tensor.device)


def _wrap(data: torch.Tensor, layout: str, **params: Any) -> QuantizedTensor:
    layout_class: Any = comfy.quant_ops.get_layout_class(layout)
    return QuantizedTensor(data, layout, layout_class.Params(**params))


def has_int8() -> bool:
    """Whether this ComfyUI has a type for int8 weights."""
    return _AVAILABLE and INT8_LAYOUT in FORMATS


def require_mode(mode: str) -> None:
    """Raises UserError where this ComfyUI lacks the type of `mode`, one of QUANTIZED_MODES."""
    _require(INT8_LAYOUT if mode == "int8" else FP8_LAYOUTS[torch.float8_e4m3fn])


def _require(layout: str) -> None:
    if _AVAILABLE and (layout in FORMATS or layout == GGUF_LAYOUT):
        return
    what = {GGUF_LAYOUT: "GGUF", INT8_LAYOUT: "int8"}.get(layout, "fp8")
    other = "fp16 or bf16"
    if not _AVAILABLE:
        lack = "its package comfy-kitchen is not installed"
    elif layout == INT8_LAYOUT:
        lack = f"this version of ComfyUI, {comfyui_version()}, has no such type; {_INT8_SINCE} has it"
        other = f"fp8_e4m3fn, {other}"
    else:
        lack = f"this version of ComfyUI, {comfyui_version()}, has no such type"
    raise UserError(
        f"Weights in {what} cannot be used: {lack}. Update ComfyUI and its requirements, or use {other} instead."
    )


def _moved(value: Any, device: torch.device | None) -> Any:
    """A patch, or whatever it consists of, with its tensors on `device`: they are copied once and not at every step."""
    if device is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device=device)
    if isinstance(value, WeightAdapterBase):
        adapter: Any = type(value)  # ComfyUI's subclasses share a signature that their base lacks
        return adapter(value.loaded_keys, _moved(value.weights, device))
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(item, device) for item in value)
    return value


if _AVAILABLE:

    @dataclass(frozen=True)
    class GGUFParams:
        """What turns blocks into a matrix.

        orig_dtype, orig_shape: the logical type and shape. key, patches: see with_patches. QuantizedTensor uses the
        first two and the methods by the names that they have in comfy_kitchen.tensor.base.BaseLayoutParams. That class
        is no base of this one because it demands a `scale`; the scales of GGUF are inside the blocks.
        """

        orig_dtype: torch.dtype
        orig_shape: tuple[int, ...]
        block_format: BlockFormat
        key: str = ""
        patches: tuple[tuple, ...] = ()

        def to_device(self, device: torch.device) -> "GGUFParams":
            return dataclasses.replace(self, patches=_moved(self.patches, device))

        def clone(self) -> "GGUFParams":
            return self

        def copy_from(self, source: "GGUFParams", non_blocking: bool = False) -> None:
            # In place although the class is frozen, as in BaseLayoutParams.
            for field in dataclasses.fields(self):
                object.__setattr__(self, field.name, getattr(source, field.name))

    class GGUFLayout(comfy.quant_ops.QuantizedLayout):
        """Blocks of a GGUF file, unpacked whenever a layer is used."""

        Params = GGUFParams

        @classmethod
        def quantize(cls, tensor: torch.Tensor, **_: Any) -> tuple:
            raise NotImplementedError("There is no quantisation into GGUF blocks.")

        @classmethod
        def dequantize(cls, qdata: torch.Tensor, params: GGUFParams) -> torch.Tensor:
            weight = params.block_format.unpack_rows(qdata).to(params.orig_dtype)
            if not params.patches:
                return weight
            # ComfyUI patches a weight that it streams to the device in the same way (comfy.model_patcher.LowVramPatch).
            return comfy.lora.calculate_weight(
                list(params.patches), weight, params.key, intermediate_dtype=weight.dtype
            )

        @classmethod
        def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor]:
            return (qtensor._qdata,)

        @classmethod
        def state_dict_tensors(cls, qdata: torch.Tensor, params: GGUFParams) -> dict[str, torch.Tensor]:
            """The unpacked weight: safetensors files have no format for these blocks."""
            return {"": cls.dequantize(qdata, params)}

    register_layout(GGUF_LAYOUT, GGUFLayout)
