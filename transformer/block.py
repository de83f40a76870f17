"""One block of the transformer: its equations, in the place of which another node may have put its own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

from ..host.exact_attention import exact_attention
from ..host.stock_patches import AttentionPatches, serve_patches
from ..keys import ATTENTION_OVERRIDE
from .attention import joint_attention
from .memory_modes import DEFAULT, Mode
from .token_passes import (
    added,
    added_and_normed,
    feed_forward,
    may_overwrite,
    modulated_norm,
    suits_spans,
)


def block_forward(
    block: CogVideoXBlock,
    text: torch.Tensor,
    video: torch.Tensor,
    embedding: torch.Tensor,
    rotary: torch.Tensor | None,
    transformer_options: dict[str, Any],
    patches: AttentionPatches | None = None,
    in_place: bool = False,
    mode: Mode = DEFAULT,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One expert-adaptive block. Attention and feed-forward see text and video as one sequence; each of the two has
    scales, shifts and gates of its own, computed from the time embedding.

    text: [B, L, D]. video: [B, N, D]. embedding: [B, time width]. patches: of other nodes, for its attention.
    in_place: text and video may be overwritten, because nobody else holds them. mode: see has_lean_mode.
    Returns (text, video).

    Source: diffusers cogvideox_transformer_3d.py, CogVideoXBlock, with each multiply and add fused into one pass.
    """
    # The same for both norms of the block; diffusers computes it in each.
    activated = F.silu(embedding)
    first, second = block.norm1.linear(activated), block.norm2.linear(activated)
    joint = modulated_norm(block.norm1.norm, first, (text, video))
    out = joint_attention(block.attn1, joint, rotary, transformer_options, patches, mode)
    del joint  # or it would be held as long as the block runs
    tokens, joint = added_and_normed(first, (text, video), out, block.norm2.norm, second, in_place, mode)
    del out
    out = feed_forward(block.ff, joint, mode)
    # What the attention was added to is the block's own by now.
    return added(second, tokens, out, may_overwrite(), mode)


def replaced_block(
    replacement: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
    original: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    text: torch.Tensor,
    video: torch.Tensor,
    embedding: torch.Tensor,
    rotary: torch.Tensor | None,
    transformer_options: dict[str, Any],
    patches: AttentionPatches | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call a patch of ComfyUI's `patches_replace`, which may run the block or something else in its stead.

    The names in its arguments are those of ComfyUI's other models with double blocks, such as comfy/ldm/flux/model.py.
    """

    def original_block(args: dict[str, Any]) -> dict[str, Any]:
        tokens = args["txt"], args["img"]
        out = original(*tokens, args["vec"], args["pe"], args["transformer_options"], patches)
        return dict(zip(("txt", "img"), out))

    args = {"img": video, "txt": text, "vec": embedding, "pe": rotary, "transformer_options": transformer_options}
    out = replacement(args, {"original_block": original_block})
    return out["txt"], out["img"]


def has_lean_mode(blocks: torch.nn.ModuleList, transformer_options: dict[str, Any] = {}) -> bool:
    """Whether blocks can be computed in parts. What another node has put in the place of a block or of its attention,
    or around it, sees all heads and tokens, and quantised inputs (int8_fast) have scales of all."""
    override = transformer_options.get(ATTENTION_OVERRIDE, exact_attention)
    if override is not exact_attention or transformer_options.get("patches_replace", {}).get("dit"):
        return False
    return serve_patches(transformer_options, len(blocks)) is None and all(map(suits_spans, blocks))
