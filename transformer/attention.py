"""Joint attention over text and video tokens."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from ..host.compat import attention_for, rotate_pairs


def joint_attention(
    attn: Attention, tokens: torch.Tensor, rotary: torch.Tensor | None, transformer_options: dict[str, Any]
) -> torch.Tensor:
    """Full attention of every token to every token through ComfyUI's attention function.

    attn: its weights are used, its own forward is not.
    tokens: [B, text + video, dim]. rotary: positions.rotary_table, or None where positions were added to the tokens.
    Returns [B, text + video, dim].

    Source: diffusers attention_processor.py, CogVideoXAttnProcessor2_0. There the head axis is moved first; here
    queries and keys are normalised and rotated before it moves, while they are contiguous, which is faster.
    """
    batch, count, _ = tokens.shape
    # diffusers' other models may lack some of these; every CogVideoX model has all.
    assert attn.norm_q and attn.norm_k and attn.to_k and attn.to_v and attn.to_out
    query = attn.norm_q(attn.to_q(tokens).view(batch, count, attn.heads, -1))
    key = attn.norm_k(attn.to_k(tokens).view(batch, count, attn.heads, -1))
    value = attn.to_v(tokens).view(batch, count, attn.heads, -1)
    if rotary is not None:
        query, key = rotate_pairs(query, rotary), rotate_pairs(key, rotary)
    # [B, N, heads, D] -> [B, heads, N, D]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    attend = attention_for(tokens.device)
    # skip_reshape: the heads have an axis of their own already. The result has none: [B, N, heads * D].
    out = attend(query, key, value, attn.heads, skip_reshape=True, transformer_options=transformer_options)
    # to_out[1] is a dropout of probability 0 in every CogVideoX model.
    return attn.to_out[0](out)
