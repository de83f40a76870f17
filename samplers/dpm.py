"""SDE-DPM-Solver++(2M) as CogVideoX uses it."""

import math
from collections.abc import Callable

import torch

from ..host.async_copies import upload
from .ddim import OnStep, PredictX0, Steps


def sample_dpm(
    predict_x0: PredictX0,
    x: torch.Tensor,
    steps: Steps,
    draw_noise: Callable[[], torch.Tensor],
    callback: OnStep | None = None,
) -> torch.Tensor:
    """Second-order multistep SDE solver (Lu et al. 2022, DPM-Solver++, algorithm 2 in its SDE form).

    x: [B, C, T, H, W], noisy at the first step's alpha, variance preserving.
    draw_noise: one unit-variance sample shaped like x from the run's random stream, on any device.
    Returns [B, C, T, H, W] at the last step's alpha to go to.

    The paper's h is the length of a step in lambda = log(sqrt(alpha / (1 - alpha))), r the length of the step before in
    units of it.

    Source: diffusers scheduling_dpm_cogvideox.py, step(). It draws a first-order noise at every step and, where the
    second order applies, throws it away and draws again. The same is done here: otherwise a seed would give another
    video than in diffusers from the second step on.
    """
    previous_x0, previous_alpha = None, 0.0
    for i, (timestep, alpha, alpha_next) in enumerate(steps):
        x0 = predict_x0(x, timestep)
        if callback is not None:
            callback(i, x, x0)
        h = half_log_snr(alpha_next) - half_log_snr(alpha)
        noise = draw_noise()
        d = x0
        # Second order. The step to the clean sample is of the first, as in diffusers: its h is infinite, and r 0. After
        # a step from pure noise r is infinite, and d is x0.
        if previous_x0 is not None and alpha_next < 1:
            r = (half_log_snr(alpha) - half_log_snr(previous_alpha)) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous_x0
            noise = draw_noise()
        # At pure noise h is infinite and c_x is 0: fresh noise replaces all of the starting noise.
        c_x = ((1 - alpha_next) / (1 - alpha)) ** 0.5 * math.exp(-h)
        c_x0 = -math.expm1(-2 * h) * alpha_next**0.5
        c_noise = (1 - alpha_next) ** 0.5 * (1 - math.exp(-2 * h)) ** 0.5
        x = c_x * x + c_x0 * d + c_noise * upload(noise, x)
        previous_x0, previous_alpha = x0, alpha
    return x


def half_log_snr(alpha: float) -> float:
    """lambda = log(sqrt(alpha / (1 - alpha))): -inf at pure noise, +inf at a clean sample.

    diffusers' tensors give the same limits by themselves; Python's division and math.log raise there.
    """
    if alpha <= 0:
        return -math.inf
    return math.inf if alpha >= 1 else 0.5 * math.log(alpha / (1 - alpha))
