"""Noise levels and timesteps of CogVideoX.

Source of all numbers: the official scheduler_config.json files and diffusers scheduling_ddim_cogvideox.py.
"""

from functools import cache

import numpy as np
import torch

from ..errors import UserError

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def alphas_cumprod(snr_shift_scale: float) -> torch.Tensor:
    """Cumulative products of alpha at timesteps 0 .. 999: [1000], float64, falling to exactly 0.

    Scaled-linear betas, shifted in SNR (3.0 for CogVideoX-2b, 1.0 for the others), then rescaled to zero terminal
    SNR (Lin et al. 2023, algorithm 1).
    """
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    alphas = alphas / (snr_shift_scale + (1 - snr_shift_scale) * alphas)
    root = alphas.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


@cache  # at most 1000 entries; looked through when a schedule is recognised
def trailing_timesteps(steps: int) -> list[int]:
    """`steps` timesteps from 999 down, "trailing" spacing, rounded half to even: [999, ..., 1000 / steps - 1].

    numpy's arange as in diffusers, whose rounding errors decide halves. At 61 steps and some other counts it makes one
    element too many, and diffusers then runs a last step at timestep -1; here it is always `steps`.
    """
    grid = np.round(np.arange(TRAIN_TIMESTEPS, 0, -(TRAIN_TIMESTEPS / steps)))
    return [int(t) - 1 for t in grid[:steps]]


def total_steps(steps: int, denoise: float) -> int:
    """Length of the schedule of which `steps` are run: int(steps / denoise), as ComfyUI counts it.

    6 steps at denoise 0.6 are the last 6 of 10, as diffusers' strength 0.6 with 10 inference steps.
    """
    # 6 / 0.6 is 10.000000000000002 and 7 / 0.7 is 10.000000000000002, but 9 / 0.9 may fall just short
    return int(steps / denoise + 1e-6)


def require_schedule(steps: int, denoise: float) -> None:
    """Raises UserError where the model has no such schedule.

    ComfyUI checks limits neither of linked values nor of inputs that validate_inputs takes.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS or not 0 <= denoise <= 1:
        raise UserError(
            f"No run has {steps} steps at denoise {denoise}. Use 1 to {TRAIN_TIMESTEPS} steps and denoise 0 to 1."
        )
    if denoise and total_steps(steps, denoise) > TRAIN_TIMESTEPS:
        least = -(-steps * 100 // TRAIN_TIMESTEPS) / 100
        raise UserError(
            f"{steps} steps at denoise {denoise} are the end of a schedule of {total_steps(steps, denoise)}; the "
            f"model has {TRAIN_TIMESTEPS} timesteps. Use denoise {least} or more, or fewer steps."
        )


def schedule_of(points: list[int]) -> int | None:
    """The number of steps of the trailing schedule that `points` are a run of, or None if of none.

    points: timesteps in the order they are visited, -1 for the clean sample at the end.
    """
    for total in range(len(points) - 1, TRAIN_TIMESTEPS + 1):
        schedule = [*trailing_timesteps(total), -1]
        if points[0] in schedule:
            start = schedule.index(points[0])
            if schedule[start : start + len(points)] == points:
                return total
    return None


def next_timesteps(points: list[int], total: int | None = None) -> list[int]:
    """The timestep that each step along `points` goes to; below 0 means a clean sample.

    points: as in schedule_of. total: the schedule's length; None finds it, the shortest that fits.

    On CogVideoX's own schedule that is `t - 1000 // total`, off the grid where total does not divide 1000: this is
    what diffusers does and what published results were made with. Any other schedule steps from point to point.
    """
    total = total or schedule_of(points)
    if total is None:
        return points[1:]
    return [t - TRAIN_TIMESTEPS // total for t in points[:-1]]
