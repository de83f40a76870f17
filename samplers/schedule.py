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
    SNR (Lin et al. 2023, algorithm 1), so that a run starts from noise without a trace of a video. The order of the two
    is that of diffusers' CogVideoXDDIMScheduler.__init__; the other way round gives other levels.
    """
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    # Divides the signal to noise ratio, alpha / (1 - alpha), by snr_shift_scale.
    alphas = alphas / (snr_shift_scale + (1 - snr_shift_scale) * alphas)
    root = alphas.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))) ** 2


@cache  # at most 1000 entries; schedule_of goes through all of them
def trailing_timesteps(steps: int) -> list[int]:
    """`steps` timesteps from 999 down, "trailing" spacing, rounded half to even: [999, ..., 1000 / steps - 1].

    diffusers uses numpy's arange, and so does this function: the rounding errors of its sum decide which way a half is
    rounded. At 61 steps and some other counts arange returns one element too many, with which diffusers runs a last
    step at timestep -1; here there are always `steps`.
    """
    grid = np.round(np.arange(TRAIN_TIMESTEPS, 0, -(TRAIN_TIMESTEPS / steps)))
    return [int(t) - 1 for t in grid[:steps]]


def total_steps(steps: int, denoise: float) -> int:
    """Length of the schedule of which `steps` are run: int(steps / denoise), as ComfyUI counts it.

    6 steps at denoise 0.6 are the last 6 of 10, as diffusers' strength 0.6 with 10 inference steps.
    """
    # The quotient of two floating point numbers may be just below the integer that is meant, and int() would take the
    # next lower one.
    return int(steps / denoise + 1e-6)


def require_schedule(steps: int, denoise: float) -> None:
    """Raises UserError where the model has no such schedule.

    ComfyUI checks a widget's limits only for values that are typed in, not for values from another node.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS or not 0 <= denoise <= 1:
        raise UserError(
            f"{steps} steps at denoise {denoise} are not possible. Use 1 to {TRAIN_TIMESTEPS} steps and denoise 0 to 1."
        )
    if denoise and total_steps(steps, denoise) > TRAIN_TIMESTEPS:
        # steps / 1000, rounded up to the two decimals that the widget of denoise has.
        least = -(-steps * 100 // TRAIN_TIMESTEPS) / 100
        raise UserError(
            f"{steps} steps at denoise {denoise} are the end of a schedule of {total_steps(steps, denoise)} steps; the "
            f"model has {TRAIN_TIMESTEPS} timesteps. Use denoise {least} or more, or fewer steps."
        )


def schedule_of(points: list[int]) -> int | None:
    """The number of steps of the trailing schedule that contains `points`, the shortest; None where there is none.

    points: timesteps in the order in which a run visits them, -1 for the clean sample at the end.

    The stock socket SIGMAS carries noise levels alone, without the length of the schedule that they are the end of, and
    each step's target depends on it (next_timesteps). Fewer than four steps may fit a shorter schedule as well.
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

    points: as in schedule_of. total: the schedule's length; None takes schedule_of's.

    On CogVideoX's own schedule it is `t - 1000 // total`. Where total does not divide 1000, this is not the timestep at
    which the next step starts, and the sample's noise and the timestep given to the model differ a little from then on.
    diffusers does so, and published results were made with it. On any other schedule each step goes to the next point.
    """
    total = total or schedule_of(points)
    if total is None:
        return points[1:]
    return [t - TRAIN_TIMESTEPS // total for t in points[:-1]]
