"""The CogVideoX-Fun models against diffusers: control, inpainting, and VOID."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cogvideox.errors import UserError
from cogvideox.tests.support import check_parity, host_lacks, relative_error, write_fp32
from cogvideox.tests.tasks import HEIGHT, WIDTH, Task, pictures, task_of
from cogvideox.tests.tiers import long_after, long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
CONTROL = ("Fun-2b-Control", "Fun-5b-Control", "Fun-V1.5-5b-Control")
INPAINT = ("Fun-2b-InP", "Fun-5b-InP", "Fun-V1.5-5b-InP")
# What the nodes do is the same for all: the one whose latents come in pairs in every run.
of_one_control = pytest.mark.parametrize("control", long_after(1, CONTROL[::-1]), indirect=True)
of_one_inpaint = pytest.mark.parametrize("inpaint", long_after(1, INPAINT[::-1]), indirect=True)
RUNS = {f"{sampler} {frames}": (sampler, frames) for sampler in ("ddim", "dpm") for frames in (9, 13)}
RANGE = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}


@pytest.fixture(params=CONTROL)
def control(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines[request.param])


@pytest.fixture(params=INPAINT)
def inpaint(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines[request.param])


def fun_control(task: Task, video: torch.Tensor, frames: int = 13, batch_size: int = 1, **inputs: Any) -> torch.Tensor:
    given: dict[str, Any] = RANGE | {
        key: inputs.pop(key) for key in list(inputs) if key in (*RANGE, "hold_last_frame", "width")
    }
    conditioned = task.condition("fun", "CogVideoXFunControl", frames, batch_size, control_video=video, **given)
    return task.sample(*conditioned, **inputs)


def fun_inpaint(task: Task, frames: int, sampler: str = "ddim", **inputs: Any) -> torch.Tensor:
    return task.sample(*task.condition("fun", "CogVideoXFunInpaint", frames, **inputs), sampler=sampler)


def with_channels(
    task: Task, monkeypatch: pytest.MonkeyPatch, sampler: str, channels: torch.Tensor, latent_frames: int
) -> torch.Tensor:
    """diffusers' image to video pipeline, given the channels to concatenate with the video, [1, C, T, h, w]."""
    from diffusers import CogVideoXImageToVideoPipeline as Pipeline

    def prepare(*args: object) -> tuple:
        generator = next(a for a in args if isinstance(a, torch.Generator))
        noise = torch.randn(1, channels.shape[2], 16, HEIGHT // 8, WIDTH // 8, generator=generator)
        return noise, channels.transpose(1, 2)

    monkeypatch.setattr(Pipeline, "prepare_latents", lambda self, *args: prepare(*args))
    frames, picture = 4 * latent_frames - 3, torch.zeros(1, 3, HEIGHT, WIDTH)
    out = task.reference(Pipeline.__name__, sampler, image=picture, num_frames=frames, num_inference_steps=6)
    return out[:, :, out.shape[2] - latent_frames :]


@pytest.mark.parametrize(("control", "dynamic_cfg"), long_but_one_in(2, CONTROL, (False, True)), indirect=["control"])
def test_control_equals_diffusers(control: Task, dynamic_cfg: bool) -> None:
    """The control video's latents must reach the model at the scale and place it was trained with."""
    video = pictures(13)
    got = fun_control(control, video, dynamic_cfg=dynamic_cfg)
    want = control.reference(
        "CogVideoXFunControlPipeline",
        "ddim",
        control_video=video.permute(0, 3, 1, 2)[None],
        num_inference_steps=6,
        use_dynamic_cfg=dynamic_cfg,
    )
    check_parity(f"Fun control, {control.folder.name}, ddim", got, want, 5e-6)


@pytest.mark.parametrize(("sampler", "frames"), long_but_one_in(2, ("dpm", "ddim"), (9, 13)))
def test_control_with_both_samplers(control: Task, sampler: str, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' Fun control pipeline fails with DPM and refuses odd counts on 1.5; here both run and are exact."""
    video, factor = pictures(frames), control.model.model.latent_format.scale_factor
    got = fun_control(control, video, frames, sampler=sampler)
    channels = control.vae.encode(video) * factor
    extra = -channels.shape[2] % (control.model.model.diffusion_model.config.patch_size_t or 1)
    channels = torch.cat([channels[:, :, :1]] * extra + [channels], dim=2)
    want = with_channels(control, monkeypatch, sampler, channels, (frames - 1) // 4 + 1)
    check_parity(f"Fun control, {sampler}, odd and even latent counts", got, want, 5e-6)


def test_control_at_another_size(tmp_path: Path) -> None:
    """Fun models take any multiple of 16."""
    with torch.inference_mode():
        task = Task(write_fp32(tmp_path, "Fun-5b-Control", seed=2))
        video = pictures(9, height=HEIGHT, width=144)
        got = fun_control(task, video, 9, width=144)
        want = task.reference(
            "CogVideoXFunControlPipeline",
            "ddim",
            control_video=video.permute(0, 3, 1, 2)[None],
            num_inference_steps=6,
            width=144,
        )
    check_parity("Fun control, another size", got, want, 5e-6)


@of_one_control
def test_control_strength_and_range(control: Task) -> None:
    """Strength 0 is no control; so is a range that no step falls into; half a range lies between."""
    video = pictures(13)
    cases: list[dict[str, Any]] = [
        {"strength": 0.0},
        {"start_percent": 0.999, "end_percent": 0.9991},
        {"end_percent": 0.5},
        {},
    ]
    none, empty, first_half, whole = (fun_control(control, video, **inputs) for inputs in cases)
    assert torch.equal(none, empty)
    assert relative_error(none, whole) > 1e-3
    assert relative_error(first_half, whole) > 1e-6 and relative_error(first_half, none) > 1e-6


@of_one_control
def test_short_control_video(control: Task) -> None:
    """Shorter than the clip: refused with the remedy, which then works."""
    with pytest.raises(UserError, match="control video has 5 frames, the clip 13.*hold_last_frame"):
        fun_control(control, pictures(5))
    held = torch.cat([pictures(5), pictures(5)[-1:].expand(8, -1, -1, -1)])
    assert torch.equal(fun_control(control, pictures(5), hold_last_frame=True), fun_control(control, held))
    with pytest.raises(UserError, match="no picture"):
        fun_control(control, torch.zeros(0, HEIGHT, WIDTH, 3))


@pytest.mark.parametrize(
    ("run", "known"), long_but_one_in(4, tuple(RUNS), ("nothing", "region", "start", "start and end"))
)
def test_inpaint_equals_its_formula(inpaint: Task, run: str, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked video is black where it is inpainted, the mask is 1 where it is known, both scaled; on diffusers'
    transformer and schedulers."""
    sampler, frames = RUNS[run]
    video, mask = pictures(frames), torch.ones(frames, HEIGHT, WIDTH)
    if known == "region":
        mask[:, :40] = 0.0
        given: dict[str, Any] = {"video": video, "mask": mask}
    else:
        given = {"start_image": video[:1]} if "start" in known else {}
        given |= {"end_image": video[-1:]} if "end" in known else {}
        mask[: len(given.get("start_image", ()))] = 0.0
        mask[frames - len(given.get("end_image", ())) :] = 0.0
    got = fun_inpaint(inpaint, frames, sampler, **given)

    latent_frames, factor = (frames - 1) // 4 + 1, inpaint.model.model.latent_format.scale_factor
    size = HEIGHT // 8, WIDTH // 8
    if known == "nothing":
        channels = torch.zeros(1, 17, latent_frames, *size)
    else:
        # [F, H, W, 3] -> [1, 3, F, H, W], -1 .. 1
        pixels = (2 * torch.where(mask[..., None] > 0.5, torch.zeros(()), video) - 1).permute(3, 0, 1, 2)[None]
        network: Any = inpaint.vae.first_stage_model
        latents = network.encode(pixels)
        is_known = 1 - mask[None, None]
        first = F.interpolate(is_known[:, :, :1], (1, *size), mode="trilinear")
        others = F.interpolate(is_known[:, :, 1:], (latent_frames - 1, *size), mode="trilinear")
        channels = torch.cat([torch.cat([first, others], dim=2), latents], dim=1) * factor
    extra = -latent_frames % (inpaint.model.model.diffusion_model.config.patch_size_t or 1)
    channels = torch.cat([channels[:, :, :1]] * extra + [channels], dim=2)
    want = with_channels(inpaint, monkeypatch, sampler, channels, latent_frames)
    check_parity(f"Fun inpaint, {inpaint.folder.name}, {sampler}", got, want, 5e-6)


@of_one_inpaint
def test_inpaint_noise_spares_what_is_masked(inpaint: Task) -> None:
    """Augmentation noise belongs on the pictures that are kept, by its seed."""
    images: dict[str, Any] = {"start_image": pictures(1)}
    latents = [
        inpaint.condition("fun", "CogVideoXFunInpaint", 9, **images, noise_augmentation=sigma, seed=seed)[0][0][1]
        for sigma, seed in ((0.0, 0), (0.0563, 0), (0.0563, 1))
    ]
    assert len({float(c["concat_latent_image"].sum()) for c in latents}) == 3
    assert all(torch.equal(c["cogvideox_known"], latents[0]["cogvideox_known"]) for c in latents)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"video": pictures(9), "mask": torch.ones(3, HEIGHT, WIDTH)}, "mask is 96 x 64 pixels with 3 frames"),
        ({"video": pictures(9), "mask": torch.ones(1, 30, 30)}, "mask is 30 x 30 pixels"),
        ({"mask": torch.ones(1, HEIGHT, WIDTH)}, "a mask and no video"),
        ({"video": pictures(5), "mask": torch.ones(1, HEIGHT, WIDTH)}, "video has 5 frames, the clip 9"),
        ({"start_image": pictures(10)}, "start_image has 10 pictures"),
        ({"video": torch.zeros(0, HEIGHT, WIDTH, 3)}, "no picture"),
    ],
)
def test_inpaint_refuses(inpaint: Task, inputs: dict, message: str) -> None:
    """What does not fit is said before the VAE runs."""
    with pytest.raises(UserError, match=message):
        fun_inpaint(inpaint, 9, **inputs)


@of_one_inpaint
def test_inpaint_keeps_the_latents_themselves(inpaint: Task) -> None:
    """With the video's own latent and the same mask, what is kept comes out to the bit, not only looking alike."""
    video, mask = pictures(9), torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, 48:] = 1.0
    positive, negative, _ = inpaint.condition("fun", "CogVideoXFunInpaint", 9, video=video, mask=mask)
    latent = inpaint.node("video", "CogVideoXEncodeVideo", vae=inpaint.vae, images=video, mask=mask)[0]
    got = inpaint.sample(positive, negative, latent)
    assert (got - latent["samples"])[..., :6].abs().max() < 1e-6 < (got - latent["samples"])[..., 6:].abs().max()


def test_inpaint_needs_something_to_do(inpaint: Task) -> None:
    """A video without a mask would come back as it is, after minutes."""
    with pytest.raises(UserError, match="there is nothing to inpaint"):
        fun_inpaint(inpaint, 9, video=pictures(9))


@pytest.mark.parametrize(("control", "inpaint"), long_but_one_in(3, CONTROL, INPAINT), indirect=True)
def test_one_models_conditioning_on_another(control: Task, inpaint: Task, tiny_pipelines: dict[str, Path]) -> None:
    """Image, control and inpaint models differ by a channel or nothing at all: the task decides."""
    image = inpaint.condition("image", "CogVideoXImageToVideo", 13, start_image=pictures(1))
    with pytest.raises(UserError, match="made for a start image; .*Control takes a control video"):
        control.sample(*image)
    with pytest.raises(UserError, match="made for a start image; .*InP takes a masked video"):
        inpaint.sample(*image)
    masked = inpaint.condition("fun", "CogVideoXFunInpaint", 13, start_image=pictures(1))
    with pytest.raises(UserError, match="made for a masked video"):
        control.sample(*masked)


def test_void_runs_with_comfyui_conditioning(tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's own VOID conditioning node drives a VOID checkpoint through our sampler; its sampler is refused."""
    void = pytest.importorskip("comfy_extras.nodes_void", reason=host_lacks("VOID nodes"))
    with torch.inference_mode():
        task = task_of(tiny_pipelines["VOID"])
        quadmask = torch.zeros(13, HEIGHT, WIDTH)
        quadmask[:, 20:40, 30:60] = 1.0
        conditioned = void.VOIDInpaintConditioning.execute(
            task.positive, task.negative, task.vae, pictures(13), quadmask, WIDTH, HEIGHT, 13, 1
        ).args
        got = task.sample(*conditioned)
        channels = conditioned[0][0][1]["concat_latent_image"] * 0.7
        check_parity("VOID", got, with_channels(task, monkeypatch, "ddim", channels, 4), 5e-6)

        from comfy_extras.nodes_custom_sampler import SamplerCustom

        sigmas = task.node("sample", "CogVideoXScheduler", model=task.model, steps=4, denoise=1.0)[0]
        with pytest.raises(UserError, match="belongs to ComfyUI's own CogVideoX loader.*instead of VOIDSampler"):
            stock: Any = SamplerCustom
            stock.execute(
                task.model, True, 1, 6.0, *conditioned[:2], void.VOIDSampler.execute().args[0], sigmas, conditioned[2]
            )
