"""Whole sampling runs through the pack's nodes against diffusers' pipelines: same weights, same seed."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.nodes.latent import CogVideoXEmptyLatent
from cogvideox.nodes.sample import CogVideoXNoise, CogVideoXSample, CogVideoXSampler, CogVideoXScheduler
from cogvideox.nodes.text import CogVideoXEncodeText
from cogvideox.nodes.timesteps import CogVideoXTimesteps
from cogvideox.samplers.few_steps import PRESETS
from cogvideox.tests.support import TEXT_TO_VIDEO, check_parity, reference_pipeline, relative_error
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.transformer import positions

pytestmark = pytest.mark.usefixtures("inference")
WIDTH, HEIGHT = 96, 64
SEED = 42
PROMPT, NEGATIVE = "A panda plays a guitar (slowly: very slowly).", ""
# 10, 20 and 50 divide 1000, 7 and 28 do not: there diffusers steps off its own grid, and so do we
STEP_COUNTS, MORE_STEPS = (7, 10), (20, 28, 50)
RUNS = [
    *long_but_one_in(2, ("ddim", "dpm"), STEP_COUNTS, (True, False)),
    *(
        pytest.param(*run, marks=pytest.mark.long)
        for run in itertools.product(("ddim", "dpm"), MORE_STEPS, (True, False))
    ),
]


class Run:
    """The pack's MODEL, CLIP and nodes, and diffusers' pipeline, on the same fp32 weights."""

    def __init__(self, variant: str, folder: Path):
        self.variant = variant
        self.pipeline = reference_pipeline(folder)
        self.model = load_model(folder, "fp32")
        clip = load_text_encoder(folder, "fp32")
        encode: Any = CogVideoXEncodeText
        self.positive = encode.execute(clip, PROMPT).args[0]
        self.negative = encode.execute(clip, NEGATIVE).args[0]

    def theirs(
        self, sampler: str, frames: int, batch_size: int = 1, timesteps: Sequence[int] = (), **arguments: Any
    ) -> torch.Tensor:
        """Latents [B, C, T, H, W], unscaled, without the frames that CogVideoX 1.5 drops. timesteps: instead of the
        scheduler's own."""
        from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

        scheduler = CogVideoXDPMScheduler if sampler == "dpm" else CogVideoXDDIMScheduler
        scheduler = stepping_along(scheduler, timesteps) if timesteps else scheduler
        self.pipeline.scheduler = scheduler.from_config(self.pipeline.scheduler.config)
        latents = self.pipeline(
            prompt=[PROMPT] * batch_size,
            negative_prompt=[NEGATIVE] * batch_size,
            width=WIDTH,
            height=HEIGHT,
            num_frames=frames,
            output_type="latent",
            **{"guidance_scale": 6.0, "generator": torch.Generator().manual_seed(SEED)} | arguments,
        ).frames.transpose(1, 2)
        latent_frames = (frames - 1) // 4 + 1
        return latents[:, :, latents.shape[2] - latent_frames :] / self.pipeline.vae.config.scaling_factor

    def ours(
        self, sampler: str, frames: int, steps: int, dynamic_cfg: bool = False, batch_size: int = 1, **kw: Any
    ) -> torch.Tensor:
        latent = CogVideoXEmptyLatent.execute(WIDTH, HEIGHT, frames, batch_size).args[0]
        node: Any = CogVideoXSample
        arguments = {"cfg": 6.0, "denoise": 1.0, "latent_image": latent} | kw
        out = node.execute(
            model=self.model,
            positive=self.positive,
            negative=self.negative,
            seed=SEED,
            steps=steps,
            sampler=sampler,
            dynamic_cfg=dynamic_cfg,
            **arguments,
        )
        return out.args[0]["samples"]

    def custom(self, noise: Any, sampler: str, sigmas: torch.Tensor, cfg: float, frames: int) -> torch.Tensor:
        """As `ours`, by the stock node for custom sampling. noise: a NOISE."""
        from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced

        latent = CogVideoXEmptyLatent.execute(WIDTH, HEIGHT, frames, 1).args[0]
        guider = CFGGuider.execute(self.model, self.positive, self.negative, cfg).args[0]
        sampler = CogVideoXSampler.execute(sampler).args[0]
        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]["samples"]


def stepping_along(scheduler: Any, timesteps: Sequence[int]) -> Any:
    """A scheduler class of diffusers whose steps go from each of `timesteps` to the next, the last one to the end.

    diffusers' own go num_train_timesteps // num_inference_steps down: both are set to that for each step.
    """

    class Explicit(scheduler):
        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            self.num_inference_steps, self.timesteps = 1, torch.tensor(timesteps)
            self.lengths = iter([t - following for t, following in zip(timesteps, (*timesteps[1:], -1))])

        def step(self, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
            self.register_to_config(num_train_timesteps=next(self.lengths))
            try:
                return super().step(*args, generator=generator, **kwargs)
            finally:
                self.register_to_config(num_train_timesteps=1000)

    return Explicit


@pytest.fixture(scope="module", params=TEXT_TO_VIDEO)
def run(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Run:
    with torch.inference_mode():
        return Run(request.param, tiny_pipelines[request.param])


@pytest.mark.parametrize(("sampler", "steps", "dynamic_cfg"), RUNS)
def test_run_equals_diffusers(run: Run, sampler: str, steps: int, dynamic_cfg: bool) -> None:
    """The same seed, prompt and settings must give the published video, at any number of steps."""
    got = run.ours(sampler, 9, steps, dynamic_cfg)
    want = run.theirs(sampler, 9, num_inference_steps=steps, use_dynamic_cfg=dynamic_cfg)
    what = f"whole run, {run.variant}, {sampler}{', dynamic CFG' if dynamic_cfg else ''}"
    check_parity(what, got, want, 5e-6)


@pytest.mark.parametrize(
    ("sampler", "cfg", "steps"), long_but_one_in(2, ("ddim", "dpm"), (0.0, 0.5, 1.0, 1.0001), (5, 1))
)
def test_dynamic_guidance_at_small_scales(run: Run, sampler: str, cfg: float, steps: int) -> None:
    """At a scale of 1 or below diffusers leaves the negative prompt out; guiding all the same gave other videos, at
    twice the cost."""
    got = run.ours(sampler, 9, steps, True, cfg=cfg)
    want = run.theirs(sampler, 9, num_inference_steps=steps, use_dynamic_cfg=True, guidance_scale=cfg)
    check_parity(f"dynamic CFG of 1 and less, {run.variant}", got, want, 5e-6)


@pytest.mark.parametrize("cfg", (0.0, 1.0))
def test_small_scales_take_one_pass(run: Run, cfg: float) -> None:
    """The negative prompt has no effect there: a second pass of the model would cost its time for nothing."""
    passes = 0
    node = run.model.model.diffusion_model.register_forward_pre_hook(lambda *_: count())

    def count() -> None:
        nonlocal passes
        passes += 1

    try:
        run.ours("ddim", 9, 3, True, cfg=cfg)
    finally:
        node.remove()
    assert passes == 3


def test_no_table_is_left(run: Run) -> None:
    """The positions of a long video take up to 1 GB of a card, which ComfyUI could not free."""
    tables: list[Any] = [positions.rotary_table, positions.sincos_table]
    during = []
    handle = run.model.model.diffusion_model.register_forward_hook(
        lambda *_: during.append(sum(table.__wrapped__.cache_info().currsize for table in tables))
    )
    run.ours("ddim", 9, 2)
    handle.remove()
    assert set(during) == {1}, "it is computed once in a run"
    assert [table.__wrapped__.cache_info().currsize for table in tables] == [0, 0]


# 3 and 4 latents: CogVideoX 1.5 pads the first, not the second
@pytest.mark.parametrize(("frames", "sampler"), long_but_one_in(2, (9, 13), ("ddim", "dpm")))
def test_odd_and_even_latent_counts(run: Run, frames: int, sampler: str) -> None:
    """CogVideoX 1.5 takes latents in pairs; an odd count needs diffusers' extra noise frame in front."""
    got = run.ours(sampler, frames, 6)
    assert got.shape[2] == (frames - 1) // 4 + 1
    check_parity(
        f"odd and even latent counts, {run.variant}", got, run.theirs(sampler, frames, num_inference_steps=6), 5e-6
    )


@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
def test_batch_equals_diffusers(run: Run, sampler: str) -> None:
    """A batch must be the batch that diffusers makes of a list of prompts, not copies of one video."""
    got = run.ours(sampler, 9, 6, batch_size=2)
    check_parity("batch of 2", got, run.theirs(sampler, 9, batch_size=2, num_inference_steps=6), 5e-6)
    assert relative_error(got[:1], got[1:]) > 0.1


def test_run_from_given_noise(run: Run) -> None:
    """Noise from elsewhere, through stock custom sampler nodes, must be used as it is."""
    frames = 13
    noise = torch.randn(1, 16, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(5))
    source = type("Noise", (), {"seed": 0, "generate_noise": lambda self, latent: noise.clone()})()
    got = run.custom(source, "ddim", CogVideoXScheduler.execute(run.model, 7, 1.0).args[0], 6.0, frames)
    want = run.theirs("ddim", frames, num_inference_steps=7, latents=noise.transpose(1, 2).clone())
    check_parity("run from given noise", got, want, 5e-6)


def few_steps(run: Run, sampler: str, preset: str, timesteps: str = "") -> torch.Tensor:
    """A run of 9 frames at the SIGMAS of CogVideoX Timesteps, without guidance."""
    node: Any = CogVideoXTimesteps
    sigmas = node.execute(run.model, preset, timesteps).args[0]
    return run.custom(CogVideoXNoise.execute(SEED).args[0], sampler, sigmas, 1.0, 9)


@pytest.mark.parametrize("preset", ["BLADE 5b 8 steps", "PSA 5b 4 steps"])
@pytest.mark.parametrize("run", ["5b"], indirect=True)
def test_few_steps_equal_the_authors_call(run: Run, preset: str) -> None:
    """Their scripts call diffusers' pipeline so: other timesteps or noise, and the distilled weights paint badly."""
    settings = PRESETS[preset]
    want = run.theirs("dpm", 9, num_inference_steps=len(settings.timesteps), guidance_scale=1, use_dynamic_cfg=True)
    check_parity("few steps, BLADE and PSA", few_steps(run, settings.sampler, preset), want, 5e-6)


@pytest.mark.parametrize("run", ["2b"], indirect=True)
def test_few_steps_equal_the_students_equations(run: Run) -> None:
    """TDM's student was trained along four uneven timesteps, as generate_new of its authors' train_tdm_demo.py goes:
    predict the clean sample and its noise, and put both together at the next timestep."""
    preset = "TDM 2b 4 steps"
    pipeline, settings = run.pipeline, PRESETS[preset]
    run.theirs("ddim", 9, num_inference_steps=1)  # installs the scheduler
    prompt, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    noise = torch.randn(1, 3, 16, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(SEED))
    x0 = torch.zeros_like(noise)  # has no part in the first sample: alpha is 0 there
    for timestep in torch.tensor(settings.timesteps).split(1):
        x = pipeline.scheduler.add_noise(x0, noise, timestep)
        v = pipeline.transformer(x, prompt, timestep, return_dict=False)[0]
        x0 = pipeline.scheduler.get_velocity(v, x, timestep)
        alpha = pipeline.scheduler.alphas_cumprod[timestep].to(x)
        noise = (x - alpha**0.5 * x0) / (1 - alpha) ** 0.5
    got = few_steps(run, settings.sampler, preset)
    check_parity("few steps, TDM", got, x0.transpose(1, 2) / pipeline.vae.config.scaling_factor, 5e-6)


@pytest.mark.parametrize("run", ["5b"], indirect=True)
@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
def test_explicit_timesteps_equal_diffusers(run: Run, sampler: str) -> None:
    """Each step begins and ends where the list says, next to each other and down to 0 as well."""
    timesteps = (999, 998, 640, 333, 1, 0)
    want = run.theirs(sampler, 9, timesteps=timesteps, num_inference_steps=6, guidance_scale=1)
    check_parity("explicit timesteps", few_steps(run, sampler, "custom", str([*timesteps])), want, 5e-6)


@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
def test_denoise_equals_strength(run: Run, sampler: str) -> None:
    """6 steps at denoise 0.6 are diffusers' 10 inference steps at strength 0.6, so presets carry over."""
    from diffusers import CogVideoXVideoToVideoPipeline

    generator = torch.Generator().manual_seed(8)
    # diffusers counts given latents as frames: 8 is the least that its check for CogVideoX 1.5 takes as even
    start = torch.randn(1, 16, 8, HEIGHT // 8, WIDTH // 8, generator=generator)
    got = run.ours(sampler, 29, 6, latent_image={"samples": start}, denoise=0.6)

    pipeline: Any = CogVideoXVideoToVideoPipeline(**run.pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    run.theirs(sampler, 9, num_inference_steps=1)  # installs the scheduler
    pipeline.scheduler = run.pipeline.scheduler
    pipeline.scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(start.transpose(1, 2).shape, generator=generator)
    scaled = start.transpose(1, 2) * pipeline.vae.config.scaling_factor
    noisy = pipeline.scheduler.add_noise(scaled, noise, pipeline.scheduler.timesteps[4:5])
    want = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=10,
        strength=0.6,
        guidance_scale=6.0,
        latents=noisy,
        generator=generator,
        output_type="latent",
    ).frames.transpose(1, 2)
    check_parity("denoise 0.6 = strength 0.6", got, want / pipeline.vae.config.scaling_factor, 5e-6)


def test_full_denoise_forgets_the_latent(run: Run) -> None:
    """At zero terminal SNR a full run must not leak the latent it was given into the video."""
    start = torch.randn(1, 16, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(8))
    assert torch.equal(run.ours("ddim", 13, 4, latent_image={"samples": start}), run.ours("ddim", 13, 4))


def test_denoise_zero_returns_the_latent(run: Run) -> None:
    """Nothing to do must give back what came in, not noise or an error."""
    start = torch.randn(1, 16, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(8))
    assert torch.equal(run.ours("ddim", 13, 4, latent_image={"samples": start}, denoise=0.0), start)


def test_changing_a_video_with_an_odd_count(run: Run) -> None:
    """81 frames are 21 latents: diffusers' video to video refuses an odd count for CogVideoX 1.5, ours pairs the first
    latent with itself, so that a changed video keeps its length."""
    start = torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(8))
    near, far = (run.ours("ddim", 9, 4, latent_image={"samples": start}, denoise=denoise) for denoise in (0.1, 0.8))
    assert near.shape == far.shape == start.shape
    assert 0 < relative_error(near, start) < relative_error(far, start)
    if run.variant == "1.5-5B":
        from diffusers import CogVideoXVideoToVideoPipeline

        pipeline: Any = CogVideoXVideoToVideoPipeline(**run.pipeline.components)
        with pytest.raises(ValueError, match="must be divisible by `patch_size_t=2`"):
            pipeline(video=[torch.zeros(3, HEIGHT, WIDTH)] * 9, prompt=PROMPT, height=HEIGHT, width=WIDTH)
