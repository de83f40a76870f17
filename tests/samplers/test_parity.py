"""Whole sampling runs through the pack's nodes against diffusers' pipelines: same weights, same seed."""

from pathlib import Path

import pytest
import torch
from support import TEXT_TO_VIDEO, pack, reference_pipeline, relative_error

WIDTH, HEIGHT = 96, 64
SEED = 42
PROMPT, NEGATIVE = "A panda plays a guitar (slowly: very slowly).", ""
# 20 and 50 divide 1000, 7 and 28 do not: there diffusers steps off its own grid, and so do we
STEP_COUNTS = (7, 20, 28, 50)


class Run:
    """The pack's MODEL, CLIP and nodes, and diffusers' pipeline, on the same fp32 weights."""

    def __init__(self, folder: Path):
        self.pipeline = reference_pipeline(folder)
        self.model = pack("model_loaders.model").load_model(folder, "fp32")
        clip = pack("model_loaders.text_encoder").load_text_encoder(folder, "fp32")
        encode = pack("nodes.text").CogVideoXEncodeText
        encode.hidden = type("Hidden", (), {"unique_id": None})
        self.positive = encode.execute(clip, PROMPT).args[0]
        self.negative = encode.execute(clip, NEGATIVE).args[0]

    def theirs(self, sampler: str, frames: int, batch_size: int = 1, **arguments: object) -> torch.Tensor:
        """Latents [B, C, T, H, W], unscaled, without the frames that CogVideoX 1.5 drops."""
        from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

        scheduler = CogVideoXDPMScheduler if sampler == "dpm" else CogVideoXDDIMScheduler
        self.pipeline.scheduler = scheduler.from_config(self.pipeline.scheduler.config)
        latents = self.pipeline(
            prompt=[PROMPT] * batch_size,
            negative_prompt=[NEGATIVE] * batch_size,
            width=WIDTH,
            height=HEIGHT,
            num_frames=frames,
            guidance_scale=6.0,
            output_type="latent",
            **{"generator": torch.Generator().manual_seed(SEED)} | arguments,
        ).frames.transpose(1, 2)
        latent_frames = (frames - 1) // 4 + 1
        return latents[:, :, latents.shape[2] - latent_frames :] / self.pipeline.vae.config.scaling_factor

    def ours(self, sampler: str, frames: int, steps: int, dynamic_cfg: bool = False, batch_size: int = 1, **kw: object):
        latent = pack("nodes.latent").CogVideoXEmptyLatent.execute(WIDTH, HEIGHT, frames, batch_size).args[0]
        node = pack("nodes.sample").CogVideoXSample
        arguments = {"denoise": 1.0, "latent_image": latent} | kw
        out = node.execute(
            model=self.model,
            positive=self.positive,
            negative=self.negative,
            seed=SEED,
            steps=steps,
            cfg=6.0,
            sampler=sampler,
            dynamic_cfg=dynamic_cfg,
            **arguments,
        )
        return out.args[0]["samples"]


@pytest.fixture(scope="module", params=TEXT_TO_VIDEO)
def run(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Run:
    with torch.inference_mode():
        yield Run(tiny_pipelines[request.param])


@pytest.mark.parametrize("dynamic_cfg", (False, True))
@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
def test_run_equals_diffusers(run: Run, sampler: str, steps: int, dynamic_cfg: bool) -> None:
    """The same seed, prompt and settings must give the published video, at any number of steps."""
    got = run.ours(sampler, 9, steps, dynamic_cfg)
    want = run.theirs(sampler, 9, num_inference_steps=steps, use_dynamic_cfg=dynamic_cfg)
    error = relative_error(got, want)
    print(f"{sampler} {steps} {dynamic_cfg} rel {error:.1e}")
    assert error <= (1e-4 if dynamic_cfg else 5e-6)
