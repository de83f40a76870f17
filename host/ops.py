"""Hand a diffusers module over to ComfyUI's memory management by giving every leaf ComfyUI's operations."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
import torch.nn as nn

from .cpu_products import OneDnnLinear
from .quantized import is_quantized
from .quantized_ops import QuantizedLinear

_ADOPTED = ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "Embedding")
_PLAIN_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_adopted_subclasses: dict[tuple[type, type], type] = {}


def adopt_ops(module: nn.Module, operations: type) -> int:
    """Give every torch.nn leaf of `module`, subclasses included, its class in `operations`, in place.

    operations: a namespace of layers such as comfy.ops.manual_cast.

    ComfyUI streams, casts and patches only modules of its own classes. A leaf of another class has to be on the device
    all the time, and under dynamic VRAM it silently loses its LoRA patches. Only the class is exchanged: parameters,
    names and hooks stay as they are, which a new module would have to be given one by one.

    Returns the number of leaves changed.
    """
    changed = 0
    leaf: Any
    for leaf in module.modules():
        cls = type(leaf)
        # ComfyUI's own class already, from an earlier call or because the module was built with it.
        if issubclass(cls, comfy.ops.CastWeightBiasOp):
            continue
        name = next((n for n in _ADOPTED if issubclass(cls, getattr(nn, n))), None)
        if name is None:
            continue
        leaf.__class__ = _adopted_class(cls, getattr(nn, name), getattr(operations, name))
        if name == "Linear":
            # ComfyUI's Linear.__init__, which has not run here, notes this for its _lazy_load_from_state_dict: under
            # dynamic VRAM a layer has no bias until a state dict brings one.
            leaf.comfy_need_lazy_init_bias = leaf.bias is not None
        changed += 1
    return changed


def _adopted_class(cls: type, torch_class: type, operation: type) -> type:
    if cls is torch_class:
        return operation
    # A subclass has a forward of its own, such as diffusers' CogVideoXSafeConv3d. It comes first among the bases, so
    # that this forward stays and its super() finds ComfyUI's class where it found torch's.
    key = (cls, operation)
    if key not in _adopted_subclasses:
        _adopted_subclasses[key] = type(cls.__name__, (cls, operation), {})
    return _adopted_subclasses[key]


def is_hooked(*modules: Any) -> bool:
    """Whether something else than a module's class decides what calling it does."""
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)


def is_product(layer: Any) -> bool:
    """Whether calling an adopted Linear multiplies by the weight, unpacked where it is quantised, and adds the bias:
    not where it quantises its input as well, with a scale that depends on all of the input, nor as is_plain_layer."""
    if isinstance(layer, QuantizedLinear):
        return not layer.multiplies_quantized and not is_hooked(layer)
    return is_plain_layer(layer)


def is_plain_layer(layer: Any) -> bool:
    """Whether calling an adopted Linear or LayerNorm computes what torch's own does, with weights_on's weights.

    It does not where the weights are quantised, or where ComfyUI or another node has put hooks or another forward on
    this one layer, as a LoRA in bypass mode does.
    """
    if is_hooked(layer):
        return False
    stock = comfy.ops.disable_weight_init
    plain: tuple[Any, ...] = stock.Linear, stock.LayerNorm, OneDnnLinear
    methods = "forward", "forward_comfy_cast_weights"
    return any(all(getattr(type(layer), name) is getattr(of, name) for name in methods) for of in plain) and (
        layer.weight is None or layer.weight.dtype in _PLAIN_TYPES
    )


@contextmanager
def weights_on(
    module: nn.Module, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of an adopted leaf, patched and cast to `dtype`, on `device` while the context lasts."""
    weight, bias, stream = _cast(module, device, dtype)
    try:
        yield weight, bias
    finally:
        # ComfyUI's offload stream may overwrite the buffer of these weights from here on.
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)


@contextmanager
def weights_held(
    layers: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor | None]]]:
    """weights_on of several layers that are each is_product, together and unpacked.

    A layer that ComfyUI streams would be copied to the device again by each call. Its weights pass through a buffer
    that the next layers, whoever calls them, are streamed through as well: what lies there is copied.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_weight_held(layer, device, dtype)) for layer in layers]


@contextmanager
def _weight_held(
    module: nn.Module, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    weight, bias, stream = _cast(module, device, dtype)
    held = None
    try:
        unpacked = weight.dequantize() if is_quantized(weight) else weight
        if stream[0] is None:  # on the device, or copied to memory of its own
            yield unpacked, bias
        else:
            held = unpacked.clone() if unpacked is weight else unpacked, None if bias is None else bias.clone()
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, stream)
    if held is not None:
        del weight, unpacked, bias  # what patches have made of them is in memory of its own
        yield held


def _cast(module: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Weight, bias, and ComfyUI's stream, which comfy.ops.uncast_bias_weight takes back."""
    return comfy.ops.cast_bias_weight(module, dtype=dtype, device=device, bias_dtype=dtype, offloadable=True)
