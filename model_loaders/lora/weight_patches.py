"""From the tensors of a LoRA to the patches of ComfyUI's ModelPatcher."""

from collections.abc import Callable, Mapping
from typing import Any

import comfy.lora
import comfy.model_management as mm
import torch
from comfy.weight_adapter import LoRAAdapter

from ...host.compat import throw_if_interrupted
from ..files.plain_numbers import alpha_of_all, as_tensor
from .names import ALPHA, DOWN, MAGNITUDE, OWN_PREFIX, UP, UP_BIAS, sort_keys
from .other_models import require_this_model


class MagnitudeAdapter(LoRAAdapter):
    """peft's DoRA: every row of W + scale * up @ down is scaled to a learned norm (Liu et al. 2024, eq. 5).

    The norms take the place of `dora_scale` among the adapter's weights. ComfyUI's own adapter would divide by the norm
    of W alone. `strength` interpolates linearly between W and the result, as with ComfyUI's other patches.
    """

    name = "dora"

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Callable[[torch.Tensor], torch.Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        """weight [out, in] or [out, in, h, w], changed in place and returned, as comfy.lora.calculate_weight needs."""
        # The order of LoRAAdapter's weights (comfy/weight_adapter/lora.py): up, down, alpha, mid, dora_scale, reshape.
        up, down, magnitude = (mm.cast_to_device(self.weights[i], weight.device, intermediate_dtype) for i in (0, 1, 4))
        scale = 1.0 if self.weights[2] is None else self.weights[2] / down.shape[0]
        merged = weight + (up.flatten(1) @ down.flatten(1) * scale).reshape(weight.shape).to(weight.dtype)
        # The norm of each row, one for each output, as in peft (tuners/lora/dora.py, get_weight_norm).
        factor = magnitude.flatten() / torch.linalg.norm(merged.flatten(1), dim=1)
        merged *= factor.reshape(-1, *[1] * (weight.ndim - 1)).to(weight.dtype)
        return weight.copy_(merged) if strength == 1.0 else weight.lerp_(merged, strength)


def load_patches(
    lora: Mapping[str, torch.Tensor],
    key_map: Mapping[str, str],
    load_lora: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = comfy.lora.load_lora,
) -> dict[str, Any]:
    """Weight of the MODEL -> patch, for a LoRA of any dialect.

    key_map: all dialects' names of the model's layers (names.weights_by_alias); other entries, of a text encoder, are
    left to ComfyUI. load_lora: ComfyUI's own function, which makes all patches except those of peft's DoRA.
    """
    alpha = alpha_of_all(lora)
    lora = {key: value if (tensor := as_tensor(key, value)) is None else tensor for key, value in lora.items()}
    # Keys that fit no layer go along, so that ComfyUI loads those of a text encoder and names the others in its log.
    found = sort_keys(lora, key_map)
    require_this_model(found, key_map)
    tensors = {key: lora[key] for key in (*found.unmatched, *(k for keys in found.skipped.values() for k in keys))}
    magnitudes = {}
    for layer, keys in found.layers.items():
        throw_if_interrupted()
        parts = {part: lora[key] for part, key in keys.items()}
        if alpha is not None:
            parts.setdefault(ALPHA, torch.tensor(alpha, dtype=torch.float64))
        # peft's lora_bias: a bias of B, scaled as the product is. ComfyUI adds it to the layer's bias as a difference.
        if (bias := parts.pop(UP_BIAS, None)) is not None:
            parts["diff_b"] = bias * _scale(parts)
        if (magnitude := parts.pop(MAGNITUDE, None)) is not None:
            magnitudes[layer + ".weight"] = magnitude
        tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
    # The layers have been found: one name for each is enough, instead of the dozens in key_map.
    others = {name: weight for name, weight in key_map.items() if not _is_own_weight(weight)}
    patches = load_lora(tensors, others | {layer: layer + ".weight" for layer in found.layers})
    for weight, magnitude in magnitudes.items():
        plain = patches[weight]
        patches[weight] = MagnitudeAdapter(plain.loaded_keys, (*plain.weights[:4], magnitude, plain.weights[5]))
    return patches


def _scale(parts: Mapping[str, torch.Tensor]) -> float:
    return parts[ALPHA].item() / parts[DOWN].shape[0] if ALPHA in parts and UP in parts else 1.0


def _is_own_weight(weight: Any) -> bool:
    return isinstance(weight, str) and weight.startswith(OWN_PREFIX) and weight.endswith(".weight")
