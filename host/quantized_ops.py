"""ComfyUI operations whose Linear may hold a quantised weight."""

from collections.abc import Callable
from typing import Any

import comfy.float
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor

from .cpu_products import OneDnnLinear, linear
from .quantized import FORMATS, FP8_LAYOUTS, INT8_LAYOUT, is_gguf, is_quantized, quantized_state_dict, requantize

_FP8_INPUT = FP8_LAYOUTS[torch.float8_e4m3fn]


class QuantizedLinear(OneDnnLinear):
    """A Linear whose weight is a QuantizedTensor, unpacked whenever it is used; a plain weight works as usual.

    ComfyUI's own Linear for quantised weights (comfy.ops.mixed_precision_ops) cannot be used: it sets attributes in its
    __init__ and when it loads a state dict, whereas host.ops.adopt_ops gives a class to layers that exist already. This
    one reads everything off the weight.
    """

    weight: Any  # a Parameter of any kind; None while _apply replaces it
    multiplies_quantized = False  # whether to multiply in fp8 or int8 instead of unpacking

    @property
    def layout_type(self) -> str:
        """The name of the weight's layout. ComfyUI before 0.30 reads it where it packs a weight again that it has
        streamed to the device and patched (comfy.ops)."""
        if not is_quantized(self.weight):
            raise AttributeError("layout_type")  # as of a Linear that has no such attribute
        return self.weight._layout_cls

    def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
        if not is_quantized(self.weight):
            return super().forward_comfy_cast_weights(input)
        if self._can_multiply_quantized():
            return self._multiply_quantized(input)
        weight, bias, offload_stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
        # cast_bias_weight unpacks it only where it casts to another dtype or applies patches.
        if is_quantized(weight):
            weight = weight.dequantize()
        output = linear(input, weight, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, offload_stream)
        return output

    def _can_multiply_quantized(self) -> bool:
        """Patches that are applied on the fly need the unpacked weight, and so does ComfyUI where it asks for full
        precision."""
        return (
            self.multiplies_quantized
            and not is_gguf(self.weight)
            and not self.weight_function
            and not self.bias_function
            and not getattr(self, "comfy_force_cast_weights", False)
        )

    def _multiply_quantized(self, input: torch.Tensor) -> torch.Tensor:
        # With the weight's own logical dtype cast_bias_weight has nothing to cast and leaves it packed. Under dynamic
        # VRAM it applies LoRAs here: in the compute dtype, and with want_requant the result is packed again.
        weight, bias, offload_stream = comfy.ops.cast_bias_weight(
            self,
            dtype=self.weight.dtype,
            device=input.device,
            bias_dtype=input.dtype,
            offloadable=True,
            compute_dtype=input.dtype,
            want_requant=True,
        )
        # The products in fp8 and int8 take matrices only: [B, N, in] -> [B * N, in].
        rows = input.reshape(-1, input.shape[-1])
        if not is_quantized(weight):
            weight = weight.to(input.dtype)
        elif weight._layout_cls != INT8_LAYOUT:  # ComfyUI's int8 product quantises its input itself, row by row
            rows = QuantizedTensor.from_float(rows, _FP8_INPUT, scale="recalculate")
        output = torch.nn.functional.linear(rows, weight, bias).reshape(*input.shape[:-1], self.weight.shape[0])
        comfy.ops.uncast_bias_weight(self, weight, bias, offload_stream)
        return output

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **_: Any) -> torch.Tensor:
        """The plain weight, which ComfyUI adds patches to. Its ModelPatcher looks for convert_weight and set_weight in
        every layer, by these names (comfy.model_patcher.get_key_weight)."""
        return weight.dequantize() if is_quantized(weight) else weight

    def set_weight(
        self,
        weight: torch.Tensor,
        inplace_update: bool = False,
        seed: int | None = None,
        return_weight: bool = False,
        **_: Any,
    ) -> torch.Tensor | None:
        """Replace the weight by a patched one, quantised as the old one was.

        ComfyUI asks for an update in place where hooks exchange the weight during a run. Quantising it each time would
        take time and add up errors, so that the weight stays plain until the hook is gone. A GGUF weight stays plain as
        well, since there is no quantisation into its blocks.
        """
        old = self.weight
        if is_quantized(old) and not is_gguf(old) and not inplace_update:
            weight = requantize(old, weight, seed)
        else:
            weight = comfy.float.stochastic_rounding(weight, old.dtype, seed=seed or 0)
        if return_weight:
            return weight
        if inplace_update and not is_quantized(old):
            old.data.copy_(weight)
        else:
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
        return None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> torch.nn.Module:
        """Move or cast. torch would assign the result to `data` of the old tensor, whose codes and scales would stay
        where and what they were."""
        weight = self.weight
        if not is_quantized(weight):
            return super()._apply(fn, recurse)
        applied = fn(weight)
        # Without a weight torch's method only takes the bias along.
        self.weight = None
        super()._apply(fn, recurse)
        # A Parameter of a tensor that was made in inference mode could not be used where gradients are computed.
        if applied.is_inference() and not torch.is_inference_mode_enabled():
            applied = applied.clone()
        self.weight = weight if applied is weight else torch.nn.Parameter(applied, requires_grad=False)
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """As ComfyUI's loaders read quantised weights: codes, scales and format. GGUF blocks are left as they are."""
        if not is_quantized(self.weight):
            return super()._save_to_state_dict(destination, prefix, keep_vars)
        # keep_vars=True leaves out detach(), which fails within inference mode on a quantised weight that was loaded
        # outside of it. There is no gradient to detach from.
        super()._save_to_state_dict(destination, prefix, keep_vars=True)
        if self.weight._layout_cls in FORMATS:
            destination.update(quantized_state_dict(self.weight, prefix))
        return None

    @property
    def weight_scale(self) -> torch.Tensor:
        """ComfyUI's merges and hooks look up every name of the model's state dict as an attribute of the module."""
        return self._in_state_dict("weight_scale")

    @property
    def comfy_quant(self) -> torch.Tensor:
        """As weight_scale."""
        return self._in_state_dict("comfy_quant")

    def _in_state_dict(self, name: str) -> torch.Tensor:
        saved = self.state_dict()
        if name not in saved:
            raise AttributeError(name)
        return saved[name]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Assigns a QuantizedTensor; torch would copy it, unpacked, into the old weight and so use the memory that
        quantisation saves."""
        key = f"{prefix}weight"
        weight, old = state_dict.get(key), self.weight
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if not is_quantized(weight):
            return super()._load_from_state_dict(state_dict, prefix, *rest)
        if weight.shape != old.shape:
            error_msgs.append(f"{key} has shape {list(weight.shape)}, the model {list(old.shape)}")
            return None
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        # torch's method loads the bias, and reports the weight, which it is not given, as missing.
        others = {name: value for name, value in state_dict.items() if name.startswith(prefix) and name != key}
        super()._load_from_state_dict(others, prefix, *rest)
        if key in missing_keys:
            missing_keys.remove(key)
        return None


class QuantizedOps(comfy.ops.manual_cast):
    """ComfyUI's casting operations with a Linear for quantised weights."""

    class Linear(QuantizedLinear):
        pass


class FastQuantizedOps(QuantizedOps):
    """The same, multiplying in fp8 and int8 with inputs that are quantised on the way."""

    class Linear(QuantizedLinear):
        multiplies_quantized = True
