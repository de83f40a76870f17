"""The one place that knows how ComfyUI versions and devices differ."""

from collections.abc import Callable, Iterator, Sequence

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_patcher
import torch

try:
    from comfy import model_prefetch
except ImportError:  # hosts before dynamic VRAM
    model_prefetch = None


def attention_for(device: torch.device) -> Callable:
    """ComfyUI's attention function for `device`, called as f(q, k, v, heads, skip_reshape=True, ...).

    On the CPU ComfyUI falls back to its sub-quadratic attention, made for cards with little memory; torch's fused
    kernel is faster there and keeps memory flat as well.
    """
    if device.type == "cpu":
        return comfy_attention.attention_pytorch
    return comfy_attention.optimized_attention


def model_patcher_class(disable_dynamic: bool) -> type:
    """ComfyUI's patcher class, looked up now: ComfyUI rebinds the name when it starts with dynamic VRAM."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def is_dynamic(patcher: object) -> bool:
    """Whether `patcher` loads weights on demand (hosts before dynamic VRAM have no such method)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def prefetched(
    blocks: Sequence[torch.nn.Module], device: torch.device, transformer_options: dict
) -> Iterator[torch.nn.Module]:
    """The blocks in order; where the host can, the next one's weights travel to `device` while one computes."""
    if model_prefetch is None:
        yield from blocks
        return
    queue = model_prefetch.make_prefetch_queue(list(blocks), device, transformer_options)
    for block in blocks:
        model_prefetch.prefetch_queue_pop(queue, device, block)
        yield block
    model_prefetch.prefetch_queue_pop(queue, device, None)
