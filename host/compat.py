"""The one place that knows how ComfyUI versions and devices differ."""

from collections.abc import Callable

import comfy.ldm.modules.attention as comfy_attention
import torch


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
    import comfy.model_patcher

    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def is_dynamic(patcher: object) -> bool:
    """Whether `patcher` loads weights on demand (hosts before dynamic VRAM have no such method)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())
