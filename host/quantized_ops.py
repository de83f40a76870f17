"""ComfyUI operations whose Linear may hold a quantised weight."""

import comfy.float
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor

from .quantized import FORMATS, FP8_LAYOUTS, INT8_LAYOUT, is_gguf, is_quantized, quantized_state_dict, requantize

_FP8_INPUT = FP8_LAYOUTS[torch.float8_e4m3fn]


class QuantizedLinear(comfy.ops.manual_cast.Linear):
    """A Linear whose weight is a QuantizedTensor, unpacked whenever it is used; a plain weight works as ever.

    Made for adopt_ops: it needs nothing that an __init__ would set.
    """

    # multiply in fp8 or int8 instead of unpacking
    multiplies_quantized = False

    def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
        if not is_quantized(self.weight):
            return super().forward_comfy_cast_weights(input)
        if self._can_multiply_quantized():
            return self._multiply_quantized(input)
        weight, bias, offload_stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
        if is_quantized(weight):
            weight = weight.dequantize()
        output = torch.nn.functional.linear(input, weight, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, offload_stream)
        return output

    def _can_multiply_quantized(self) -> bool:
        """Not with patches that are applied on the fly, nor where ComfyUI asks for full precision."""
        return (
            self.multiplies_quantized
            and not is_gguf(self.weight)
            and not self.weight_function
            and not self.bias_function
            and not getattr(self, "comfy_force_cast_weights", False)
        )

    def _multiply_quantized(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias, offload_stream = comfy.ops.cast_bias_weight(
            self,
            dtype=self.weight.dtype,
            device=input.device,
            bias_dtype=input.dtype,
            offloadable=True,
            compute_dtype=input.dtype,
            want_requant=True,
        )
        rows = input.reshape(-1, input.shape[-1])
        if not is_quantized(weight):
            weight = weight.to(input.dtype)
        elif weight._layout_cls != INT8_LAYOUT:  # int8 scales its input itself, a row each
            rows = QuantizedTensor.from_float(rows, _FP8_INPUT, scale="recalculate")
        output = torch.nn.functional.linear(rows, weight, bias).reshape(*input.shape[:-1], self.weight.shape[0])
        comfy.ops.uncast_bias_weight(self, weight, bias, offload_stream)
        return output

    def convert_weight(self, weight: torch.Tensor, inplace: bool = False, **_: object) -> torch.Tensor:
        """What ComfyUI patches: the plain numbers."""
        return weight.dequantize() if is_quantized(weight) else weight

    def set_weight(
        self,
        weight: torch.Tensor,
        inplace_update: bool = False,
        seed: int | None = None,
        return_weight: bool = False,
        **_: object,
    ) -> torch.Tensor | None:
        """Take over a patched weight, packed again as the old one was.

        What ComfyUI asks to write in place (LoRA hooks) stays plain, as do GGUF blocks, which cannot be packed again.
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

    def _apply(self, function: callable, recurse: bool = True) -> torch.nn.Module:
        """Move or cast; torch would put the new numbers into the old wrapper."""
        weight = self.weight
        if not is_quantized(weight):
            return super()._apply(function, recurse)
        applied = function(weight)
        self.weight = None
        super()._apply(function, recurse)
        if applied.is_inference() and not torch.is_inference_mode_enabled():
            applied = applied.clone()
        self.weight = weight if applied is weight else torch.nn.Parameter(applied, requires_grad=False)
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """ComfyUI's own layout of quantised weights, which its loaders read; GGUF blocks as they are."""
        if not is_quantized(self.weight):
            return super()._save_to_state_dict(destination, prefix, keep_vars)
        # weights are no part of a graph, and one loaded outside inference_mode cannot be detached within it
        super()._save_to_state_dict(destination, prefix, keep_vars=True)
        if self.weight._layout_cls in FORMATS:
            destination.update(quantized_state_dict(self.weight, prefix))
        return None

    @property
    def weight_scale(self) -> torch.Tensor:
        """ComfyUI looks every name of a state dict up in the module (merges, hooks)."""
        return self._in_state_dict("weight_scale")

    @property
    def comfy_quant(self) -> torch.Tensor:
        return self._in_state_dict("comfy_quant")

    def _in_state_dict(self, name: str) -> torch.Tensor:
        saved = self.state_dict()
        if name not in saved:
            raise AttributeError(name)
        return saved[name]

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes a QuantizedTensor as it is; torch would unpack it into the old weight."""
        key = f"{prefix}weight"
        weight, old = state_dict.get(key), self.weight
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if not is_quantized(weight):
            return super()._load_from_state_dict(state_dict, prefix, *rest)
        if weight.shape != old.shape:
            error_msgs.append(f"{key} has shape {list(weight.shape)}, the model {list(old.shape)}")
            return None
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
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
