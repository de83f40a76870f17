"""Guidance that changes over the run."""

import math
from typing import Any

import comfy.model_patcher
import torch


def dynamic_cfg_scale(timestep: int, steps: int, cfg: float) -> float:
    """CogVideoX's dynamic guidance at `timestep` (0 .. 999) of a run of `steps` steps.

    Source: diffusers pipeline_cogvideox.py, __call__ (use_dynamic_cfg). It compares the timestep, not the step's
    index, with `steps`; results that people know were made that way.
    """
    return 1 + cfg * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2


def patch_dynamic_cfg(
    model: comfy.model_patcher.ModelPatcher, steps: int, cfg: float
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` whose guidance follows dynamic_cfg_scale, whatever scale its guider has.

    Done after ComfyUI's own guidance: a sampler_cfg_function works on x - x0, and with x at a sigma of 4500 that costs
    four digits of x0.
    """
    patched = model.clone()

    def guide(args: dict[str, Any]) -> torch.Tensor:
        timestep = int(patched.get_model_object("model_sampling").timestep(args["sigma"][:1]))
        scale = dynamic_cfg_scale(timestep, steps, cfg)
        return args["uncond_denoised"] + scale * (args["cond_denoised"] - args["uncond_denoised"])

    patched.set_model_sampler_post_cfg_function(guide, disable_cfg1_optimization=True)
    return patched
