"""Joint attention over text and video tokens."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from ..host.compat import attention_for, rotate_pairs
from ..host.cpu_products import linear
from ..host.ops import weights_held
from ..host.stock_patches import AttentionPatches
from ..keys import read_shared_tokens
from .memory_modes import DEFAULT, Mode
from .token_passes import norm_heads_in_place, normed_heads


def joint_attention(
    attn: Attention,
    tokens: torch.Tensor,
    rotary: torch.Tensor | None,
    transformer_options: dict[str, Any],
    patches: AttentionPatches | None = None,
    mode: Mode = DEFAULT,
) -> torch.Tensor:
    """Full attention of every token to every token through ComfyUI's attention function.

    attn: its weights are used, its own forward is not.
    tokens: [B, text + video, dim]. rotary: positions.rotary_table, or None where positions were added to the tokens.
    patches: of other nodes. mode: one by groups of heads is for blocks that token_passes.suits_spans, and no patches.
    Returns [B, text + video, dim].

    Source: diffusers attention_processor.py, CogVideoXAttnProcessor2_0. There the head axis is moved first; here
    queries and keys are normalised and rotated before it moves, while they are contiguous, which is faster.
    """
    batch, count, _ = tokens.shape
    # diffusers' other models may lack some of these; every CogVideoX model has all.
    # (torch.compile cannot ask a ModuleList for its truth, but for None.)
    assert attn.norm_q is not None and attn.norm_k is not None and attn.to_out is not None
    assert attn.to_k is not None and attn.to_v is not None
    if mode.head_groups > 1:
        return attn.to_out[0](_attend_by_groups(attn, tokens, rotary, transformer_options, mode))
    query = attn.to_q(tokens).view(batch, count, attn.heads, -1)
    key = attn.to_k(tokens).view(batch, count, attn.heads, -1)
    # Patches get queries and keys that are not rotated, and rotate them themselves.
    query, key = normed_heads(attn, query, key, rotary if patches is None else None)
    value = attn.to_v(tokens).view(batch, count, attn.heads, -1)
    if patches is None:
        # [B, N, heads, D] -> [B, heads, N, D]
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        attend = _attention(tokens.device, transformer_options)
        # skip_reshape: the heads have an axis of their own already. The result has none: [B, N, heads * D].
        out = attend(query, key, value, attn.heads, skip_reshape=True, transformer_options=transformer_options)
    else:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        out = _patched(query, key, value, rotary, transformer_options, patches)
    # to_out[1] is a dropout of probability 0 in every CogVideoX model.
    return attn.to_out[0](out)


def _attention(device: torch.device, transformer_options: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """ComfyUI's attention function, over the tokens of all processes where several share them."""
    attend, ranks = attention_for(device), read_shared_tokens(transformer_options)
    return attend if ranks is None else ranks.across(attend)


def _attend_by_groups(
    attn: Any, tokens: torch.Tensor, rotary: torch.Tensor | None, transformer_options: dict[str, Any], mode: Mode
) -> torch.Tensor:
    """Attention of one group of heads after the other, [B, text + video, dim], before the output layer."""
    out = torch.empty_like(tokens)
    width = tokens.shape[2] // attn.heads
    span_tokens = mode.span_tokens(tokens.shape[2])
    attend = _attention(tokens.device, transformer_options)
    with weights_held((attn.to_q, attn.to_k, attn.to_v), tokens.device, tokens.dtype) as products:
        for heads in mode.groups(attn.heads):
            rows = slice(heads.start * width, heads.stop * width)

            def project(weight: torch.Tensor, bias: torch.Tensor | None, rows: slice = rows) -> torch.Tensor:
                projected = linear(tokens, weight[rows], None if bias is None else bias[rows])
                return projected.unflatten(2, (-1, width))

            query, key = (project(*product) for product in products[:2])
            norm_heads_in_place(attn, query, key, rotary, span_tokens)
            # [B, N, heads, D] -> [B, heads, N, D]
            query, key, value = (x.transpose(1, 2) for x in (query, key, project(*products[2])))
            out[:, :, rows] = attend(
                query, key, value, len(heads), skip_reshape=True, transformer_options=transformer_options
            )
            del query, key, value  # or they would be held while those of the next group are made
    return out


def _patched(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotary: torch.Tensor | None,
    transformer_options: dict[str, Any],
    patches: AttentionPatches,
) -> torch.Tensor:
    """Attention with the patches of other nodes around it or in its place.

    query, key, value: [B, heads, N, D], text first, normalised and not rotated. Returns [B, N, heads * D].

    Source of the order and the arguments: ComfyUI comfy/ldm/flux/layers.py, DoubleStreamBlock, which has no
    replacement; for that, comfy/ldm/modules/attention.py, BasicTransformerBlock.
    """
    heads, text_tokens = query.shape[1], transformer_options["img_slice"][0]
    block = "double_block", transformer_options["block_index"]
    extra = {**transformer_options, "block": block, "n_heads": heads, "dim_head": query.shape[3]}
    extra["attn_precision"] = None  # as for the model's own attention: that of q, k and v
    # [1, N, 1, D / 2, 2, 2] -> [1, 1, N, D / 2, 2, 2], as patches know it from ComfyUI's other models.
    positions, mask = None if rotary is None else rotary.transpose(1, 2), None
    for patch in patches.before:
        out = patch(query, key, value, pe=positions, attn_mask=mask, extra_options=extra)
        query, key, value = (out.get(name, old) for name, old in zip("qkv", (query, key, value)))
        positions, mask = out.get("pe", positions), out.get("attn_mask", mask)
    if positions is not None:
        query, key = rotate_pairs(query, positions), rotate_pairs(key, positions)

    def attend(query: torch.Tensor) -> torch.Tensor:
        # The first rows, where there is a row for each query: those of the text.
        rows = mask if mask is None or mask.shape[-2] == 1 else mask[..., : query.shape[2], :]
        options = {"mask": rows, "skip_reshape": True, "transformer_options": transformer_options}
        return attention_for(query.device)(query, key, value, heads, **options)

    if patches.instead is None:
        attended = attend(query)
    else:
        # [B, heads, N, D] -> [B, N, heads * D]
        replaced = patches.instead(*(x.transpose(1, 2).flatten(2) for x in (query, key, value)), extra)
        # What ComfyUI calls attn1 is the picture's attention to itself; the text's would be attn2. A replacement thus
        # counts for the video's tokens, and the text attends as without it.
        attended = torch.cat([attend(query[:, :, :text_tokens]), replaced[:, text_tokens:]], dim=1)
    for patch in patches.after:
        attended = patch(attended, extra)
    return attended
