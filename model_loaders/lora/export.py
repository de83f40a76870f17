"""Save the LoRA patches of a MODEL as one LoRA in diffusers' layout."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_patcher
import torch
from comfy.weight_adapter import LoRAAdapter

from ...errors import UserError
from ...host.compat import throw_if_interrupted
from ...sockets.model import require_cogvideox_model
from .layers import HEADER_KEY
from .names import OWN_PREFIX

SAVE_DTYPES = {"default": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_COMPONENT = "transformer."  # diffusers' prefix of the transformer's layers


def merge_loras(
    model: comfy.model_patcher.ModelPatcher,
    rank: int = 0,
    dtype: str = "default",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer ("transformer_blocks.0.attn1.to_q") -> (A [rank, in], B [out, rank]) of all LoRA patches of `model`.

    B @ A is the complete weight delta: strengths and scales are multiplied into B, and several LoRAs become one of
    their summed rank. rank: the largest rank to keep, by singular values; 0 keeps all. dtype: one of SAVE_DTYPES;
    "default" is the LoRA's own dtype where nothing had to be computed, fp32 otherwise. progress(done, total) is called
    after each layer.

    Raises UserError where there is no LoRA, or a patch is not a plain LoRA.
    """
    require_cogvideox_model(model)
    if dtype not in SAVE_DTYPES or rank < 0:
        raise UserError(
            f"A LoRA cannot be saved with rank {rank} in {dtype!r}. Use a rank of 0 or more and one of "
            f"{', '.join(SAVE_DTYPES)}."
        )
    pairs = {key: _factors(key, patches) for key, patches in model.patches.items()}
    pairs = {key: factors for key, factors in pairs.items() if factors}
    if not pairs:
        raise UserError(
            "The model has no LoRA with a strength other than 0: there is nothing to save.",
            advice="apply a LoRA first",
        )
    parameters = dict(model.model.diffusion_model.named_parameters())
    merged = {}
    for done, (key, factors) in enumerate(pairs.items(), 1):
        throw_if_interrupted()
        shape = parameters[key.removeprefix(OWN_PREFIX)].shape
        layer = key.removeprefix(OWN_PREFIX).removesuffix(".weight")
        merged[layer] = _sum_factors(factors, rank, SAVE_DTYPES[dtype], shape)
        if not all(torch.isfinite(tensor).all() for tensor in merged[layer]):
            raise UserError(f"{layer} of the LoRA has values too large for {dtype}. Choose fp32 or bf16.")
        progress(done, len(pairs))
    return merged


def diffusers_lora(
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the header of a file that diffusers' load_lora_weights reads.

    alpha is the rank of each layer, which makes the scale 1, so that programs that ignore the header apply the same
    weights.
    """
    tensors = {}
    for layer, (a, b) in layers.items():
        tensors[f"{_COMPONENT}{layer}.lora_A.weight"], tensors[f"{_COMPONENT}{layer}.lora_B.weight"] = a, b
    ranks = {layer: a.shape[0] for layer, (a, _) in layers.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # peft has one rank for all layers; those of another rank are listed. It matches the names as regular expressions
    # (utils/other.py, get_pattern_key). Without "^", "proj_out" would match every layer whose name ends in it.
    others = {f"^{layer}": other for layer, other in ranks.items() if other != rank}
    config = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
    }
    header = json.dumps({_COMPONENT + key: value for key, value in config.items()}, sort_keys=True)
    return tensors, {"format": "pt", HEADER_KEY: header}


def _factors(key: str, patches: list[tuple[Any, ...]]) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """(down, up, scale) of every patch of a weight. Raises UserError for a patch that is not a plain LoRA."""
    found = []
    # ModelPatcher's patches. strength_model scales the weight itself, offset selects a part of it, function changes the
    # product: none of these can be written as a LoRA.
    for strength, patch, strength_model, offset, function in patches:
        kind = _other_kind(patch)
        if strength_model != 1.0 or offset is not None or function is not None:
            kind = "part of a model merge"
        if kind:
            raise UserError(
                f"The patch of {key.removeprefix(OWN_PREFIX)} is {kind}, not a plain LoRA, and cannot be saved as one.",
                advice="save only LoRAs",
            )
        up, down, alpha = patch.weights[:3]
        if strength:
            found.append((down, up, strength * (1.0 if alpha is None else alpha / down.shape[0])))
    return found


def _other_kind(patch: Any) -> str | None:
    """What a patch is if it is not a plain LoRA, in words; None for a plain LoRA."""
    if isinstance(patch, LoRAAdapter):
        _, _, _, mid, dora_scale, reshape = patch.weights
        if dora_scale is not None:
            return "DoRA"
        return None if mid is None and reshape is None else "a LoRA with a third factor"
    name = str(getattr(patch, "name", None) or (patch[0] if isinstance(patch, tuple) and len(patch) == 2 else "diff"))
    return {"loha": "LoHa", "lokr": "LoKr"}.get(name, f"a {name!r} patch")


def _sum_factors(
    factors: list[tuple[torch.Tensor, torch.Tensor, float]],
    rank: int,
    dtype: torch.dtype | None,
    shape: torch.Size,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, ...] and B [out, rank, ...] of the sum of all factors, for a weight of `shape`.

    dtype: None takes the dtype of the factors where nothing has to be computed, fp32 otherwise.
    """
    # Factors of several LoRAs are stacked: [B1 B2] @ [A1; A2] = B1 @ A1 + B2 @ A2, exactly, at the sum of their ranks.
    own = {tensor.dtype for down, up, _ in factors for tensor in (down, up)}
    is_plain = len(own) == 1 and own <= set(SAVE_DTYPES.values()) and all(scale == 1.0 for _, _, scale in factors)
    a = torch.cat([down.flatten(1).float() for down, _, _ in factors])
    b = torch.cat([up.flatten(1).float() * scale for _, up, scale in factors], dim=1)
    if 0 < rank < a.shape[0]:
        a, b, is_plain = *_truncated(a, b, rank), False
    dtype = dtype or (own.pop() if is_plain else torch.float32)
    kernel = shape[2:]  # of a convolution: [out, in, h, w]
    a, b = a.reshape(-1, *shape[1:]), b.reshape(*b.shape, *[1] * len(kernel))
    # Cloned, because the result must not share memory with the LoRA that is applied to the model.
    return a.to(dtype).contiguous().clone(), b.to(dtype).contiguous().clone()


def _truncated(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of b @ a with this rank (Eckart and Young 1936), without computing the product."""
    # b = Q1 R1 and a^T = Q2 R2, so that b a = Q1 (R1 R2^T) Q2^T: only the small matrix in the middle is decomposed. The
    # roots of the singular values go into both factors, which keeps them of similar size.
    q_out, r_out = torch.linalg.qr(b)
    q_in, r_in = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_out @ r_in.T)
    root = s[:rank].sqrt()
    return root[:, None] * (vh[:rank] @ q_in.T), q_out @ u[:, :rank] * root
