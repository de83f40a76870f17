"""The DDIM and DPM equations as ComfyUI SAMPLER, SIGMAS and NOISE objects."""

import copy
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch

from ..errors import UserError
from ..host.protocols import ModelSampling
from ..keys import Latent
from .ddim import sample_ddim
from .dpm import sample_dpm
from .latent_entries import check_samples, read_batch_index, read_rng_offset
from .noise import NoiseStream
from .schedule import next_timesteps, require_schedule, total_steps, trailing_timesteps

SAMPLERS = ("ddim", "dpm")


class SeededNoise:
    """NOISE: what diffusers draws from a CPU generator with this seed."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, input_latent: Latent) -> torch.Tensor:
        """Noise shaped like the latent's samples [B, C, T, H, W] (a single frame where T is missing).

        Raises UserError for a latent without samples, or with entries that latent_entries refuses.
        """
        check_samples(input_latent, "The latent")
        samples = input_latent["samples"]
        shape = samples.shape if samples.ndim == 5 else (*samples.shape[:2], 1, *samples.shape[2:])
        stream = NoiseStream(self.seed, read_batch_index(input_latent), read_rng_offset(input_latent, self.seed))
        return stream.draw(shape)


def schedule_sigmas(model_sampling: ModelSampling, steps: int, denoise: float) -> torch.Tensor:
    """SIGMAS of the last `steps` timesteps of CogVideoX's schedule of int(steps / denoise): [steps + 1], ends in 0.

    Empty for denoise 0, which makes ComfyUI return the latent as it is.

    Raises UserError where the model's noise levels are not CogVideoX's, and where they have no such schedule.
    """
    require_cogvideox(model_sampling)
    require_schedule(steps, denoise)
    if denoise <= 0:
        return torch.zeros(0)
    return timestep_sigmas(model_sampling, trailing_timesteps(total_steps(steps, denoise))[-steps:])


def timestep_sigmas(model_sampling: ModelSampling, timesteps: list[int]) -> torch.Tensor:
    """SIGMAS of a run whose steps begin at `timesteps`, which fall, and whose last one ends at a clean sample:
    [len(timesteps) + 1], ends in 0.

    Raises UserError where the model's noise levels are not CogVideoX's.
    """
    require_cogvideox(model_sampling)
    # On the CPU, as ComfyUI's own BasicScheduler returns SIGMAS, wherever the model is.
    return torch.cat([model_sampling.sigmas.cpu()[timesteps], torch.zeros(1)])


def require_cogvideox(model_sampling: ModelSampling) -> None:
    """Raises UserError for a model whose noise levels are not CogVideoX's.

    The stock node ModelSamplingDiscrete puts such levels on a model of this pack as well: they lack CogVideoX-2b's SNR
    shift, and `alphas`, an attribute of the pack's own.
    """
    if not hasattr(model_sampling, "alphas"):
        raise UserError(
            f"This model samples with {type(model_sampling).__name__}; CogVideoX's schedule and samplers need a "
            "CogVideoX model without a ModelSampling patch.",
            advice="keep the schedule",
        )


def build_sampler(name: str, schedule_steps: int | None = None) -> comfy.samplers.KSAMPLER:
    """SAMPLER that runs CogVideoX's own equations along whatever SIGMAS it is given.

    name: "ddim" or "dpm".
    schedule_steps: length of the schedule whose end the sigmas are; None finds it from the sigmas.
    """
    return comfy.samplers.KSAMPLER(sample_along, {"name": name, "schedule_steps": schedule_steps})


def with_stream(sampler: comfy.samplers.Sampler, stream: NoiseStream | None) -> comfy.samplers.Sampler:
    """`sampler`, or where it is one of build_sampler's a copy that goes on in the stream of the run's noise."""
    if (
        stream is None
        or not isinstance(sampler, comfy.samplers.KSAMPLER)
        or sampler.sampler_function is not sample_along
    ):
        return sampler
    known = copy.copy(sampler)
    known.extra_options = {**known.extra_options, "stream": stream}
    return known


@torch.no_grad()
def sample_along(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    name: str = "ddim",
    schedule_steps: int | None = None,
    stream: NoiseStream | None = None,
) -> torch.Tensor:
    """A k-diffusion style sampler function (ComfyUI calls it through KSAMPLER).

    model: ComfyUI's (x, sigma [B]) -> x0, with guidance; both variance exploding, x = x0 + sigma * noise.
    x: [B, C, T, H, W] at sigmas[0], scaled, variance exploding. Each sigma is taken as the nearest of the model's 1000
    timesteps. Returns x at sigmas[-1], variance exploding.
    stream: where the run's noise was drawn, for the noise of dpm's steps; None for the beginning of the seed's stream.

    Raises UserError where the model's noise levels are not CogVideoX's.
    """
    if len(sigmas) < 2:
        return x  # a part of a run without a step (SplitSigmas at its beginning or end)
    extra_args = extra_args or {}
    # KSamplerX0Inpaint -> CFGGuider -> BaseModel
    model_sampling = model.inner_model.inner_model.model_sampling
    require_cogvideox(model_sampling)
    steps = plan_steps(model_sampling, sigmas, schedule_steps)
    s_in = x.new_ones([x.shape[0]])

    def predict_x0(x: torch.Tensor, timestep: int) -> torch.Tensor:
        sigma = model_sampling.sigmas[timestep].to(x)
        x0 = model(x * (1 + sigma**2) ** 0.5, sigma * s_in, **extra_args)
        if model_sampling.alphas[timestep] == 0:
            # At zero terminal SNR sigma is infinite and x0 = -v. ComfyUI needs a finite sigma and takes 4500, so it
            # returns x0 = sqrt(alpha) x - sqrt(1 - alpha) v with a small alpha. Solved for -v, this is diffusers' x0;
            # as it is, it contains about 1 / 4500 of the starting noise.
            root_alpha = 1 / (1 + sigma**2) ** 0.5
            x0 = (x0 - root_alpha * x) / (1 - root_alpha**2) ** 0.5
        return x0

    def report(i: int, x: torch.Tensor, x0: torch.Tensor) -> None:
        if callback is not None:
            callback({"i": i, "x": x, "denoised": x0, "sigma": sigmas[i], "sigma_hat": sigmas[i]})

    x = x / (1 + sigmas[0] ** 2) ** 0.5  # variance exploding -> preserving
    if name == "dpm":
        # diffusers draws a run's starting noise and the noise of its steps from one generator. The starting noise was
        # drawn elsewhere, by the NOISE object or by ComfyUI: skip as many numbers.
        draw_step = (stream or NoiseStream(extra_args.get("seed") or 0)).draw_steps(x.shape)
        x = sample_dpm(predict_x0, x, steps, draw_step, report)
    else:
        x = sample_ddim(predict_x0, x, steps, report)
    # Variance preserving -> exploding. Where a run stops before the end (SplitSigmas) and its schedule's length does
    # not divide 1000, x is a little off the noise level of sigmas[-1]. The run that goes on divides by the same factor,
    # so that both together equal one run.
    return x * (1 + sigmas[-1] ** 2) ** 0.5


def plan_steps(
    model_sampling: ModelSampling, sigmas: torch.Tensor, schedule_steps: int | None
) -> list[tuple[int, float, float]]:
    """(timestep, alpha there, alpha to go to) for each step along `sigmas`, which are the end of a schedule of
    `schedule_steps` steps; None finds its length."""
    timesteps = [int(t) for t in model_sampling.timestep(sigmas[:-1].cpu())]
    # ComfyUI looks for the nearest log(sigma): for a sigma of 0 it would find timestep 0, which is not quite clean.
    end = int(model_sampling.timestep(sigmas[-1:].cpu())) if sigmas[-1] > 0 else -1
    targets = next_timesteps([*timesteps, end], schedule_steps)
    # alphas are float64: the coefficients of the steps are computed as precisely as diffusers computes them.
    alphas = model_sampling.alphas
    return [(t, float(alphas[t]), float(alphas[n]) if n >= 0 else 1.0) for t, n in zip(timesteps, targets)]
