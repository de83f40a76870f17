"""Image to video, video to video and the Fun models on the real server: equal to diffusers from the published contract
alone, and at home among the stock nodes."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.tests.graphs import (
    LATENT,
    LATENTS,
    NEGATIVE,
    PIPELINE,
    PROMPT,
    SAMPLE,
    custom_sampling,
    node,
    patched,
    with_inputs,
    with_ksampler,
)
from cogvideox.tests.support import check_parity, relative_error, write_fp32
from cogvideox.tests.task_graphs import (
    CLIP,
    DPM_LATENTS,
    PICTURE,
    THE_CLIP,
    VAE,
    clip,
    eight_bit,
    fun_control,
    fun_inpaint,
    image_to_video,
    masked,
    saved_latent_only,
    video_to_video,
    with_dpm_too,
    write_lossless,
    write_picture,
)
from cogvideox.tests.tasks import SEED, Task, as_frames, pictures, posterior_mode  # noqa: F401
from cogvideox.tests.tiers import long_after, long_rows_after

TASKS = {
    "5b-I2V": image_to_video,
    "1.5-5B-I2V": image_to_video,
    "Fun-5b-InP": fun_inpaint,
    "Fun-V1.5-5b-InP": fun_inpaint,
    "Fun-5b-Control": fun_control,
}
SAMPLERS = {"CogVideoXSample": lambda graph: graph, "KSampler": with_ksampler}


@pytest.fixture(autouse=True)
def _media(media) -> None:
    """Every test begins with the same picture and clip."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As on the server: tiny tensors gain nothing from threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- against diffusers -----------------------------------------------------------------------------------------------


class Reference(Task):
    """diffusers' side alone; ours runs on the server."""

    def __init__(self, folder: Path):
        self.folder = folder


def write_unknown(comfyui, variant: str, frames: int) -> tuple[Path, dict]:
    """A checkpoint that is not in the repository, in the server's folder, and a size of video for it."""
    draw = random.Random(f"{variant}, {frames} frames")
    size = {"width": draw.choice((64, 80, 112, 128)), "height": draw.choice((48, 80, 96)), "frames": frames}
    overrides = {
        "num_attention_heads": draw.choice((1, 2, 3, 5)),
        "attention_head_dim": draw.choice((16, 32)),
        "num_layers": draw.choice((1, 3, 4)),
        "time_embed_dim": draw.choice((16, 48)),
        "text_embed_dim": draw.choice((24, 40)),
    }
    if variant == "1.5-5B-I2V":  # this embedding is added to the time's
        overrides["ofs_embed_dim"] = overrides["time_embed_dim"]
    if variant == "5b-I2V":  # its learned table fits one size
        learned = {"sample_width": size["width"] // 8, "sample_height": size["height"] // 8, "sample_frames": frames}
        overrides |= learned
    folder = comfyui.pipelines / f"unknown-{variant}-{frames}"
    return write_fp32(folder, variant, draw.randrange(1000), **overrides), size


def check_both_samplers(comfyui, what: str, graph: dict, folder: Path, pipeline: str, **arguments: object) -> None:
    """Run `graph` with ddim and with dpm and compare each with diffusers' pipeline."""
    ours = dict(zip(("ddim", "dpm"), comfyui.latents(with_dpm_too(graph), LATENTS, DPM_LATENTS)))
    for sampler, got in ours.items():
        prompt = graph[PROMPT]["inputs"]["text"]
        want = Reference(folder).reference(pipeline, sampler, prompt=prompt, **arguments)
        check_parity(f"server: {what}", got, want[:, :, want.shape[2] - got.shape[2] :], 5e-6)


@pytest.mark.parametrize(
    ("variant", "frames"),
    long_rows_after(2, [("5b-I2V", 9), ("1.5-5B-I2V", 13), ("5b-I2V", 13), ("1.5-5B-I2V", 9)]),
)
def test_image_to_video_equals_diffusers(comfyui, posterior_mode, variant, frames):  # noqa: F811
    """The contract's promise: whoever knows diffusers' video of a picture and a seed gets that very video here."""
    folder, size = write_unknown(comfyui, variant, frames)
    image = eight_bit(pictures(1, frames, size["height"], size["width"]))
    picture = write_picture(comfyui.base / "input" / f"{folder.name}.png", image)
    graph = image_to_video(folder.name, picture, size, seed=SEED, steps=4)
    arguments = {"num_frames": frames, "width": size["width"], "height": size["height"], "num_inference_steps": 4}
    image = image.permute(0, 3, 1, 2)
    what = f"image to video, {variant}"
    check_both_samplers(comfyui, what, graph, folder, "CogVideoXImageToVideoPipeline", image=image, **arguments)


@pytest.mark.parametrize(
    ("variant", "frames"),
    # diffusers: 1.5 takes even counts
    long_rows_after(3, [("2b", 13), ("5b", 9), ("1.5-5B", 5), ("2b", 9), ("5b", 13), ("1.5-5B", 13)]),
)
def test_video_to_video_equals_diffusers(comfyui, posterior_mode, variant, frames):  # noqa: F811
    """A changed video depends on every step from the file on: reading, encoding, the schedule's cut, the noise."""
    folder, size = write_unknown(comfyui, variant, frames)
    images = eight_bit(pictures(frames, frames, size["height"], size["width"]))
    video = write_lossless(comfyui.base / "input" / f"{folder.name}.mov", images)
    graph = video_to_video(folder.name, video, seed=SEED, steps=3, denoise=0.6)
    arguments = {"width": size["width"], "height": size["height"], "num_inference_steps": 5, "strength": 0.6}
    video, what = as_frames(images), f"video to video, {variant}"
    check_both_samplers(comfyui, what, graph, folder, "CogVideoXVideoToVideoPipeline", video=video, **arguments)


# --- stock samplers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant", long_after(3, ["1.5-5B-I2V", "Fun-5b-InP", "Fun-5b-Control", "5b-I2V", "Fun-V1.5-5b-InP"])
)
def test_custom_sampling_is_the_sampler_node(comfyui, variant):
    """The concat conditioning must survive the guider: SamplerCustomAdvanced gives the sampler node's video."""
    graph = TASKS[variant](folder_name(variant), sampler="dpm")
    assert torch.equal(comfyui.latent(custom_sampling(graph)), comfyui.latent(graph))


@pytest.mark.parametrize(
    "variant", long_after(3, ["5b-I2V", "Fun-V1.5-5b-InP", "Fun-5b-Control", "1.5-5B-I2V", "Fun-5b-InP"])
)
def test_ksampler(comfyui, variant):
    """The sampler of every workflow on the web: it runs, and the concatenated picture or video counts."""
    graph = with_ksampler(TASKS[variant](folder_name(variant)))
    source = CLIP if CLIP in graph else PICTURE
    other = graph | {"darker": node("ImageInvert", image=[source, 0])}
    (name,) = (name for name, link in graph[LATENT]["inputs"].items() if link == [source, 0])
    made, changed = comfyui.latent(graph), comfyui.latent(with_inputs(other, LATENT, **{name: ["darker", 0]}))
    assert made.shape == changed.shape == (1, 16, 3, 8, 12)
    assert made.isfinite().all() and changed.isfinite().all()
    assert relative_error(changed, made) > 1e-3


def test_one_of_a_batch(comfyui):
    """LatentFromBatch: the first of two videos of one picture is the video that a batch of one gives."""
    graph = image_to_video(folder_name("5b-I2V"))
    alone = comfyui.latent(graph)
    graph = with_inputs(graph, LATENT, batch_size=2) | {
        "first": node("LatentFromBatch", samples=[SAMPLE, 0], batch_index=0, length=1)
    }
    first = comfyui.latent(with_inputs(graph, LATENTS, samples=["first", 0]))
    assert relative_error(first, alone) < 1e-5


@pytest.mark.parametrize(
    ("variant", "sampler"),
    long_rows_after(
        2, [("1.5-5B", "CogVideoXSample"), ("5b", "KSampler"), ("5b", "CogVideoXSample"), ("1.5-5B", "KSampler")]
    ),
)
def test_mask_keeps_the_video(comfyui, variant, sampler):
    """SetLatentNoiseMask: a painted half changes, the other stays as it was encoded; also where CogVideoX 1.5 puts a
    frame in front of an odd count."""
    graph = masked(SAMPLERS[sampler](video_to_video(folder_name(variant))))
    graph["nine"] = node("ImageFromBatch", image=[CLIP, 0], batch_index=0, length=9)
    graph = with_inputs(graph, LATENT, images=["nine", 0])
    graph["given"] = node("SaveLatent", samples=[LATENT, 0], filename_prefix="given")
    made, given = comfyui.latents(graph, LATENTS, "given")
    assert (made - given)[..., :5].abs().max() < 1e-5  # the mask's edge lies between columns 5 and 6
    assert relative_error(made[..., 7:], given[..., 7:]) > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_continued_video_keeps_its_beginning(comfyui, sampler):
    """A clip that goes on from another: the frames they share stay, the others are painted."""
    graph = saved_latent_only(folder_name("5b")) | clip(THE_CLIP)
    graph[LATENT] = node("CogVideoXContinueVideo", vae=VAE, images=[CLIP, 0], frames=13, overlap=5)
    graph["encode"] = node("VAEEncode", pixels=[LATENT, 1], vae=VAE)
    graph["known"] = node("SaveLatent", samples=["encode", 0], filename_prefix="known")
    made, known = comfyui.latents(SAMPLERS[sampler](graph), LATENTS, "known")
    assert made.shape[2] == 4 and known.shape[2] == 2
    assert (made[:, :, :2] - known).abs().max() < 1e-5
    assert (made[:, :, 2:].std(dim=(1, 3, 4)) > 0.1).all()


# --- stock conditioning nodes ----------------------------------------------------------------------------------------


WALK, FOG = "A panda walks", "Fog over the sea"


def two_prompts(graph: dict, *prompts: tuple[str, float, float]) -> dict:
    """`graph` with two positive prompts, each for a range (start, end) of the run, combined."""
    added = {"combined": node("ConditioningCombine", conditioning_1=["range 0", 0], conditioning_2=["range 1", 0])}
    for i, (text, start, end) in enumerate(prompts):
        added[f"text {i}"] = node("CogVideoXEncodeText", clip=[PIPELINE, 1], text=text)
        added[f"range {i}"] = node("ConditioningSetTimestepRange", conditioning=[f"text {i}", 0], start=start, end=end)
    return with_inputs(graph, LATENT, positive=["combined", 0]) | added


@pytest.mark.parametrize(
    ("variant", "sampler"),
    long_rows_after(
        2,
        [
            ("1.5-5B-I2V", "CogVideoXSample"),
            ("Fun-5b-Control", "KSampler"),
            ("Fun-5b-Control", "CogVideoXSample"),
            ("1.5-5B-I2V", "KSampler"),
        ],
    ),
)
def test_prompt_after_prompt(comfyui, variant, sampler):
    """One prompt for the first half of the run and one for the second: neither alone, nor both all the time."""
    graph = SAMPLERS[sampler](TASKS[variant](folder_name(variant), steps=4))
    halves = comfyui.latent(two_prompts(graph, (WALK, 0.0, 0.5), (FOG, 0.5, 1.0)))
    others = [with_inputs(graph, PROMPT, text=text) for text in (WALK, FOG)]
    others.append(two_prompts(graph, (WALK, 0.0, 1.0), (FOG, 0.0, 1.0)))
    assert halves.isfinite().all()
    assert all(relative_error(halves, comfyui.latent(other)) > 1e-3 for other in others)


def test_range_over_the_whole_run_is_none(comfyui):
    """Limits that leave nothing out may not change the video; nor may the same prompt twice, averaged."""
    graph = with_inputs(image_to_video(folder_name("5b-I2V")), PROMPT, text=WALK)
    whole = node("ConditioningSetTimestepRange", conditioning=[LATENT, 0], start=0.0, end=1.0)
    ranged = comfyui.latent(with_inputs(graph, SAMPLE, positive=["whole", 0]) | {"whole": whole})
    plain = comfyui.latent(graph)
    twice = comfyui.latent(two_prompts(graph, (WALK, 0.0, 1.0), (WALK, 0.0, 1.0)))
    assert torch.equal(ranged, plain)
    assert relative_error(twice, plain) < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_prompts_combined(comfyui, sampler):
    """ConditioningCombine after the image node: both prompts count, each with its concatenated picture."""
    graph = SAMPLERS[sampler](image_to_video(folder_name("5b-I2V")))
    both = node("ConditioningCombine", conditioning_1=[LATENT, 0], conditioning_2=[LATENT, 1])
    combined = comfyui.latent(with_inputs(graph, SAMPLE, positive=["both", 0]) | {"both": both})
    assert combined.isfinite().all()
    assert relative_error(combined, comfyui.latent(graph)) > 1e-3


def test_zeroed_negative_keeps_the_picture(comfyui):
    """ConditioningZeroOut: another negative text than the empty prompt, and the start image is still concatenated."""
    graph = image_to_video(folder_name("5b-I2V"))
    zeroed = with_inputs(graph, SAMPLE, negative=["zero", 0])
    zeroed["zero"] = node("ConditioningZeroOut", conditioning=[LATENT, 1])
    made = comfyui.latent(zeroed)
    assert made.isfinite().all() and relative_error(made, comfyui.latent(graph)) > 1e-3
    # the same with the text zeroed before the picture is added
    before = with_inputs(graph, LATENT, negative=["zero", 0])
    before["zero"] = node("ConditioningZeroOut", conditioning=[NEGATIVE, 0])
    assert torch.equal(comfyui.latent(before), made)


# --- longer and larger than the model --------------------------------------------------------------------------------

WINDOWS = {"schedule": "standard_static", "fuse_method": "pyramid", "freenoise": True}
STOCK_WINDOWS = {
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "dim": 2,
    "freenoise": True,
    "cond_retain_index_list": "",
    "split_conds_to_windows": False,
    "latent_retain_index_list": "",
    "causal_window_fix": True,
}


@pytest.mark.parametrize("variant", ["5b", "1.5-5B"])
def test_context_windows_are_the_stock_ones(comfyui, variant):
    """Windows given in frames are the stock node's given in latents; they cover all of a longer video."""
    graph = with_inputs(saved_latent_only(folder_name(variant), steps=2), LATENT, frames=33)  # 9 latent frames
    ours = patched(graph, "CogVideoXContextWindows", context_frames=13, overlap_frames=8, **WINDOWS)
    stock = patched(graph, "ContextWindowsManual", context_length=4, context_overlap=2, **STOCK_WINDOWS)
    made = comfyui.latent(ours)
    assert made.shape[2] == 9
    assert made.isfinite().all() and (made.std(dim=(1, 3, 4)) > 0.1).all()
    assert torch.equal(made, comfyui.latent(stock))
    assert relative_error(made, comfyui.latent(graph)) > 0.01


@pytest.mark.parametrize("node_type", ["CogVideoXContextWindows", "ContextWindowsManual"])
def test_context_windows_in_image_to_video(comfyui, node_type):
    """A long video of a picture: the start image must be cut into windows as the video is, or be shown to each."""
    graph = image_to_video(folder_name("1.5-5B-I2V"), size={"frames": 33}, steps=2)
    ours = node_type == "CogVideoXContextWindows"
    size = {"context_frames": 13, "overlap_frames": 8} if ours else {"context_length": 4, "context_overlap": 2}
    windows = patched(graph, node_type, **size, **(WINDOWS if ours else STOCK_WINDOWS))
    retained = {"retain_start_image": True} if ours else {"cond_retain_index_list": "0"}
    made, shown = comfyui.latent(windows), comfyui.latent(with_inputs(windows, "patch", **retained))
    for latent in (made, shown):
        assert latent.shape[2] == 9
        assert latent.isfinite().all() and (latent.std(dim=(1, 3, 4)) > 0.1).all()
    assert relative_error(shown, made) > 1e-3


def test_riflex(comfyui):
    """A video long enough to repeat itself changes, by the stock sampler too; a shorter one stays as it is."""
    graph = with_ksampler(saved_latent_only(folder_name("5b"), steps=2))
    for frames, changes in ((9, False), (101, True)):  # 26 latent frames
        plain = with_inputs(graph, LATENT, frames=frames, width=32, height=32)
        riflex = patched(plain, "CogVideoXPositions", riflex=True, resample_table=False)
        assert (relative_error(comfyui.latent(riflex), comfyui.latent(plain)) > 1e-4) == changes, frames


def test_end_image_of_an_official_model_is_warned_of(comfyui) -> None:
    """The models were not trained for it and may end in grey: the running node must say so, not only the log."""
    graph = image_to_video(folder_name("5b-I2V"), steps=2)
    ending = with_inputs(graph, LATENT, end_image=graph[LATENT]["inputs"]["start_image"])
    told = {
        name: [text for node_id, text in comfyui.run(g).texts if node_id == SAMPLE]
        for name, g in (("plain", graph), ("ending", ending))
    }
    assert told["plain"] == []
    assert told["ending"] and "not trained for an end image" in told["ending"][0]
