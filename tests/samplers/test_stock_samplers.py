"""ComfyUI's samplers on CogVideoX's noise levels: which paint, which are helped, which noise levels are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    DisableNoise,
    FlipSigmas,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.host.toy import WEIGHTS
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nano import paint, score
from cogvideox.nodes.sample import CogVideoXSampler, CogVideoXScheduler
from cogvideox.samplers import outer_sample
from cogvideox.samplers.noise import NoiseStream
from cogvideox.samplers.stock_samplers import own_part, with_first_order_steps
from cogvideox.tests.support import relative_error
from cogvideox.tests.tiers import long_after, long_rows_after

pytestmark = pytest.mark.usefixtures("inference")
# Before they were helped, these were 0.57 to 218 away from the solution, and the first one painted noise.
TWELVE = [
    ("heun", "simple"),
    ("heun", "normal"),
    ("heun", "kl_optimal"),
    ("dpm_2", "simple"),
    ("dpm_2", "kl_optimal"),
    ("dpm_2_ancestral", "normal"),
    ("dpm_2_ancestral", "karras"),
    ("dpmpp_3m_sde", "karras"),
    ("dpmpp_3m_sde", "normal"),
    ("dpmpp_3m_sde", "ddim_uniform"),
    ("ipndm_v", "normal"),
    ("uni_pc", "karras"),
]
TWO_CALLS = ("heun", "dpm_2", "dpm_2_ancestral")
ADD_NOISE = ("dpm_2_ancestral", "dpmpp_3m_sde")
EVERY_SAMPLER = comfy.samplers.SAMPLER_NAMES


def text(seed: int) -> list:
    return [[torch.randn(1, 226, 32, generator=torch.Generator().manual_seed(seed)), {}]]


def latent(frames: int = 2) -> dict[str, Any]:
    return {"samples": torch.zeros(1, 16, frames, 8, 12)}


@pytest.fixture(scope="module")
def model(tiny_pipelines: dict[str, Path]) -> ModelPatcher:
    return load_model(tiny_pipelines["5b"], "fp32")


@pytest.fixture
def never_called(model: ModelPatcher) -> ModelPatcher:
    """The model, which fails where it is called: a refusal has to come before the first step."""
    patched = model.clone()

    def fail(*_: Any) -> torch.Tensor:
        raise AssertionError("the model was called")

    patched.set_model_unet_function_wrapper(fail)
    return patched


def ksample(model: ModelPatcher, sampler: str, scheduler: str, steps: int = 8, **more: Any) -> torch.Tensor:
    """What the stock KSampler and, with its options, KSamplerAdvanced run."""
    options: dict[str, Any] = {"latent": latent()} | more
    out = comfyui_nodes().common_ksampler(model, 7, steps, 4.0, sampler, scheduler, text(1), text(2), **options)
    return out[0]["samples"]


def custom(
    model: ModelPatcher, sampler: Any, sigmas: torch.Tensor, given: dict[str, Any] | None = None, noise: bool = True
) -> torch.Tensor:
    """What the stock SamplerCustomAdvanced runs; sampler: a SAMPLER, or a name for KSamplerSelect."""
    guider = CFGGuider.execute(model, text(1), text(2), 3.0).args[0]
    chosen = KSamplerSelect.execute(sampler).args[0] if isinstance(sampler, str) else sampler
    source = RandomNoise.execute(7).args[0] if noise else DisableNoise.execute().args[0]
    return SamplerCustomAdvanced.execute(source, guider, chosen, sigmas, given or latent()).args[0]["samples"]


def ours(name: str) -> Any:
    return CogVideoXSampler.execute(name).args[0]


class Nano:
    """CogVideoX-nano with two prompts, and the latents that its own equations lead to."""

    def __init__(self) -> None:
        self.pipeline = paint.load_pipeline(WEIGHTS / "5b")
        requests = paint.held_out_requests(7, 2, paint.Settings())
        self.scenes = [request.scene for request in requests]
        self.positive = paint.encode(self.pipeline, [request.prompt for request in requests])
        self.negative = paint.encode(self.pipeline, ["", ""])
        self.solution = self.run("euler", "sgm_uniform", 60)

    def run(self, sampler: str, scheduler: str, steps: int) -> torch.Tensor:
        run = comfy.samplers.KSampler(self.pipeline.model, steps, "cpu", sampler, scheduler, 1.0)
        empty = torch.zeros(2, 16, 5, 8, 8)
        return run.sample(NoiseStream(7).draw(empty.shape), self.positive, self.negative, 6.0, empty, seed=7)

    def score(self, latents: torch.Tensor) -> dict[str, float]:
        """The shares of the two prompts' attributes that the videos show."""
        clips = [self.pipeline.vae.decode(one[None])[0].float().numpy() for one in latents]
        return score.score_clips(clips, self.scenes)


@pytest.fixture(scope="module")
def nano() -> Nano:
    with torch.inference_mode():
        return Nano()


@pytest.mark.parametrize(
    ("sampler", "scheduler"), long_rows_after(3, [*TWELVE[5::3], *TWELVE[1::3], *TWELVE[::3], TWELVE[2]])
)
def test_combinations_that_drowned_in_noise_paint(nano: Nano, sampler: str, scheduler: str) -> None:
    """heun with simple painted noise, without a word. docs/samplers.md has the scores of all combinations."""
    found = nano.run(sampler, scheduler, 12 if sampler in TWO_CALLS else 24)
    if sampler in ADD_NOISE:  # it leads to another of the videos that fit the prompt
        # Drowned in noise, these two videos get 0.1 to 0.4 of the points, and deviate up to 6 times as much. As they
        # are, they get 0.6 to 1, and deviate at most 1.25 times as much.
        shares = nano.score(found)
        assert sum(shares.values()) / len(shares) >= 0.55, shares
        assert abs(found.std() / nano.solution.std() - 1) < 0.3
    else:
        assert relative_error(found, nano.solution) < 0.3
        assert abs(found.std() / nano.solution.std() - 1) < 0.1


def test_dpm_fast_and_adaptive_leave_no_noise(nano: Nano) -> None:
    """They stop at the last sigma above 0: 24 steps of `simple` left the noise of sigma 0.16 in the video."""
    for sampler in ("dpm_fast", "dpm_adaptive"):
        assert relative_error(nano.run(sampler, "simple", 24), nano.solution) < 0.12, sampler


@pytest.mark.parametrize(
    "scheduler", long_after(1, [name for name in comfy.samplers.SCHEDULER_NAMES if name != "linear_quadratic"])
)
def test_first_order_stays_as_it_is(model: ModelPatcher, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """First order needs no help, nor do single steps in log sigma: what helps others must not change a bit of them."""
    sigmas = BasicScheduler.execute(model, scheduler, 6, 1.0).args[0]
    names = ("euler", "ddim", "euler_ancestral", "lcm", "exp_heun_2_x0", ours("ddim"), ours("dpm"))
    found = [custom(model, name, sigmas) for name in names]
    monkeypatch.setattr(outer_sample, "with_first_order_steps", lambda sampler, _: sampler)
    assert all(torch.equal(custom(model, name, sigmas), made) for name, made in zip(names, found))
    assert not torch.equal(custom(model, "heun", sigmas), found[0])


def test_own_part() -> None:
    """The steps that are too long, at a run's beginning and end, are Euler's; the others are the sampler's own."""
    sigmas = torch.tensor([4518.7, 46, 22, 14, 9, 6, 4, 3, 2, 0.5, 0.1, 0])
    assert own_part(sigmas, 0.5) == (2, 8)
    assert own_part(sigmas[2:9], 0.5) == (0, 6)  # a part of the run, from SplitSigmas
    assert own_part(sigmas[:3], 0.5) == (0, 0)
    assert own_part(sigmas[8:], 0.5) == (0, 0)  # a step to 0 alone needs no second order
    assert own_part(torch.tensor([4518.7, 3, 2, 1.5, 0]), 0.5) == (1, 4)
    assert own_part(sigmas, 0.5, to_end=True) == (2, 11)
    assert own_part(torch.tensor([4518.7, 0]), 0.5) == (0, 0) and own_part(torch.tensor([4518.7]), 0.5) == (0, 0)


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "heunpp2", "euler"])
def test_a_run_cut_in_two_is_the_run(model: ModelPatcher, sampler: str) -> None:
    """Which steps are Euler's must not depend on where KSamplerAdvanced cuts a run. (Multistep samplers lose their
    memory at a cut on every model.)"""
    whole = ksample(model, sampler, "sgm_uniform")
    cut = 5
    first = ksample(model, sampler, "sgm_uniform", last_step=cut)
    second = ksample(model, sampler, "sgm_uniform", start_step=cut, disable_noise=True, latent={"samples": first})
    # heunpp2 takes Euler's step where its sigmas end, wherever that is, on every model.
    assert relative_error(second, whole) < (0.5 if sampler == "heunpp2" else 1e-5)


def test_steps_are_counted_through(model: ModelPatcher) -> None:
    """A progress bar that starts again in the middle, or a preview for a step that does not exist."""
    counted: list[int] = []
    ksample_steps = 6
    run = comfy.samplers.KSampler(model, ksample_steps, "cpu", "heun", "normal", 1.0)
    run.sample(
        torch.randn(1, 16, 2, 8, 12),
        text(1),
        text(2),
        4.0,
        latent()["samples"],
        callback=lambda step, *_: counted.append(step),
    )
    assert counted == list(range(ksample_steps))


def test_a_flow_model_s_schedule_is_refused_at_every_sampler_node(never_called: ModelPatcher) -> None:
    """linear_quadratic leaves the model one step from pure noise to a video, whatever the sampler."""
    sigmas = BasicScheduler.execute(never_called, "linear_quadratic", 12, 1.0).args[0]
    for sampler in ("euler", "heun", "dpmpp_2m", ours("ddim"), ours("dpm")):
        with pytest.raises(UserError, match="almost pure noise.*simple or beta"):
            custom(never_called, sampler, sigmas)
    for steps in (4, 12, 50):
        with pytest.raises(UserError, match="almost pure noise"):
            ksample(never_called, "euler", "linear_quadratic", steps)
    with pytest.raises(UserError, match="almost pure noise"):
        ksample(never_called, "euler", "linear_quadratic", last_step=4)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([4518.7, float("nan"), 1, 0], "NaN"),
        ([4518.7, -1, 0], "negative"),
        ([4518.7, 0, 0], "reach 0 before"),
        ([4518.7, 0, 1, 0], "reach 0 before"),
        ([4518.7, 9, 9, 3, 0], "9 stands twice"),
        ([4518.7, 9, 20, 3, 0], "fall and rise"),
        ([1.0, 0.75, 0.5, 0], "flow models"),
    ],
)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "our ddim", "our dpm"])
def test_impossible_noise_levels(never_called: ModelPatcher, sampler: str, sigmas: list[float], message: str) -> None:
    """They divide by zero, or give a black or grey video after the last step."""
    chosen = ours(sampler.removeprefix("our ")) if sampler.startswith("our ") else sampler
    with pytest.raises(UserError, match=message):
        custom(never_called, chosen, torch.tensor(sigmas))


def test_rising_noise_levels(model: ModelPatcher, never_called: ModelPatcher) -> None:
    """FlipSigmas with dpm divided by zero, and with stock samplers that add noise gave NaN. Euler and ddim can add
    noise to a video in this way, and one that is sampled again comes back."""
    down = CogVideoXScheduler.execute(model, 40, 1.0).args[0]
    up = FlipSigmas.execute(down).args[0]
    for sampler in (ours("dpm"), "dpmpp_2m", "euler_ancestral", "heun"):
        with pytest.raises(UserError, match="The sigmas rise.*Invert CogVideoX Video"):
            custom(never_called, sampler, up, noise=False)
    video = {"samples": torch.randn(1, 16, 2, 8, 12, generator=torch.Generator().manual_seed(4))}
    guider = CFGGuider.execute(model, text(1), text(2), 1.0).args[0]
    for sampler in ("euler", "ddim"):
        chosen = ours("ddim") if sampler == "ddim" else KSamplerSelect.execute("euler").args[0]
        found = video
        for sigmas in (up, down):
            found = SamplerCustomAdvanced.execute(DisableNoise.execute().args[0], guider, chosen, sigmas, found).args[0]
        assert relative_error(found["samples"], video["samples"]) < 0.5, sampler


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
def test_one_noise_level_is_no_step(model: ModelPatcher, sampler: str) -> None:
    """SplitSigmas at step 0 gives such a first part: the second must get the noisy latent, from every sampler."""
    sigmas = CogVideoXScheduler.execute(model, 4, 1.0).args[0]
    start = custom(model, "euler", sigmas[:1])
    assert start.std() > 1000
    assert torch.equal(custom(model, sampler, sigmas[:1]), start)


def test_a_mask_in_the_second_part_of_a_run_is_refused(model: ModelPatcher, never_called: ModelPatcher) -> None:
    """The noisy latent was kept as if it were the picture: black parts came out as noise. One run keeps them exactly,
    and a mask that keeps nothing harms no part."""
    video = torch.randn(1, 16, 2, 8, 12, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(1, 1, 2, 8, 12)
    mask[..., 6:] = 1
    masked = {"samples": video, "noise_mask": mask}
    assert torch.equal(ksample(model, "euler", "simple", latent=masked)[..., :6], video[..., :6])
    first = ksample(model, "euler", "simple", latent=masked, last_step=4)
    second: dict[str, Any] = {"start_step": 4, "disable_noise": True}
    with pytest.raises(UserError, match="keep the noise.*in one run"):
        ksample(never_called, "euler", "simple", latent={"samples": first, "noise_mask": mask}, **second)
    sigmas = CogVideoXScheduler.execute(model, 8, 1.0).args[0]
    with pytest.raises(UserError, match="keep the noise"):
        custom(never_called, ours("dpm"), sigmas[4:], {"samples": first, "noise_mask": mask}, noise=False)
    white = {"samples": first, "noise_mask": torch.ones_like(mask)}
    assert torch.equal(
        ksample(model, "euler", "simple", latent=white, **second),
        ksample(model, "euler", "simple", latent={"samples": first}, **second),
    )


def test_cfg_pp_with_too_much_guidance(model: ModelPatcher, never_called: ModelPatcher) -> None:
    """With the cfg of other samplers they lose colours and shapes."""
    arguments: tuple = (8, 3.0, "euler_cfg_pp", "simple", text(1), text(2), latent())
    assert torch.isfinite(comfyui_nodes().common_ksampler(model, 7, *arguments)[0]["samples"]).all()
    with pytest.raises(UserError, match="less guidance.*euler or dpmpp_2m"):
        ksample(never_called, "res_multistep_cfg_pp", "simple")


@pytest.mark.parametrize("sampler", ["uni_pc", "uni_pc_bh2", "euler"])
def test_a_run_does_not_write_into_its_sigmas(tiny_pipelines: dict[str, Path], sampler: str) -> None:
    """uni_pc writes 0.001 over their end: the run looked unfinished, kept CogVideoX 1.5's frame in front, and what a
    mask keeps came out with a trace of noise."""
    model_1_5 = load_model(tiny_pipelines["1.5-5B"], "fp32")
    video = torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(1, 1, 3, 8, 12)
    mask[..., 6:] = 1
    sigmas = CogVideoXScheduler.execute(model_1_5, 7, 1.0).args[0]
    before = sigmas.clone()
    found = custom(model_1_5, sampler, sigmas, {"samples": video, "noise_mask": mask})
    assert torch.equal(sigmas, before)
    assert found.shape == video.shape and torch.equal(found[..., :6], video[..., :6])


@pytest.mark.parametrize("cut", (2, 3, 4))
@pytest.mark.parametrize(
    "name",
    "euler heun heunpp2 dpm_2 lms ipndm ipndm_v deis gradient_estimation dpmpp_2m res_multistep uni_pc "
    "uni_pc_bh2".split(),
)
def test_the_first_part_of_a_run_takes_each_of_its_steps(name: str, cut: int) -> None:
    """Given one step, UniPC asks the model for nothing and only rescales the noise. Where the model's x0 is always the
    same, every method without step noise leads along one line: x = x0 + sigma * noise."""
    sigmas = torch.tensor([4518.7, 60.0, 18.13, 10.9, 6.8, 3.9, 0.0])[: cut + 1]
    noise = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model: Any = lambda x, sigma, **_: torch.full_like(x, 0.5)  # noqa: E731
    sampling = SimpleNamespace(noise_scaling=lambda sigma, noise, x, *_: x)
    model.inner_model = SimpleNamespace(
        inner_model=SimpleNamespace(model_sampling=sampling),
        model_patcher=SimpleNamespace(get_model_object=lambda _: sampling),
    )
    sampler: Any = with_first_order_steps(comfy.samplers.sampler_object(name), sigmas)
    got = sampler.sampler_function(model, 0.5 + sigmas[0] * noise, sigmas, extra_args={}, disable=True)
    want = 0.5 + sigmas[-1] * noise
    assert relative_error(got, want) < 1e-3
