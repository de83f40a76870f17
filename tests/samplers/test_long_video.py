"""Videos longer than a model's own: context windows and RIFLEx."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_model import load_model
from cogvideox.sockets.model import patch_positions
from cogvideox.tests.support import check_parity, reference_transformer, relative_error, write_fp32
from cogvideox.tests.tasks import HEIGHT, WIDTH, Task, pictures, task_of
from cogvideox.tests.tiers import long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
TASKS = {
    "5b": None,
    "1.5-5B": None,
    "1.5-5B-I2V": ("image", "CogVideoXImageToVideo", "start_image"),
    "Fun-5b-InP": ("fun", "CogVideoXFunInpaint", "start_image"),
    "Fun-5b-Control": ("fun", "CogVideoXFunControl", "control_video"),
}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines[request.param])


def conditioned(task: Task, frames: int) -> tuple:
    """positive, negative and latent of this model's task."""
    found = TASKS[task.folder.name]
    if found is None:
        latent = task.node("latent", "CogVideoXEmptyLatent", width=WIDTH, height=HEIGHT, frames=frames, batch_size=1)
        return task.positive, task.negative, latent[0]
    module, name, images = found
    given: dict[str, Any] = {images: pictures(frames if images == "control_video" else 1)}
    if images == "control_video":
        given |= {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    return task.condition(module, name, frames, **given)


def windowed(task: Task, context_frames: int = 9, overlap_frames: int = 4, **options: Any) -> Any:
    defaults = {"schedule": "standard_static", "fuse_method": "flat", "freenoise": False}
    return task.node(
        "long",
        "CogVideoXContextWindows",
        model=task.model,
        context_frames=context_frames,
        overlap_frames=overlap_frames,
        **defaults | options,
    )[0]


def seen_by(model: Any, note: Callable[[dict], object]) -> tuple[Any, list]:
    """A clone of `model` and a list that fills with note(arguments) of each of its calls."""
    watched, seen = model.clone(), []

    def watch(apply: Callable, arguments: dict) -> torch.Tensor:
        seen.append(note(arguments))
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    watched.set_model_unet_function_wrapper(watch)
    return watched, seen


def test_one_window_is_no_window(task: Task) -> None:
    """A video as short as the window must come out as without windows, to the bit."""
    given = conditioned(task, 9)
    plain, whole = task.sample(*given, steps=2), task.sample(*given, steps=2, model=windowed(task, 9, 4))
    assert torch.equal(plain, whole)


@pytest.mark.parametrize(("task", "sampler"), long_but_one_in(2, tuple(TASKS), ("ddim", "dpm")), indirect=["task"])
def test_every_window_sees_its_own_channels(task: Task, sampler: str) -> None:
    """Each window gets its slice of the image or control latents; none gets the start image again."""
    given = conditioned(task, 25)  # 7 latents
    whole, channels_of_all = seen_by(task.model, lambda a: a["c"].get("c_concat"))
    task.sample(*given, steps=1, cfg=1.0, model=whole)
    model, seen = seen_by(windowed(task), lambda a: (a["c"]["transformer_options"]["context_window"], a["c"]))
    out = task.sample(*given, steps=1, cfg=1.0, sampler=sampler, model=model)
    assert out.shape[2] == 7 and out.isfinite().all()
    assert len(seen) >= 3 and {i for window, _ in seen for i in window.index_list} >= set(range(7))
    for window, c in seen:
        anchor = getattr(window, "causal_anchor_index", -1)
        frames = ([anchor] if anchor is not None and anchor >= 0 else []) + window.index_list
        if channels_of_all[0] is None:
            assert "c_concat" not in c
        else:
            assert torch.equal(c["c_concat"], channels_of_all[0][:, :, frames])
            is_first = 0 in frames
            if TASKS[task.folder.name][2] == "start_image":
                assert (c["c_concat"][:, -16:].abs().amax((0, 1, 3, 4)) > 0.2)[0] == is_first or not is_first


def test_video_to_video_in_windows(tiny_pipelines: dict[str, Path]) -> None:
    """A long video is changed window by window, each from its own noisy frames, and keeps its length."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b"])
        latent = task.node("video", "CogVideoXEncodeVideo", vae=task.vae, images=pictures(25))[0]
        plain, inputs = seen_by(task.model, lambda a: a["input"])
        task.sample(task.positive, task.negative, latent, steps=1, cfg=1.0, denoise=0.5, model=plain)
        model, seen = seen_by(windowed(task), lambda a: (a["c"]["transformer_options"]["context_window"], a["input"]))
        out = task.sample(task.positive, task.negative, latent, steps=1, cfg=1.0, denoise=0.5, model=model)
        assert out.shape == latent["samples"].shape and len(seen) > 1
        for window, x in seen:
            assert torch.equal(x[:, :, -len(window.index_list) :], inputs[0][:, :, window.index_list])
        near = task.sample(task.positive, task.negative, latent, steps=2, denoise=0.05, model=windowed(task))
        assert relative_error(near, latent["samples"]) < relative_error(out, latent["samples"])


def test_start_image_for_every_window_when_asked(tiny_pipelines: dict[str, Path]) -> None:
    """retain_start_image puts the image's latent into every window's first frame."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["1.5-5B-I2V"])
        given = conditioned(task, 25)
        model, seen = seen_by(windowed(task, retain_start_image=True), lambda a: a["c"]["c_concat"][:, :, 0])
        task.sample(*given, steps=1, cfg=1.0, model=model)
        assert len(seen) > 1 and all(torch.equal(first, seen[0]) for first in seen)


def test_a_window_is_the_plain_model_on_its_frames(tiny_pipelines: dict[str, Path]) -> None:
    """Windows side by side, one step: each one's frames are what a plain run makes of them and the frame before."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b"])
        given = conditioned(task, 21)  # 6 latents, windows 0..2 and 3..5
        model, inputs = seen_by(windowed(task, 9, 0, schedule="batched"), lambda a: (a["input"], a["timestep"]))
        got = task.sample(*given, steps=1, cfg=1.0, model=model)
        base = task.model.model
        scale = base.latent_format.scale_factor
        context = task.positive[0][0]
        for (x, timestep), frames in zip(inputs, (slice(0, 3), slice(3, 6))):
            # x0 = -v at zero terminal SNR
            unit = base.model_sampling.calculate_input(timestep, x)
            v = base.diffusion_model(unit, base.model_sampling.timestep(timestep).float(), context=context)
            assert relative_error(got[:, :, frames], -v[:, :, -3:] / scale) < 2e-6


def test_prompts_follow_each_other(tiny_pipelines: dict[str, Path]) -> None:
    """With split_prompts the first windows see the first prompt and the last windows the last one."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b"])
        _, _, latent = conditioned(task, 25)
        first, second = task.positive, task.negative
        model, seen = seen_by(
            windowed(task, split_prompts=True),
            lambda a: (a["c"]["transformer_options"]["context_window"].index_list[0], a["c"]["c_crossattn"]),
        )
        task.sample(first + second, first, latent, steps=1, cfg=1.0, model=model)
        prompts = [torch.equal(text, first[0][0]) for _, text in sorted(seen, key=lambda pair: pair[0])]
        assert prompts == sorted(prompts, reverse=True) and True in prompts and False in prompts


def test_free_noise_shuffles_the_first_window(tiny_pipelines: dict[str, Path]) -> None:
    """FreeNoise: the frames beyond the window carry the window's noise again, in another order."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b"])
        given = conditioned(task, 25)
        noises = []
        for freenoise in (False, True):
            model, seen = seen_by(windowed(task, 9, 0, schedule="batched", freenoise=freenoise), lambda a: a["input"])
            task.sample(*given, steps=1, cfg=1.0, model=model)
            noises.append([x[:, :, -3:] for x in seen])
        plain, shuffled = noises
        assert torch.equal(plain[0], shuffled[0])
        assert not torch.equal(plain[1], shuffled[1])
        for frame in shuffled[1].unbind(2):
            assert any(torch.equal(frame, of_first) for of_first in shuffled[0].unbind(2))


def test_learned_table_in_windows_of_its_own_length(tiny_pipelines: dict[str, Path]) -> None:
    """CogVideoX-5b-I2V makes longer videos in windows of exactly its table's length; another length is refused."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b-I2V"])
        given = task.condition("image", "CogVideoXImageToVideo", 25, start_image=pictures(1))
        assert task.sample(*given, steps=2, model=windowed(task, 9, 4)).shape[2] == 7
        stock = windowed(task, 9, 4)
        stock.model_options["context_handler"].causal_window_fix = True  # as ContextWindowsManual has it
        for model in (windowed(task, 13, 4), windowed(task, 9, 0, schedule="batched"), stock):
            watched, calls = seen_by(model, lambda a: a)
            with pytest.raises(UserError, match="learned position table"):
                task.sample(*given, steps=2, model=watched)
            assert not calls


def test_options_that_an_older_comfyui_lacks_are_said(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host without them they would be switched on and do nothing."""
    import comfy.context_windows as windows

    class OlderHandler(windows.IndexListContextHandler):
        def __init__(self, context_schedule, fuse_method, context_length=1, context_overlap=0, dim=0, freenoise=False):
            super().__init__(context_schedule, fuse_method, context_length, context_overlap, dim=dim)

    monkeypatch.setattr(windows, "IndexListContextHandler", OlderHandler)
    assert windowed(task).model_options["context_handler"].dim == 2
    with pytest.raises(UserError, match="have no split_conds_to_windows yet. Update ComfyUI"):
        windowed(task, split_prompts=True)


@pytest.mark.parametrize(
    ("context", "overlap", "words"),
    (
        (10, 4, "are not possible"),
        (1, 0, "context_frames is 1: use 5 to 1025"),
        (9, 8, "are not possible"),
        (9, -4, "overlap_frames is -4: use 0 to 1025"),
    ),
)
def test_impossible_windows_are_refused(task: Task, context: int, overlap: int, words: str) -> None:
    """Said by the node, not by an endless or empty run."""
    with pytest.raises(UserError, match=words):
        windowed(task, context, overlap)


def slowed_rotary(model: Any, grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' tables with RIFLEx's change, for a tiny head: its slow pair is the first, with a period of 6."""
    from diffusers import CogVideoXPipeline

    class Parts:
        vae_scale_factor_spatial, transformer = 8, model

    parts: Any = Parts
    frames, height, width = grid
    cos, sin = CogVideoXPipeline._prepare_rotary_positional_embeddings(
        parts, height * 16, width * 16, frames * (model.config.patch_size_t or 1), torch.device("cpu")
    )
    angle = torch.arange(frames).repeat_interleave(height * width)[:, None] * (0.9 * 2 * torch.pi / frames)
    cos[:, :2], sin[:, :2] = angle.cos(), angle.sin()
    return cos, sin


@pytest.mark.parametrize("variant", ("5b", "1.5-5B"))
def test_riflex_equals_its_formula(variant: str, tmp_path: Path) -> None:
    """One frequency of time, slowed to 0.9 of a turn over the whole video."""
    folder = write_fp32(tmp_path, variant)
    theirs, model = reference_transformer(folder), load_model(folder, "fp32")
    patched = patch_positions(model, riflex=True, resample=False)
    generator = torch.Generator().manual_seed(1)
    frames = 16
    x = torch.randn(1, 16, frames, 8, 12, generator=generator)
    context, timestep = torch.randn(1, 226, 32, generator=generator), torch.tensor([500])
    grid = frames // (theirs.config.patch_size_t or 1), 4, 6
    with torch.inference_mode():
        want = theirs(x.transpose(1, 2), context, timestep, image_rotary_emb=slowed_rotary(theirs, grid)).sample
        ours = model.model.diffusion_model
        got = ours(x, timestep, context=context, transformer_options=patched.model_options["transformer_options"])
        plain = ours(x, timestep, context=context)
    check_parity("RIFLEx", got, want.transpose(1, 2), 2e-6)
    assert relative_error(got, plain) > 1e-3


def test_riflex_leaves_short_videos_alone(tiny_pipelines: dict[str, Path]) -> None:
    """Within the period nothing repeats, and nothing may change."""
    with torch.inference_mode():
        task = task_of(tiny_pipelines["5b"])
        model = task.node("long", "CogVideoXPositions", model=task.model, riflex=True, resample_table=False)[0]
        given = conditioned(task, 9)
        assert torch.equal(task.sample(*given, steps=2), task.sample(*given, steps=2, model=model))


def test_positions_that_a_model_lacks_are_refused(tiny_pipelines: dict[str, Path]) -> None:
    """An option without effect would look like one that works."""
    with torch.inference_mode():
        two_b = load_model(tiny_pipelines["2b"], "fp32")
        with pytest.raises(UserError, match="no rotary positions"):
            patch_positions(two_b, riflex=True, resample=False)
        with pytest.raises(UserError, match="no learned position table"):
            patch_positions(two_b, riflex=False, resample=True)
