"""DDIM for a v-predicting model."""

from collections.abc import Callable

import torch

PredictX0 = Callable[[torch.Tensor, int], torch.Tensor]  # (x, timestep) -> predicted clean sample, shaped like x
Steps = list[tuple[int, float, float]]  # (timestep, alpha there, alpha to go to), cumulative products in 0 .. 1
OnStep = Callable[[int, torch.Tensor, torch.Tensor], object]  # (step index, x, x0), after each prediction


def sample_ddim(predict_x0: PredictX0, x: torch.Tensor, steps: Steps, callback: OnStep | None = None) -> torch.Tensor:
    """DDIM (Song et al. 2020, eq. 12, eta = 0).

    x: [B, C, T, H, W], noisy at the first step's alpha, variance preserving.
    Returns [B, C, T, H, W] at the last step's alpha to go to.

    Source: diffusers scheduling_ddim_cogvideox.py, step(). Equation 12 is x' = sqrt(alpha') x0 + sqrt(1 - alpha') eps.
    With eps = (x - sqrt(alpha) x0) / sqrt(1 - alpha) put in, it is x' = c_x * x + c_x0 * x0, and the model's v is not
    needed: ComfyUI's guidance returns x0.
    """
    for i, (timestep, alpha, alpha_next) in enumerate(steps):
        x0 = predict_x0(x, timestep)
        if callback is not None:
            callback(i, x, x0)
        c_x = ((1 - alpha_next) / (1 - alpha)) ** 0.5
        c_x0 = alpha_next**0.5 - alpha**0.5 * c_x
        x = c_x * x + c_x0 * x0
    return x
