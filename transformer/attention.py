"""Joint attention over text and video tokens."""

import torch

from ..host.compat import attention_for, rotate_pairs


def joint_attention(
    attn: torch.nn.Module, tokens: torch.Tensor, rotary: torch.Tensor | None, transformer_options: dict
) -> torch.Tensor:
    """Full attention of every token to every token through ComfyUI's attention function.

    attn: a diffusers Attention, used for its weights.
    tokens: [B, text + video, dim]; rotary: see positions.rotary_table, None where positions were added instead.
    Returns [B, text + video, dim].

    Source: diffusers attention_processor.py, CogVideoXAttnProcessor2_0. Queries and keys are normalised and rotated
    before the head axis moves, while they are contiguous.
    """
    batch, count, _ = tokens.shape
    query = attn.norm_q(attn.to_q(tokens).view(batch, count, attn.heads, -1))
    key = attn.norm_k(attn.to_k(tokens).view(batch, count, attn.heads, -1))
    value = attn.to_v(tokens).view(batch, count, attn.heads, -1)
    if rotary is not None:
        query, key = rotate_pairs(query, rotary), rotate_pairs(key, rotary)
    # [B, N, heads, D] -> [B, heads, N, D]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    attend = attention_for(tokens.device)
    out = attend(query, key, value, attn.heads, skip_reshape=True, transformer_options=transformer_options)
    return attn.to_out[0](out)
