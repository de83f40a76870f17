"""Timesteps and noise levels against diffusers' schedulers."""

from typing import Any

import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import scheduler_config
from cogvideox.errors import UserError
from cogvideox.samplers import comfy_sampler, schedule
from cogvideox.samplers.schedule import alphas_cumprod, next_timesteps, total_steps, trailing_timesteps

# diffusers' arange makes one timestep too many at these counts (the last is -1), up to 200 steps
ONE_TOO_MANY = (61, 103, 121, 122)


@pytest.mark.parametrize("variant", ("2b", "5b"))
def test_alphas_equal_diffusers(variant: str) -> None:
    """Without 2b's SNR shift of 3, every one of its videos comes out of the wrong noise levels."""
    from diffusers import CogVideoXDDIMScheduler

    config = scheduler_config(variant)
    theirs = CogVideoXDDIMScheduler(**config).alphas_cumprod
    ours = alphas_cumprod(config["snr_shift_scale"])
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-12)
    assert ours[-1] == 0


def test_timesteps_equal_diffusers() -> None:
    """A timestep off by one changes every frame. Where diffusers makes one too many, ours are the asked for."""
    from diffusers import CogVideoXDDIMScheduler

    scheduler = CogVideoXDDIMScheduler(**scheduler_config("5b"))
    for steps in range(1, 201):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        if steps in ONE_TOO_MANY:
            assert len(theirs) == steps + 1 and theirs.pop() == -1
        assert trailing_timesteps(steps) == theirs


def test_schedule_is_found_again_from_its_end() -> None:
    """The SAMPLER node sees only sigmas; from any run of 4 or more steps it must find diffusers' step width."""
    for total in (7, 20, 28, 50, 61):
        points = [*trailing_timesteps(total), -1]
        for start in range(total - 3):
            found = schedule.schedule_of(points[start:])
            assert found is not None and 1000 // found == 1000 // total


def test_foreign_schedule_steps_from_point_to_point() -> None:
    """With a stock scheduler's sigmas the run must follow them."""
    assert next_timesteps([999, 600, 123, -1]) == [600, 123, -1]


def test_denoise_counts_as_in_comfyui() -> None:
    """Rounding 9 / 0.9 down to 9 would skip the denoise that was asked for."""
    cases = {(6, 0.6): 10, (9, 0.9): 10, (7, 0.7): 10, (20, 1.0): 20, (20, 0.35): 57, (1, 0.1): 10}
    assert {case: total_steps(*case) for case in cases} == cases


def test_split_run_goes_on_where_it_stopped() -> None:
    """SplitSigmas must give the same video as one run (DDIM keeps no memory between steps)."""
    model = _LinearModel(alphas_cumprod(1.0))
    x = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 4000
    sigmas = torch.cat([model.sampling.sigmas[trailing_timesteps(12)], torch.zeros(1)])
    whole = comfy_sampler.sample_along(model, x, sigmas)
    half = comfy_sampler.sample_along(model, x, sigmas[:6])
    torch.testing.assert_close(comfy_sampler.sample_along(model, half, sigmas[5:]), whole, rtol=1e-5, atol=1e-6)


class _LinearModel:
    """A guider that predicts a fixed part of x as x0."""

    def __init__(self, alphas: torch.Tensor):
        from comfy.model_sampling import ModelSamplingDiscrete

        self.sampling: Any = ModelSamplingDiscrete()
        self.sampling.alphas = alphas.clone()
        finite = alphas.clamp(min=4.8973451890853435e-08)
        self.sampling.set_sigmas(((1 - finite) / finite).sqrt())
        self.inner_model: Any = type(
            "Guider", (), {"inner_model": type("Model", (), {"model_sampling": self.sampling})}
        )

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        return 0.3 * x / (1 + sigma.view(-1, 1, 1, 1, 1) ** 2) ** 0.5


def test_other_models_are_refused() -> None:
    """Another model's noise levels under CogVideoX's timesteps would sample noise."""
    from comfy.model_sampling import ModelSamplingDiscrete

    foreign = _LinearModel(alphas_cumprod(1.0))
    sampling: Any = ModelSamplingDiscrete()
    foreign.inner_model.inner_model.model_sampling = sampling
    with pytest.raises(UserError, match="samples with ModelSamplingDiscrete.*without a ModelSampling patch"):
        comfy_sampler.sample_along(foreign, torch.zeros(1, 16, 1, 2, 2), torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="samples with ModelSamplingDiscrete"):
        comfy_sampler.schedule_sigmas(sampling, 7, 1.0)
