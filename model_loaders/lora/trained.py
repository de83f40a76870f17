"""Convert a trained LoRA, as the socket LORA_MODEL has it, to diffusers' layout."""

from collections.abc import Mapping

import torch

from ...errors import UserError
from .export import diffusers_lora
from .names import ALPHA, DOWN, OWN_PREFIX, UP, split_key

_PREFIXES = (OWN_PREFIX, "transformer.")  # of ComfyUI's trainer, and of the pack's
_DIFFERENCES = ("diff", "diff_b")  # parts of norms and biases, which ComfyUI's trainer trains too


def convert_trained(lora: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str], int]:
    """(tensors, header, number of tensors that diffusers cannot read) of a file in diffusers' layout.

    lora: from ComfyUI's Train LoRA or from the pack's. alpha / rank is multiplied into B where it is not 1. Differences
    of norms and biases are not LoRA layers; diffusers' layout has no names for them, and they keep ComfyUI's.

    Raises UserError for a LoRA of another kind, an incomplete layer, or tensors that contain NaN or Inf.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in lora.items():
        layer, part = split_key(key) or (key, "")
        if part not in (DOWN, UP, ALPHA, *_DIFFERENCES):
            raise UserError(
                f"{key} does not belong to a plain LoRA, the only kind that diffusers' layout supports. Train with the "
                "algorithm LoRA, or save this one with ComfyUI's Save LoRA Weights."
            )
        layers.setdefault(_without_prefix(layer), {})[part] = tensor
    pairs, others = {}, {}
    for layer, parts in layers.items():
        if DOWN in parts or UP in parts:
            pairs[layer] = _pair(layer, parts)
        others |= {f"{OWN_PREFIX}{layer}.{part}": parts[part] for part in _DIFFERENCES if part in parts}
    if not pairs:
        raise UserError("The training result contains no LoRA layer: there is nothing to save.")
    tensors, header = diffusers_lora(pairs)
    tensors |= {key: tensor.detach().cpu().contiguous() for key, tensor in others.items()}
    not_finite = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if not_finite:
        raise UserError(
            f"{not_finite[0]} contains NaN or Inf: the training has diverged. Train again with a lower learning rate."
        )
    return tensors, header, len(others)


def _without_prefix(layer: str) -> str:
    # Neither prefix matches "transformer_blocks.", with which most of diffusers' layers begin.
    for prefix in _PREFIXES:
        layer = layer.removeprefix(prefix)
    return layer


def _pair(layer: str, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank]; B @ A is the complete weight delta."""
    if DOWN not in parts or UP not in parts:
        raise UserError(f"{layer} of the LoRA lacks one of its two factors. Train it again.")
    a, b = (parts[part].detach().cpu() for part in (DOWN, UP))
    scale = float(parts[ALPHA]) / a.shape[0] if ALPHA in parts else 1.0
    # diffusers' layout has no alpha tensors. Multiplied in fp32 and kept so, since B in 16 bits would be rounded again.
    if scale != 1.0:
        b = (b.float() * scale).to(torch.float32)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype).contiguous(), b.to(dtype).contiguous()
