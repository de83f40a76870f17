"""DDIM run backwards: from a video's latents to the noise from which a run would make them."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch

from ..host.protocols import ModelSampling
from ..keys import Trajectory
from .comfy_sampler import require_cogvideox
from .ddim import OnStep, Steps
from .schedule import TRAIN_TIMESTEPS, require_schedule, trailing_timesteps

CLEAN = -1  # the timestep of a sample without noise


def inversion_steps(steps: int) -> list[tuple[int, int]]:
    """(timestep of the sample, timestep that it goes to) for each step, ascending to 999; below 0 the sample is clean.

    The first of a pair is `1000 // steps` below the second. Where `steps` does not divide 1000 it is therefore not the
    second of the pair before, just as a run in the other direction (schedule.next_timesteps) does not arrive at its
    next timestep.

    Source: diffusers scheduling_ddim_inverse.py, set_timesteps() with trailing spacing, and step().
    """
    return [(t - TRAIN_TIMESTEPS // steps, t) for t in reversed(trailing_timesteps(steps))]


def invert_ddim(
    predict_v: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    steps: Steps,
    callback: OnStep | None = None,
) -> torch.Tensor:
    """DDIM (Song et al. 2020, eq. 12, eta = 0) towards the noise, for a model that predicts v.

    predict_v: (x, timestep) -> v, shaped like x. The timestep is the one that the step goes to; x is less noisy. That v
        changes little within a step is the approximation of DDIM inversion: more steps make the way back better.
    x: [B, C, T, H, W], noisy at the first step's alpha, variance preserving.
    steps: (timestep, alpha of x, alpha to go to), cumulative products in 0 .. 1.
    callback: called as callback(step index, x after the step, x0) after each step.
    Returns x at the last step's alpha to go to.

    Source: diffusers scheduling_ddim_inverse.py, step().
    """
    for i, (timestep, alpha, alpha_next) in enumerate(steps):
        v = predict_v(x, timestep)
        x0 = alpha**0.5 * x - (1 - alpha) ** 0.5 * v
        eps = alpha**0.5 * v + (1 - alpha) ** 0.5 * x
        x = alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * eps
        if callback is not None:
            callback(i, x, x0)
    return x


def inversion_sigmas(model_sampling: ModelSampling, steps: int) -> torch.Tensor:
    """SIGMAS of an inversion: [steps + 1], from 0 up.

    They are the model's own. diffusers' DDIMInverseScheduler knows no SNR shift, without which noise found for
    CogVideoX-2b would not lead back to the video.

    Raises UserError where the model's noise levels are not CogVideoX's, and where they have no such schedule.
    """
    require_cogvideox(model_sampling)
    require_schedule(steps, 1.0)
    timesteps = [timestep for _, timestep in inversion_steps(steps)]
    return torch.cat([torch.zeros(1), model_sampling.sigmas.cpu()[timesteps]])


def record_inversion(steps: int) -> tuple[comfy.samplers.KSAMPLER, Trajectory]:
    """SAMPLER that inverts along inversion_sigmas(steps), and the trajectory that it fills.

    The trajectory's samples are fp32 on the CPU, scaled and variance preserving: the clean ones first, then those after
    each step, so that samples[i] has the noise level of timesteps[i]. With CogVideoX 1.5 they have the frame that an
    odd count gets in front (samplers.front).
    """
    trajectory: Trajectory = {"timesteps": [CLEAN, *(t for _, t in inversion_steps(steps))], "samples": []}
    return comfy.samplers.KSAMPLER(invert_along, {"record": trajectory["samples"].append}), trajectory


@torch.no_grad()
def invert_along(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    record: Callable[[torch.Tensor], object] | None = None,
) -> torch.Tensor:
    """A k-diffusion style sampler function (ComfyUI calls it through KSAMPLER) that adds the noise instead.

    x: [B, C, T, H, W], clean, scaled. sigmas: from inversion_sigmas; the steps are taken from their number alone.
    record: called with the clean x and then with each step's, variance preserving, on the CPU.
    Returns x at sigmas[-1], variance exploding.

    Raises UserError where the model's noise levels are not CogVideoX's.
    """
    extra_args = extra_args or {}
    # KSamplerX0Inpaint -> CFGGuider -> BaseModel
    model_sampling = model.inner_model.inner_model.model_sampling
    require_cogvideox(model_sampling)
    s_in = x.new_ones([x.shape[0]])
    alphas = [float(alpha) for alpha in model_sampling.alphas]
    steps = [(t, alphas[below] if below >= 0 else 1.0, alphas[t]) for below, t in inversion_steps(len(sigmas) - 1)]

    def predict_v(x: torch.Tensor, timestep: int) -> torch.Tensor:
        # With sqrt(alpha) = 1 / sqrt(1 + sigma^2), ComfyUI makes x0 = (x - sigma v) / sqrt(1 + sigma^2) of the model's
        # v, x variance preserving: solve that for v.
        sigma = model_sampling.sigmas[timestep].to(x)
        inverse_root_alpha = (1 + sigma**2) ** 0.5
        x0 = model(x * inverse_root_alpha, sigma * s_in, **extra_args)
        return (x - x0 * inverse_root_alpha) / sigma

    def report(i: int, x: torch.Tensor, x0: torch.Tensor) -> None:
        if record is not None:
            record(x.cpu())
        if callback is not None:
            callback({"i": i, "x": x, "denoised": x0, "sigma": sigmas[i], "sigma_hat": sigmas[i]})

    # At sigma 0 variance preserving and exploding are the same: x needs no conversion.
    if record is not None:
        record(x.cpu())
    x = invert_ddim(predict_v, x, steps, report)
    return x * (1 + sigmas[-1] ** 2) ** 0.5  # variance preserving -> exploding
