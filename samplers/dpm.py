"""SDE-DPM-Solver++(2M) as CogVideoX uses it."""

import math
from collections.abc import Callable

import torch


def sample_dpm(
    predict_x0: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    steps: list[tuple[int, float, float]],
    draw_noise: Callable[[], torch.Tensor],
    callback: Callable | None = None,
) -> torch.Tensor:
    """Second-order multistep SDE solver (Lu et al. 2022, DPM-Solver++, algorithm 2 in its SDE form).

    predict_x0, x, steps, callback: as in ddim.sample_ddim.
    draw_noise: one unit-variance sample shaped like x from the run's random stream.
    Returns [B, C, T, H, W].

    Source: diffusers scheduling_dpm_cogvideox.py, step(). It draws a first-order noise at every step and, where the
    second order applies, throws it away and draws again; the stream is kept in step with that.
    """
    previous_x0, alpha_back = None, None
    for i, (timestep, alpha, alpha_next) in enumerate(steps):
        x0 = predict_x0(x, timestep)
        if callback is not None:
            callback(i, x, x0)
        span = half_log_snr(alpha_next) - half_log_snr(alpha)
        noise = draw_noise()
        target = x0
        if previous_x0 is not None and alpha_next < 1:
            ratio = (half_log_snr(alpha) - half_log_snr(alpha_back)) / span
            target = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * previous_x0
            noise = draw_noise()
        keep = ((1 - alpha_next) / (1 - alpha)) ** 0.5 * math.exp(-span)
        pull = -math.expm1(-2 * span) * alpha_next**0.5
        fresh = (1 - alpha_next) ** 0.5 * (1 - math.exp(-2 * span)) ** 0.5
        x = keep * x + pull * target + fresh * noise
        previous_x0, alpha_back = x0, alpha
    return x


def half_log_snr(alpha: float) -> float:
    """lambda = log(sqrt(alpha / (1 - alpha))): -inf at pure noise, +inf at a clean sample."""
    if alpha <= 0:
        return -math.inf
    return math.inf if alpha >= 1 else 0.5 * math.log(alpha / (1 - alpha))
