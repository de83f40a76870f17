"""DDIM for a v-predicting model."""

from collections.abc import Callable

import torch


def sample_ddim(
    predict_x0: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    steps: list[tuple[int, float, float]],
    callback: Callable | None = None,
) -> torch.Tensor:
    """DDIM (Song et al. 2020, eq. 12, eta = 0).

    predict_x0: (x, timestep) -> predicted clean sample, same shape as x.
    x: [B, C, T, H, W], noisy at the first step's alpha, variance preserving.
    steps: (timestep, alpha there, alpha to go to), cumulative products in 0 .. 1.
    callback: called as callback(step index, x, x0) after each prediction.
    Returns [B, C, T, H, W].

    Source: diffusers scheduling_ddim_cogvideox.py, step().
    """
    for i, (timestep, alpha, alpha_next) in enumerate(steps):
        x0 = predict_x0(x, timestep)
        if callback is not None:
            callback(i, x, x0)
        keep = ((1 - alpha_next) / (1 - alpha)) ** 0.5
        x = keep * x + (alpha_next**0.5 - alpha**0.5 * keep) * x0
    return x
