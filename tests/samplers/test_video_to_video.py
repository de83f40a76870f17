"""Video to video against diffusers' CogVideoXVideoToVideoPipeline."""

from pathlib import Path

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.nodes import sample, video
from cogvideox.tests.support import TEXT_TO_VIDEO, check_parity, relative_error, write_fp32
from cogvideox.tests.tasks import (  # noqa: F401
    HEIGHT,
    NEGATIVE,
    PROMPT,
    SEED,
    WIDTH,
    Task,
    as_frames,
    pictures,
    posterior_mode,
    task_of,
)
from cogvideox.tests.tiers import long_after, long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
PIPELINE = "CogVideoXVideoToVideoPipeline"


@pytest.fixture(params=TEXT_TO_VIDEO)
def task(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines[request.param])


def video_to_video(task: Task, images: torch.Tensor, encode: dict = {}, **inputs: object) -> torch.Tensor:
    latent = task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=images, **encode)[0]
    return task.sample(task.positive, task.negative, latent, **inputs)


@pytest.mark.parametrize(("sampler", "frames"), long_but_one_in(2, ("ddim", "dpm"), (9, 13)))
def test_equals_diffusers(task: Task, sampler: str, frames: int, posterior_mode: None) -> None:  # noqa: F811
    """6 steps at denoise 0.6 are 10 inference steps at strength 0.6, from the video to the latents."""
    if "1.5" in task.folder.name:
        frames = 2 * frames + 3  # 6 and 8 latents: diffusers refuses an odd number
    images = pictures(frames)
    got = video_to_video(task, images, sampler=sampler, steps=6, denoise=0.6)
    want = task.reference(PIPELINE, sampler, video=as_frames(images), num_inference_steps=10, strength=0.6)
    check_parity(f"video to video, {task.folder.name}, {sampler}", got, want, 5e-6)


@pytest.mark.parametrize(("task", "cfg"), long_but_one_in(2, TEXT_TO_VIDEO, (0.5, 1.0)), indirect=["task"])
def test_dynamic_guidance_at_small_scales(task: Task, cfg: float, posterior_mode: None) -> None:  # noqa: F811
    """As in text to video: no guidance at a scale of 1 or below."""
    images = pictures(21 if "1.5" in task.folder.name else 9)
    got = video_to_video(task, images, steps=6, denoise=0.6, dynamic_cfg=True, cfg=cfg)
    strength = {"num_inference_steps": 10, "strength": 0.6, "use_dynamic_cfg": True, "guidance_scale": cfg}
    want = task.reference(PIPELINE, "ddim", video=as_frames(images), **strength)
    check_parity(f"dynamic CFG of 1 and less, video to video, {task.folder.name}", got, want, 5e-6)


@pytest.mark.parametrize(("task", "sampler"), long_but_one_in(2, TEXT_TO_VIDEO, ("ddim", "dpm")), indirect=["task"])
def test_sampled_posterior_equals_diffusers(task: Task, sampler: str) -> None:
    """With the posterior sampled by the same seed the whole random stream is diffusers', nothing patched."""
    images = pictures(13)
    encode = {"sample_posterior": True, "seed": SEED}
    got = video_to_video(task, images, encode, sampler=sampler, steps=8, denoise=0.8)
    want = task.reference(PIPELINE, sampler, video=as_frames(images), num_inference_steps=10, strength=0.8)
    check_parity("video to video, sampled posterior, one seed", got, want, 5e-6)


@pytest.mark.parametrize(("task", "sampler"), long_but_one_in(2, TEXT_TO_VIDEO, ("dpm", "ddim")), indirect=["task"])
def test_sampled_posterior_of_a_batch_equals_diffusers(task: Task, sampler: str) -> None:
    """Two videos made of one: diffusers draws a sample of the posterior for each before the noise of both."""
    # diffusers takes the number of videos for that of frames when it asks whether CogVideoX 1.5's latents are even: of
    # a batch it accepts 5 to 8 only.
    count = 5 if "1.5" in task.folder.name else 2
    images, prompts = pictures(13), {"prompt": [PROMPT] * count, "negative_prompt": [NEGATIVE] * count}
    encode = {"sample_posterior": True, "seed": SEED, "batch_size": count}
    got = video_to_video(task, images, encode, sampler=sampler, steps=4, denoise=0.8)
    videos = torch.stack(as_frames(images)).repeat(count, 1, 1, 1, 1)
    want = task.reference(PIPELINE, sampler, video=videos, num_inference_steps=5, strength=0.8, **prompts)
    check_parity("video to video, sampled posterior, a batch", got, want, 5e-6)


def test_batch_of_the_mode_is_one_video(task: Task) -> None:
    """Without sample_posterior all members start from the same latents."""
    encoded = {"vae": task.vae, "images": pictures(9), "batch_size": 2}
    latent = task.node("video", "CogVideoXEncodeVideo", **encoded)[0]["samples"]
    assert latent.shape[0] == 2 and torch.equal(latent, task.vae.encode(pictures(9)).repeat(2, 1, 1, 1, 1))


@pytest.mark.parametrize("variant", long_after(2, ("2b", "1.5-5B", "5b")))
def test_other_configurations(variant: str, tmp_path: Path, posterior_mode: None) -> None:  # noqa: F811
    """Not only the embedded checkpoints: other widths, depths and sizes of video."""
    with torch.inference_mode():
        task = Task(write_fp32(tmp_path, variant, seed=4, num_attention_heads=2, num_layers=3))
        images = pictures(13, height=48, width=80)
        got = video_to_video(task, images, sampler="dpm", steps=7, denoise=0.7)
        size = {"width": 80, "height": 48}
        want = task.reference(PIPELINE, "dpm", video=as_frames(images), num_inference_steps=10, strength=0.7, **size)
    check_parity("video to video, other configurations", got, want, 5e-6)


def test_odd_number_of_latents_on_1_5(tiny_pipelines: dict[str, Path]) -> None:
    """81 frames are 21 latents: diffusers raises; here a small change stays near the video and keeps its length."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["1.5-5B"])
        images = pictures(9)
        latents = task.vae.encode(images)
        near, far = (video_to_video(task, images, steps=4, denoise=denoise) for denoise in (0.1, 0.8))
        assert near.shape == far.shape == latents.shape
        assert 0 < relative_error(near, latents) < relative_error(far, latents)
        with pytest.raises(ValueError, match="must be divisible by `patch_size_t=2`"):
            task.reference(PIPELINE, "ddim", video=as_frames(images))


def test_no_step_left_returns_the_video(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers raises where int(steps x strength) is 0; here the latent comes back and the node says so."""
    said = []
    monkeypatch.setattr(sample, "show_on_node", lambda text, node_id: said.append(text))
    images = pictures(9)
    assert torch.equal(video_to_video(task, images, denoise=0.0), task.vae.encode(images))
    assert said == ["denoise is 0, so no step is run: the latent stays as it is."]


def test_frames_beyond_4k_1_are_left_out_and_said(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of 12 frames is encoded as 9; silently shorter would be a riddle."""
    said = []
    monkeypatch.setattr(video, "show_on_node", lambda text, node_id: said.append(text))
    images = pictures(12)
    latent = task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=images)[0]["samples"]
    assert torch.equal(latent, task.vae.encode(images[:9]))
    assert said == ["12 frames are not 4k + 1: the last 3 are left out."]


def test_size_of_the_video(task: Task) -> None:
    """Its own size, cut to multiples of 16; or the size asked for."""
    images = pictures(5, height=70, width=101)
    latent, asked = (
        task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=images, **size)[0]["samples"]
        for size in ({}, {"width": WIDTH, "height": 48})
    )
    assert latent.shape[3:] == (8, 12) and asked.shape[3:] == (6, 12)
    assert torch.equal(latent, task.vae.encode(images[:, 3:67, 2:98]))
    with pytest.raises(UserError, match="10 x 10 pixels"):
        task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=pictures(5, height=10, width=10))


class TestMasks:
    """ComfyUI's noise masks on latents with frames."""

    @pytest.mark.parametrize("through", ("encode", "SetLatentNoiseMask"))
    @pytest.mark.parametrize("sampler", ("ddim", "dpm"))
    def test_what_is_black_stays(self, task: Task, sampler: str, through: str) -> None:
        """Latents under the black of a mask come out as they went in, the others do not."""
        images, mask = pictures(9), torch.zeros(9, HEIGHT, WIDTH)
        mask[5:, :, 48:] = 1.0
        encode = {"mask": mask} if through == "encode" else {}
        latent = task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=images, **encode)[0]
        if through == "SetLatentNoiseMask":
            stock = comfyui_nodes()

            latent = stock.SetLatentNoiseMask().set_mask(latent, mask)[0]
        got, given = task.sample(task.positive, task.negative, latent, sampler=sampler), latent["samples"]
        changed = torch.zeros_like(got, dtype=torch.bool)
        changed[:, :, 2:, :, 6:] = True
        assert (got[~changed] - given[~changed]).abs().max() < 1e-5
        assert relative_error(got[changed][None], given[changed][None]) > 0.1

    def test_stock_sampler_keeps_it_too(self, task: Task) -> None:
        """KSampler on a masked video, as in every inpainting workflow."""
        stock = comfyui_nodes()

        images, mask = pictures(9), torch.zeros(1, HEIGHT, WIDTH)
        mask[:, :, 48:] = 1.0
        latent = task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=images)[0]
        latent = stock.SetLatentNoiseMask().set_mask(latent, mask)[0]
        out = stock.common_ksampler(
            task.model, SEED, 4, 6.0, "euler", "simple", task.positive, task.negative, latent, denoise=0.8
        )[0]["samples"]
        assert (out - latent["samples"])[..., :5].abs().max() < 1e-5
        assert (out - latent["samples"])[..., 7:].abs().max() > 0.01

    def test_mask_of_another_shape_is_refused(self, task: Task) -> None:
        """ComfyUI would stretch any mask over the video."""
        latent = task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=pictures(9))[0]
        with pytest.raises(UserError, match="7 frames of 96 x 64"):
            task.sample(task.positive, task.negative, latent | {"noise_mask": torch.ones(7, 1, HEIGHT, WIDTH)})
        with pytest.raises(UserError, match="of 50 x 50"):
            task.sample(task.positive, task.negative, latent | {"noise_mask": torch.ones(1, 1, 50, 50)})
