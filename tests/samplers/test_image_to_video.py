"""Image to video against diffusers' CogVideoXImageToVideoPipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.keys import rng_offset
from cogvideox.tests.support import check_parity, relative_error, write_fp32
from cogvideox.tests.tasks import (  # noqa: F401
    HEIGHT,
    NEGATIVE,
    PROMPT,
    SEED,
    WIDTH,
    Task,
    pictures,
    posterior_mode,
    task_of,
)
from cogvideox.tests.tiers import long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
VARIANTS = ("5b-I2V", "1.5-5B-I2V")
PIPELINE = "CogVideoXImageToVideoPipeline"
OTHER_CONFIGURATIONS: tuple[dict[str, int], ...] = (
    {"num_attention_heads": 2, "num_layers": 3},
    {},
    {"sample_frames": 17},
)


@pytest.fixture(scope="module", params=VARIANTS)
def task(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines[request.param])


def image_to_video(task: Task, frames: int, sampler: str = "ddim", batch_size: int = 1, **inputs: Any) -> torch.Tensor:
    run = {key: inputs.pop(key) for key in ("steps", "cfg", "dynamic_cfg", "model") if key in inputs}
    conditioned = task.condition("image", "CogVideoXImageToVideo", frames, batch_size, **inputs)
    return task.sample(*conditioned, sampler=sampler, **run)


def reference(task: Task, sampler: str, frames: int, image: torch.Tensor, **arguments: Any) -> torch.Tensor:
    want = task.reference(
        PIPELINE, sampler, image=image.permute(0, 3, 1, 2), num_frames=frames, num_inference_steps=6, **arguments
    )
    return want[:, :, want.shape[2] - (frames - 1) // 4 - 1 :]


@pytest.mark.parametrize("dynamic_cfg", (False, True))
@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
def test_equals_diffusers(task: Task, sampler: str, dynamic_cfg: bool, posterior_mode: None) -> None:  # noqa: F811
    """A wrong scale, place or order of the image's channels would blur or brighten every video."""
    image = pictures(1)
    got = image_to_video(task, 9, sampler, start_image=image, dynamic_cfg=dynamic_cfg)
    want = reference(task, sampler, 9, image, use_dynamic_cfg=dynamic_cfg)
    check_parity(f"image to video, {task.folder.name}, {sampler}", got, want, 5e-6)


@pytest.mark.parametrize("cfg", (0.5, 1.0))
def test_dynamic_guidance_at_small_scales(task: Task, cfg: float, posterior_mode: None) -> None:  # noqa: F811
    """As in text to video: no guidance at a scale of 1 or below."""
    image = pictures(1)
    got = image_to_video(task, 9, start_image=image, dynamic_cfg=True, cfg=cfg)
    want = reference(task, "ddim", 9, image, use_dynamic_cfg=True, guidance_scale=cfg)
    check_parity(f"dynamic CFG of 1 and less, {task.folder.name}", got, want, 5e-6)


@pytest.mark.parametrize(("frames", "sampler"), long_but_one_in(2, (5, 9, 13, 17), ("ddim", "dpm")))
def test_any_number_of_latents(
    tiny_pipelines: dict[str, Path],
    frames: int,
    sampler: str,
    posterior_mode: None,  # noqa: F811
) -> None:
    """CogVideoX 1.5 puts the image into the frame in front where the count is odd, as diffusers does."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["1.5-5B-I2V"])
        image = pictures(1, seed=frames)
        got = image_to_video(task, frames, sampler, start_image=image)
        check_parity("image to video, odd and even latent counts", got, reference(task, sampler, frames, image), 5e-6)


@pytest.mark.parametrize(("variant", "frames", "sampler"), long_but_one_in(2, VARIANTS, (9, 13), ("ddim", "dpm")))
def test_sampled_posterior_equals_diffusers(
    variant: str, frames: int, sampler: str, tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """With the posterior sampled by the same seed the whole random stream is diffusers', nothing patched."""
    with torch.inference_mode():
        table = variant == "5b-I2V" and frames != 9  # fits one length
        folder = write_fp32(tmp_path, variant, sample_frames=frames) if table else tiny_pipelines[variant]
        task = task_of(folder)
        image = pictures(1)
        got = image_to_video(task, frames, sampler, start_image=image, sample_posterior=True, seed=SEED)
        want = reference(task, sampler, frames, image)
    check_parity("image to video, sampled posterior, one seed", got, want, 5e-6)


@pytest.mark.parametrize(("variant", "frames", "sampler"), [("5b-I2V", 9, "ddim"), ("1.5-5B-I2V", 9, "dpm")])
def test_sampled_posterior_of_a_batch_equals_diffusers(
    variant: str, frames: int, sampler: str, tiny_pipelines: dict[str, Path]
) -> None:
    """Two videos of one picture: diffusers draws a sample of the posterior for each, one after the other, and then the
    noise of both. With one sample for both no seed would give diffusers' videos."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines[variant])
        image, prompts = pictures(1), {"prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2}
        posterior = {"sample_posterior": True, "seed": SEED}
        got = image_to_video(task, frames, sampler, batch_size=2, start_image=image, **posterior)
        want = reference(task, sampler, frames, image.repeat(2, 1, 1, 1), **prompts)
    check_parity("image to video, sampled posterior, a batch", got, want, 5e-6)


def test_members_of_a_batch_have_samples_of_their_own(task: Task) -> None:
    """The first member starts from the picture that it has alone, the others from further samples; without
    sample_posterior there is one picture for all. An end image gets samples of its own as well."""
    inputs = {"start_image": pictures(1), "sample_posterior": True, "seed": SEED}
    alone, both, ended, mode = (
        task.condition("image", "CogVideoXImageToVideo", 9, count, **inputs | more)[0][0][1]["concat_latent_image"]
        for count, more in ((1, {}), (2, {}), (2, {"end_image": pictures(1, seed=5)}), (2, {"sample_posterior": False}))
    )
    assert both.shape[0] == 2 and mode.shape[0] == 1
    assert torch.equal(both[:1], alone) and not torch.equal(both[1:], alone)
    assert torch.equal(ended[:, :, :1], both) and not torch.equal(ended[0, :, -1], ended[1, :, -1])


def test_part_of_a_batch_is_told(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    """One video of a batch whose members have samples of their own would silently get the first one's."""
    given = {"start_image": pictures(1), "sample_posterior": True, "seed": SEED}
    positive, negative, latent = task.condition("image", "CogVideoXImageToVideo", 9, 2, **given)
    part = comfyui_nodes().LatentFromBatch().frombatch(latent, 1, 1)[0]
    task.sample(positive, negative, latent, steps=1)
    assert "samples for" not in caplog.text
    assert task.sample(positive, negative, part, steps=1).shape[0] == 1
    assert "samples for 2 videos and the latent is of 1" in caplog.text


@pytest.mark.parametrize(("variant", "overrides"), long_but_one_in(2, VARIANTS, OTHER_CONFIGURATIONS))
def test_other_configurations(
    variant: str,
    overrides: dict,
    tmp_path: Path,
    posterior_mode: None,  # noqa: F811
) -> None:
    """Not only the embedded checkpoints: other sizes, widths and depths give diffusers' video as well."""
    with torch.inference_mode():
        folder = write_fp32(tmp_path, variant, seed=9, sample_width=14, sample_height=10, **overrides)
        task = Task(folder)
        frames = overrides.get("sample_frames", 9 if variant == "5b-I2V" else 13)
        size = {"width": 112, "height": 80}
        image = pictures(1, height=80, width=112)
        got = image_to_video(task, frames, "dpm", start_image=image, **size)
        want = reference(task, "dpm", frames, image, **size)
    check_parity("image to video, other configurations", got, want, 5e-6)


def test_batch_is_one_image_and_other_noise(task: Task) -> None:
    """Two videos of one image: the first as if it were alone, the second another."""
    got = image_to_video(task, 9, start_image=pictures(1), batch_size=2)
    assert got.shape[0] == 2 and relative_error(got[:1], got[1:]) > 0.1


def test_image_scale_is_an_option(task: Task) -> None:
    """Whoever sees bright or blurry 1.5 videos can take the authors' own convention."""
    image = pictures(1)
    of_checkpoint, multiplied, divided, unscaled = (
        image_to_video(task, 9, start_image=image, image_scale=scale)
        for scale in ("checkpoint", "multiplied", "divided", "unscaled")
    )
    assert torch.equal(of_checkpoint, divided if "1.5" in task.folder.name else multiplied)
    assert len({float(x.sum()) for x in (multiplied, divided, unscaled)}) == 3


def test_end_image_stands_in_the_last_frame(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    """The end image counts, and the user hears that the official models do not know end images."""
    start, end = pictures(1), pictures(1, seed=5)
    positive, _, _ = task.condition("image", "CogVideoXImageToVideo", 9, start_image=start, end_image=end)
    latents = positive[0][1]["concat_latent_image"]
    assert torch.equal(latents[:, :, :1], task.vae.encode(start)) and torch.equal(
        latents[:, :, -1:], task.vae.encode(end)
    )
    assert torch.count_nonzero(latents[:, :, 1:-1]) == 0
    with_end = image_to_video(task, 9, start_image=start, end_image=end)
    assert "not trained for an end image" in caplog.text
    assert relative_error(with_end, image_to_video(task, 9, start_image=start)) > 1e-3


def test_several_frames_continue_a_clip(task: Task) -> None:
    """The last 5 frames of a clip are two latents of the next one."""
    clip = pictures(5)
    positive, _, _ = task.condition("image", "CogVideoXImageToVideo", 9, start_image=clip)
    assert torch.equal(positive[0][1]["concat_latent_image"][:, :, :2], task.vae.encode(clip))
    assert image_to_video(task, 9, start_image=clip).isfinite().all()


@pytest.mark.parametrize("overlap", (1, 5))
def test_clips_chained_from_their_last_frames(task: Task, overlap: int) -> None:
    """Clip after clip from the last frames of the one before: no frame is lost and none stands twice."""
    video = pictures(9)
    for count in range(2):
        _, last, said = task.node(
            "extend", "CogVideoXContinueVideo", vae=task.vae, images=video, frames=9, overlap=overlap
        )
        assert torch.equal(last, video[-overlap:]) and said == overlap
        latent = image_to_video(task, 9, start_image=last, steps=2)
        clip = task.node("decode", "CogVideoXDecode", vae=task.vae, samples={"samples": latent}, memory="fast")[0]
        joined = task.node(
            "extend", "CogVideoXJoinVideos", images_before=video, images_after=clip, overlap=overlap, blend=False
        )[0]
        assert torch.equal(joined[: video.shape[0]], video) and torch.equal(joined[video.shape[0] :], clip[overlap:])
        video = joined
        assert video.shape[0] == 9 + (count + 1) * (9 - overlap)


def test_noise_augmentation(task: Task) -> None:
    """Noise on the picture changes the video, by its own seed; none leaves it alone."""
    cases: list[dict[str, Any]] = [
        {},
        {"noise_augmentation": 0.05, "seed": 1},
        {"noise_augmentation": 0.05, "seed": 2},
        {"training_noise": True},
    ]
    plain, fixed, again, drawn = (image_to_video(task, 9, start_image=pictures(1), **inputs) for inputs in cases)
    assert len({float(x.sum()) for x in (plain, fixed, again, drawn)}) == 4


def test_learned_table_fits_one_size(tiny_pipelines: dict[str, Path]) -> None:
    """CogVideoX-5b-I2V at another length or size: refused with the reason, or its table resampled when asked."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b-I2V"])
        with pytest.raises(UserError, match="(?s)learned position table fits 96 x 64.*CogVideoX Positions"):
            image_to_video(task, 13, start_image=pictures(1))
        stretched = task.node("long", "CogVideoXPositions", model=task.model, riflex=False, resample_table=True)[0]
        assert image_to_video(task, 13, start_image=pictures(1), model=stretched).shape[2] == 4
        native: dict[str, Any] = {"start_image": pictures(1)}
        assert torch.equal(image_to_video(task, 9, model=stretched, **native), image_to_video(task, 9, **native))


def test_wrong_pairs_are_refused(tiny_pipelines: dict[str, Path]) -> None:
    """The message names the node or the model that is missing, before anything is sampled."""
    with torch.inference_mode():
        i2v, t2v = task_of(tiny_pipelines["5b-I2V"]), task_of(tiny_pipelines["5b"])
        latent = t2v.node("latent", "CogVideoXEmptyLatent", width=WIDTH, height=HEIGHT, frames=9, batch_size=1)[0]
        with pytest.raises(UserError, match="5b-I2V takes a start image.*has none.*Image to Video"):
            i2v.sample(i2v.positive, i2v.negative, latent)
        positive, negative, latent = i2v.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
        with pytest.raises(UserError, match="made for a start image; CogVideoX-5b takes nothing"):
            t2v.sample(positive, negative, latent)
        with pytest.raises(UserError, match="negative conditioning has none"):
            i2v.sample(positive, i2v.negative, latent)
        shorter = i2v.condition("image", "CogVideoXImageToVideo", 5, start_image=pictures(1), end_image=pictures(1))
        with pytest.raises(UserError, match="made for 96 x 64 pixels and 5 frames.*is 96 x 64 pixels and 9"):
            i2v.sample(shorter[0], shorter[1], latent)


def test_more_text_than_the_learned_table_has_places_for(tiny_pipelines: dict[str, Path]) -> None:
    """Conditioning (Concat) makes 452 tokens of two prompts; the table has 226 places for text."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b-I2V"])
        positive, negative, latent = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
        longer = [[torch.cat([positive[0][0]] * 2, dim=1), positive[0][1]]]
        with pytest.raises(UserError, match="452 text tokens.*positions for 226"):
            task.sample(longer, negative, latent)


def test_area_of_a_picture_is_refused(task: Task) -> None:
    """ComfyUI's area nodes for pictures end in an index error on a video."""
    stock = comfyui_nodes()

    positive, negative, latent = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
    area = stock.ConditioningSetAreaPercentage().append(positive, 0.5, 0.5, 0.0, 0.0, 1.0)[0]
    with pytest.raises(UserError, match="area of a picture; an area of a video has a duration"):
        task.sample(area, negative, latent)


def test_another_run_on_the_result_draws_its_own_noise(task: Task) -> None:
    """A second run on a sampled latent starts its seed's stream at the beginning; only the first run continues the
    posterior's."""
    inputs = {"start_image": pictures(1), "sample_posterior": True, "seed": SEED}
    positive, negative, latent = task.condition("image", "CogVideoXImageToVideo", 9, **inputs)
    arguments = {"positive": positive, "negative": negative, "seed": SEED, "steps": 2, "cfg": 6.0, "sampler": "ddim"}
    out = task.node(
        "sample",
        "CogVideoXSample",
        model=task.model,
        latent_image=latent,
        dynamic_cfg=False,
        denoise=1.0,
        **arguments,
    )[0]
    assert rng_offset(latent, SEED) > 0 == rng_offset(out, SEED)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"start_image": pictures(3)}, "start_image has 3 pictures; the video has 9 frames"),
        ({"start_image": pictures(9)}, "fewer than the video has"),
        ({"end_image": pictures(2)}, "end_image has 2 pictures"),
        ({"start_image": torch.zeros(0, 64, 96, 3)}, "no picture"),
    ],
)
def test_wrong_pictures_are_refused(task: Task, images: dict, message: str) -> None:
    """What cannot be a start or an end is said so before the VAE runs."""
    with pytest.raises(UserError, match=message):
        task.condition("image", "CogVideoXImageToVideo", 9, **images)
