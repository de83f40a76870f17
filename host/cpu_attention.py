"""torch's attention on the CPU, in parts between which a run can be cancelled: at a large size it takes minutes."""

from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management as mm
import torch

from ..keys import ATTENTION_OVERRIDE

# Products of values of a query and a key that are computed between two looks: 2 s on two cores. A head of a video of
# 720 x 480 pixels and 49 frames has 2.0e10.
_MOST_PRODUCTS = 1 << 34


def attention_by_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, **options: Any
) -> torch.Tensor:
    """ComfyUI's attention_pytorch on as many heads at a time as take some seconds, with a look for Cancel before each.
    torch computes every head by itself in any case: the result is the same, bit by bit.

    query, key, value: [B, heads, N, D]. options: of attention_pytorch, with skip_reshape. Returns [B, N, heads * D].

    Raises InterruptProcessingException where the user has cancelled the run.
    """
    attend = comfy_attention.attention_pytorch
    # What another node has put in the attention's place sees all heads, and a mask may be of one; a training needs the
    # results of all for its gradients, and torch.compile makes one graph.
    is_whole = ATTENTION_OVERRIDE in (options.get("transformer_options") or {}) or options.get("mask") is not None
    if is_whole or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return attend(query, key, value, heads, **options)
    batch, _, tokens, width = query.shape
    at_a_time = max(1, _MOST_PRODUCTS // max(1, batch * tokens * key.shape[2] * width))
    if at_a_time >= heads:
        return attend(query, key, value, heads, **options)
    out = query.new_empty(batch, tokens, heads * width)
    for first in range(0, heads, at_a_time):
        mm.throw_exception_if_processing_interrupted()
        part = slice(first, min(first + at_a_time, heads))
        parts = query[:, part], key[:, part], value[:, part]
        out[:, :, part.start * width : part.stop * width] = attend(*parts, part.stop - part.start, **options)
    return out
