"""ComfyUI's own samplers on CogVideoX: which of its steps they cannot take, and which noise levels none of them can.

At zero terminal SNR a run begins at sigma 4518.7, which stands for infinity, and its next sigma may be 20. Euler's step
is exact there for what the model predicts: x' = x0 + sigma' / sigma * (x - x0). A method of higher order takes the mean
of derivatives, (x - x0) / sigma, of both ends, or extrapolates them, as if they changed linearly on the way. Heun's
step from 4518.7 to 20 thus adds 110 times the difference of both x0 to the sample, whose noise is 20: the video drowns
in it. ComfyUI's own models with zero terminal SNR have the same sigmas and the same fault.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.samplers
import torch

from ..errors import UserError
from .comfy_sampler import sample_along
from .noise import adds_noise

# A step in which sigma falls to less than this part of itself is too long for a method of higher order. Measured on
# CogVideoX-nano: at 1 / 3 some combinations are still unstable, at 1 / 2 only ipndm and sa_solver; seeds_3 is stable
# from 1 / 4 on (docs/samplers.md).
LEAST_RATIO = 0.5
LEAST_RATIOS = {"ipndm": 2 / 3, "sa_solver": 2 / 3, "seeds_3": 1 / 4}
# Their steps are of higher order in sigma, or extrapolate from earlier steps. Missing are the ones of first order, and
# those that were right in all of the table without help: single steps in log sigma (dpmpp_sde, seeds_2, exp_heun) and
# the other samplers that end in cfg_pp.
HIGHER_ORDER = frozenset(
    "heun heunpp2 dpm_2 dpm_2_ancestral lms ipndm ipndm_v deis gradient_estimation dpm_fast dpm_adaptive dpmpp_2m "
    "dpmpp_2m_sde dpmpp_2m_sde_heun dpmpp_3m_sde res_multistep res_multistep_ancestral "
    "res_multistep_ancestral_cfg_pp er_sde sa_solver sa_solver_pece seeds_3 uni_pc uni_pc_bh2".split()
)
HIGHEST_CFG_PP = 3.0
HIGHEST_SIGMA = 1e6  # the squares of larger ones leave fp32's range soon
# They choose their noise levels between the first and the last but one, and never take the last step, to 0.
CHOOSE_SIGMAS = frozenset(("dpm_fast", "dpm_adaptive"))
# Only these can also run from low to high noise levels: they are of first order and draw no noise.
REVERSIBLE = frozenset(("euler", "our ddim"))
# They ask the model several times a step.
CALLS_PER_STEP = {
    **dict.fromkeys(
        "heun exp_heun_2_x0 exp_heun_2_x0_sde dpm_2 dpm_2_ancestral dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp "
        "dpmpp_sde seeds_2 sa_solver_pece".split(),
        2,
    ),
    **dict.fromkeys(("heunpp2", "seeds_3"), 3),
}
# Functions whose names are not `sample_` and the name in ComfyUI's list.
_OTHER_NAMES = {
    "dpm_fast_function": "dpm_fast",
    "dpm_adaptive_function": "dpm_adaptive",
    "sample_unipc": "uni_pc",
    "sample_unipc_bh2": "uni_pc_bh2",
}

SamplerFunction = Callable[..., torch.Tensor]  # k-diffusion's: (model, x, sigmas, extra_args=, callback=, disable=)


def known_name(sampler: comfy.samplers.Sampler) -> str | None:
    """A sampler's name in ComfyUI's list, "our ddim" or "our dpm" for this pack's, None for one of another pack. The
    name of what with_first_order_steps has made is that of the sampler within.

    The "_gpu" at the end of some names, which only says where noise is drawn, is left out. "ddim" of ComfyUI's list is
    euler.
    """
    of_comfyui: Any = sampler
    function: Any = getattr(of_comfyui, "sampler_function", None)
    if getattr(function, "func", None) is _sample_in_parts:
        function = function.args[0]
    if function is sample_along:
        return f"our {of_comfyui.extra_options['name']}"
    if not getattr(function, "__module__", "").startswith("comfy."):
        return None
    name = function.__name__
    return _OTHER_NAMES.get(name, name.removeprefix("sample_").removesuffix("_gpu"))


def check_sigmas(
    sampler: comfy.samplers.Sampler, sigmas: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor
) -> None:
    """Raises UserError for noise levels [steps + 1] with which `sampler` would make no video.

    noise, latent_image: those of the run. Samplers that known_name does not know are left alone, an inversion among
    them, whose sigmas rise.
    """
    if len(sigmas) and float(sigmas[0]) > HIGHEST_SIGMA and bool(torch.isfinite(sigmas[0])):
        raise UserError(
            f"The run begins at sigma {float(sigmas[0]):.4g}, at which its numbers overflow. CogVideoX's highest noise "
            "level is 4518.7.",
            advice="choose a scheduler",
        )
    name = known_name(sampler)
    if name is None:
        return
    if not torch.isfinite(sigmas).all() or (sigmas < 0).any():
        raise UserError("The sigmas contain NaN, Inf or a negative number.", advice="choose a scheduler")
    if (sigmas[:-1] == 0).any():
        raise UserError("The sigmas reach 0 before their end: after 0 no noise is left.", advice="choose a scheduler")
    steps = sigmas.diff()
    if (steps == 0).any():
        twice = float(sigmas[:-1][steps == 0][0])
        raise UserError(
            f"The sigma {twice:.4g} stands twice in a row: a step between equal noise levels divides by zero in many "
            "samplers.",
            advice="choose a scheduler",
        )
    if (steps > 0).any():
        _check_rising(name, bool((steps > 0).all()))
    elif len(steps) > 1:
        _check_falling(sigmas)
    if sigmas[0] <= 1 and adds_noise(noise) and not torch.count_nonzero(latent_image):
        raise UserError(
            f"The run begins at sigma {float(sigmas[0]):.4g} and has an empty latent: at this noise level a video is "
            "visible already. A run from an empty latent begins at 4518.7. (Sigmas from 1 to 0 are those of flow "
            "models, such as Flux or Wan.)",
            advice="start from noise",
        )


def check_cfg(sampler: comfy.samplers.Sampler, cfg: float | None) -> None:
    """Raises UserError for more guidance than a CFG++ sampler can take (Chung et al. 2024: their scale is 0 .. 1).

    cfg: the guider's; None where it has none. On CogVideoX-nano all of them paint at 3, and at 4.5 some do not.
    """
    name = known_name(sampler) or ""
    if name.endswith("cfg_pp") and cfg is not None and cfg > HIGHEST_CFG_PP:
        raise UserError(
            f"{name} takes less guidance than other samplers, and cfg is {cfg:g}: colours and shapes would be lost. "
            f"Set cfg to 1 or 2 (at most {HIGHEST_CFG_PP:g}), or use the sampler euler or dpmpp_2m."
        )


def _check_rising(name: str, all_rise: bool) -> None:
    """Raises UserError for sigmas that rise, all of them or some, where the sampler cannot follow."""
    if not all_rise:
        raise UserError("The sigmas fall and rise.", advice="choose a scheduler")
    if name not in REVERSIBLE:
        raise UserError(
            f"The sigmas rise, and {name.removeprefix('our ')} can only remove noise.",
            advice="invert a video",
        )


def _check_falling(sigmas: torch.Tensor) -> None:
    """Raises UserError for a schedule that stays at almost pure noise until its last step, as linear_quadratic does.

    It is made for flow models, whose sigma is the part of noise in the sample: of 4518.7, half is as pure a noise.
    """
    high = 40.0  # about timestep 950 of 1000
    stays = sigmas[2] > 0.98 * sigmas[0] and sigmas[2] > high
    if stays or (sigmas[-1] == 0 and sigmas[-2] > high):
        raise UserError(
            f"These sigmas stay at almost pure noise: from {float(sigmas[0]):.4g} the first two steps lead to "
            f"{float(sigmas[2]):.4g}, and the last one begins at {float(sigmas[-2]):.4g}. (linear_quadratic makes such "
            "sigmas; it is for flow models.)",
            advice="choose a scheduler",
        )


def asks_once_a_step(sampler: comfy.samplers.Sampler) -> bool:
    """Whether a sampler asks the model once a step, at the step's beginning, and for nothing but the prediction: those
    that end in cfg_pp get the one of the negative prompt, too, from a function that a step without the model does not
    call. True for one of another pack, of which nothing is known."""
    name = known_name(sampler)
    return name not in CALLS_PER_STEP and name not in CHOOSE_SIGMAS and not (name or "").endswith("cfg_pp")


def with_first_order_steps(sampler: comfy.samplers.Sampler, sigmas: torch.Tensor) -> comfy.samplers.Sampler:
    """`sampler`, or a sampler that leaves it those of a run's steps, [steps + 1], that it can take.

    A run without any step (SplitSigmas at step 0) leaves it none: some samplers fail there.
    """
    name = known_name(sampler)
    if name is None or name.startswith("our ") or (name not in HIGHER_ORDER and len(sigmas) > 1):
        return sampler
    of_comfyui: Any = sampler
    part = own_part(sigmas, LEAST_RATIOS.get(name, LEAST_RATIO), name in CHOOSE_SIGMAS)
    if name.startswith("uni_pc") and part[1] - part[0] == 1:
        part = (0, 0)  # given one step, UniPC asks the model for nothing
    function = partial(_sample_in_parts, of_comfyui.sampler_function, part, name in CHOOSE_SIGMAS)
    return comfy.samplers.KSAMPLER(function, of_comfyui.extra_options, of_comfyui.inpaint_options)


def own_part(sigmas: torch.Tensor, least_ratio: float, to_end: bool = False) -> tuple[int, int]:
    """The part of a run that a method of higher order can take: indices of its first and last sigma, equal for none.

    It is the longest row of steps of which none is too long. The step to 0 ends such a row but makes none alone: there
    every method takes the model's x0. to_end: instead, everything after the long steps that the run begins with.

    A run that is cut into parts (SplitSigmas) has the same long steps.
    """
    count = len(sigmas) - 1
    is_long = [0 < sigmas[i + 1] < least_ratio * sigmas[i] for i in range(count)]
    if to_end:
        start = next((i for i in range(count) if not is_long[i]), count)
        return (start, count) if count - start > 1 else (count, count)
    best = (0, 0)
    start = 0
    for i in range(count + 1):
        if i == count or is_long[i]:
            counted = i - (i == count and bool(sigmas[-1] == 0))  # the end of the row without the step to 0
            if counted - start > best[1] - best[0] and counted > start:
                best = (start, i)
            start = i + 1
    return best


def _sample_in_parts(
    function: SamplerFunction,
    own: tuple[int, int],
    chooses_sigmas: bool,
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """A k-diffusion style sampler function: `function` between the two sigmas whose indices are `own`, Euler elsewhere.

    chooses_sigmas: for one of CHOOSE_SIGMAS, the model's x0 ends the run.
    """
    start, stop = own
    arguments = extra_args or {}
    x = _euler(model, x, sigmas, range(start), arguments, callback)
    if stop > start:

        def counted(step: dict[str, Any]) -> None:
            if callback is not None:
                callback({**step, "i": min(step["i"] + start, len(sigmas) - 2)})

        part = sigmas[start : stop + 1]
        x = function(model, x, part, extra_args=arguments, callback=counted, disable=disable, **options)
        if chooses_sigmas and sigmas[-1] == 0:
            x = model(x, sigmas[-2] * x.new_ones([x.shape[0]]), **arguments)
    return _euler(model, x, sigmas, range(stop, len(sigmas) - 1), arguments, callback)


def _euler(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    indices: range,
    extra_args: dict[str, Any],
    callback: Callable[[dict[str, Any]], object] | None,
) -> torch.Tensor:
    """Euler's steps that begin at sigmas[i] for i in `indices`, of x [B, C, T, H, W], variance exploding."""
    s_in = x.new_ones([x.shape[0]])
    for i in indices:
        x0 = model(x, sigmas[i] * s_in, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": x0})
        x = x0 + sigmas[i + 1] / sigmas[i] * (x - x0)
    return x
