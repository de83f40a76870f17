"""Classifier-free guidance whose scale changes over the run, and whose result is rescaled."""

import math
from typing import Any

import comfy.model_patcher
import torch

from .schedule import TRAIN_TIMESTEPS


def dynamic_cfg_scale(timestep: int, steps: int, cfg: float) -> float:
    """CogVideoX's guidance scale at `timestep` (0 .. 999) of a run of `steps` steps.

    Source: diffusers pipeline_cogvideox.py, __call__ (use_dynamic_cfg). The formula is made for the step's index, and
    diffusers puts the timestep in, which is larger than `steps` most of the time: the scale oscillates. The videos that
    people know were made that way.
    """
    return 1 + cfg * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2


def patch_dynamic_cfg(
    model: comfy.model_patcher.ModelPatcher, steps: int, cfg: float
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` whose guidance follows dynamic_cfg_scale instead of the scale of its guider.

    steps: the steps that are run, at denoise below 1 as well, as diffusers' video to video pipeline counts them.
    cfg: at 1 and below the negative prompt has no effect, as in diffusers (do_classifier_free_guidance). Where the
    guider's own scale is 1 as well, ComfyUI leaves its pass out.

    It replaces the result of ComfyUI's own guidance. The other hook, sampler_cfg_function, works on x - x0: with x at a
    sigma of 4500, that subtraction costs four digits of x0.
    """
    patched = model.clone()

    if cfg <= 1:
        patched.set_model_sampler_post_cfg_function(lambda args: args["cond_denoised"])
        return patched

    # Looked up on the card: the host would have to wait for the timestep there.
    scales = torch.tensor([dynamic_cfg_scale(t, steps, cfg) for t in range(TRAIN_TIMESTEPS)], dtype=torch.float64)
    on_device = dict[torch.device, torch.Tensor]()

    def guide(args: dict[str, Any]) -> torch.Tensor:
        model_sampling: Any = patched.get_model_object("model_sampling")
        timestep = model_sampling.timestep(args["sigma"][0])
        if timestep.device not in on_device:
            on_device[timestep.device] = scales.to(timestep.device)
        scale = torch.take(on_device[timestep.device], timestep)  # no axis, so that the prediction keeps its dtype
        return args["uncond_denoised"] + scale * (args["cond_denoised"] - args["uncond_denoised"])

    # With the guider's cfg at 1 ComfyUI would leave out the negative prompt and hand on zeros as uncond_denoised. The
    # scale that counts is the one computed here.
    patched.set_model_sampler_post_cfg_function(guide, disable_cfg1_optimization=True)
    return patched


def patch_guidance_rescale(
    model: comfy.model_patcher.ModelPatcher, guidance_rescale: float
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` whose guided prediction gets back some of the contrast of the prompt's own.

    guidance_rescale: 0 .. 1; 0 changes nothing. It works on what guidance has computed so far: patch_dynamic_cfg comes
    first. Without guidance both predictions are the same, and nothing changes.

    Source: Lin et al. 2023, section 3.4, as diffusers' rescale_noise_cfg computes it: v is multiplied by
    k = 1 - r + r * std(v of the prompt) / std(v), the deviations over all of a video. (ComfyUI's RescaleCFG takes them
    over channels, frames and rows, for each column of the latent alone.)
    """
    patched = model.clone()
    if not guidance_rescale:
        return patched

    def rescale(args: dict[str, Any]) -> torch.Tensor:
        x, x0 = args["input"], args["denoised"]
        dims = tuple(range(1, x.ndim))
        sigma = args["sigma"].view(-1, *[1] * len(dims))
        # With x variance exploding, x0 = x / (1 + sigma^2) - sqrt(1 - alpha) v: the root cancels out of k.
        middle = x / (1 + sigma**2)
        contrast = (args["cond_denoised"] - middle).std(dims, keepdim=True) / (x0 - middle).std(dims, keepdim=True)
        k = 1 - guidance_rescale + guidance_rescale * contrast
        return middle + k * (x0 - middle)

    patched.set_model_sampler_post_cfg_function(rescale)
    return patched
