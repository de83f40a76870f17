"""A LoRA fresh from a trainer, as LORA_MODEL holds it, in diffusers' layout."""

from collections.abc import Mapping

import torch

from ...errors import UserError
from .names import ALPHA, DOWN, OWN_PREFIX, UP, split_key
from .save import diffusers_lora

_PREFIXES = (OWN_PREFIX, "transformer.")  # of ComfyUI's trainer and of the pack's
_DIFFERENCES = ("diff", "diff_b")  # of norms and biases, which ComfyUI's trainer trains as well


def convert_trained(lora: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str], int]:
    """The tensors and the header of a file in diffusers' layout, and how many of its tensors diffusers cannot read.

    lora: of ComfyUI's Train LoRA or of the pack's. alpha / rank is multiplied into B where it is not 1. What is no
    LoRA layer, whole differences of norms and biases, has no place in diffusers' layout and keeps ComfyUI's name.

    Raises UserError for a LoRA of another kind, a half layer, or values that are no numbers.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in lora.items():
        layer, part = split_key(key) or (key, "")
        if part not in (DOWN, UP, ALPHA, *_DIFFERENCES):
            raise UserError(
                f"{key} belongs to no plain LoRA, the one kind that diffusers' layout has. Train with algorithm LoRA, "
                "or save this one with ComfyUI's Save LoRA Weights."
            )
        layers.setdefault(_plain(layer), {})[part] = tensor
    pairs, others = {}, {}
    for layer, parts in layers.items():
        if DOWN in parts or UP in parts:
            pairs[layer] = _pair(layer, parts)
        others |= {f"{OWN_PREFIX}{layer}.{part}": parts[part] for part in _DIFFERENCES if part in parts}
    if not pairs:
        raise UserError("There is no LoRA layer in what was trained: there is nothing to save.")
    tensors, header = diffusers_lora(pairs)
    tensors |= {key: tensor.detach().cpu().contiguous() for key, tensor in others.items()}
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{broken[0]} holds NaN or infinity: the training has diverged. Train again with a lower learning rate."
        )
    return tensors, header, len(others)


def _plain(layer: str) -> str:
    for prefix in _PREFIXES:
        layer = layer.removeprefix(prefix)
    return layer


def _pair(layer: str, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank], whose product is the whole change."""
    if DOWN not in parts or UP not in parts:
        raise UserError(f"{layer} of the LoRA lacks one of its halves. Train it again.")
    a, b = (parts[part].detach().cpu() for part in (DOWN, UP))
    scale = float(parts[ALPHA]) / a.shape[0] if ALPHA in parts else 1.0
    if scale != 1.0:
        b = (b.float() * scale).to(torch.float32)
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype).contiguous(), b.to(dtype).contiguous()
