"""Whole workflows on the real server: what comes out, and what a user sees while they run."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.devtools.run_workflow import Video, inspect_video
from cogvideox.tests.graphs import (
    DECODE,
    FPS,
    HEIGHT,
    IMAGES,
    LATENT,
    LATENTS,
    PIPELINE,
    SAMPLE,
    VIDEO,
    WIDTH,
    node,
    text_to_video,
    with_inputs,
)
from cogvideox.tests.support import TEXT_TO_VIDEO, relative_error
from cogvideox.tests.tiers import long_rows_after


@pytest.mark.parametrize(
    ("variant", "frames"),
    long_rows_after(3, [("2b", 17), ("5b", 9), ("1.5-5B", 17), ("2b", 9), ("5b", 17), ("1.5-5B", 9)]),
)
def test_text_to_video(comfyui, variant, frames):
    """The product: a graph built from the contract alone gives an mp4 of the size, length and speed asked for."""
    made = comfyui.make(text_to_video(folder_name(variant), frames), (IMAGES, LATENTS, VIDEO))
    assert made.frames.shape == (frames, HEIGHT, WIDTH, 3)
    assert inspect_video(made.video) == Video(frames, WIDTH, HEIGHT, FPS)
    assert made.latent.shape == (1, 16, (frames - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    assert_picture(made.frames)


@pytest.mark.parametrize(
    "weight_dtype, variant",
    long_rows_after(4, itertools.product(["default", "fp8_e4m3fn", "bf16", "fp16"], TEXT_TO_VIDEO)),
)
def test_every_precision_makes_the_same_video(comfyui, variant, weight_dtype):
    """A precision that overflows or scales wrongly shows as another, black or grey video."""
    exact = comfyui.latent(text_to_video(folder_name(variant), weight_dtype="fp32"))
    made = comfyui.make(text_to_video(folder_name(variant), weight_dtype=weight_dtype))
    assert_picture(made.frames)
    # measured: fp16 up to 1.1e-6, bf16 7e-3 (0 where the weights are bf16 on disk), fp8 2.6e-2; another seed 1.1
    assert relative_error(made.latent, exact) < 0.06


@pytest.mark.parametrize(
    ("sampler", "dynamic_cfg"), long_rows_after(2, [("ddim", False), ("dpm", True), ("dpm", False), ("ddim", True)])
)
def test_both_samplers_with_and_without_dynamic_guidance(comfyui, sampler, dynamic_cfg):
    """An option without effect, or with one that breaks the run, would only be seen in an hour-long run."""
    made = comfyui.make(text_to_video(sampler=sampler, dynamic_cfg=dynamic_cfg))
    assert_picture(made.frames)
    for other in ({"sampler": "ddim" if sampler == "dpm" else "dpm"}, {"dynamic_cfg": not dynamic_cfg}):
        changed: dict[str, Any] = {"sampler": sampler, "dynamic_cfg": dynamic_cfg} | other
        assert relative_error(comfyui.latent(text_to_video(**changed)), made.latent) > 0.01, changed


def test_batch_is_one_video_after_the_other(comfyui):
    """Frames of two videos that take turns, or the same video twice, make a batch useless."""
    graph = text_to_video(batch_size=2)
    both = comfyui.make(graph, (IMAGES, VIDEO))
    assert both.frames.shape == (18, HEIGHT, WIDTH, 3)
    assert inspect_video(both.video).frames == 18
    first, second = both.frames[:9], both.frames[9:]
    assert np.abs(first.astype(int) - second).mean() > 10
    graph["second"] = node("LatentFromBatch", samples=[SAMPLE, 0], batch_index=1, length=1)
    alone = comfyui.make(with_inputs(graph, DECODE, samples=["second", 0])).frames
    assert np.abs(alone.astype(int) - second).max() <= 1


def test_denoise_keeps_some_of_the_latent(comfyui):
    """Video to video: below 1 the result lies the nearer to what it started from, at 0 it is just that."""
    start = text_to_video(seed=5, steps=3)
    given = comfyui.latent(start)
    distance = []
    for denoise in (0.0, 0.2, 0.8):
        graph = start | {"first": start[SAMPLE]}
        changes = {"latent_image": ["first", 0], "seed": 6, "denoise": denoise, "steps": 2}
        distance.append(relative_error(comfyui.latent(with_inputs(graph, SAMPLE, **changes)), given))
    assert distance[0] == 0
    assert 0.01 < distance[1] < distance[2]


@pytest.mark.fast
def test_progress_and_previews(comfyui):
    """A run takes an hour on a small card: without a moving bar and pictures nobody knows whether it works."""
    steps = 5
    result = comfyui.run(text_to_video(seed=77, steps=steps, frames=17))
    assert [(id_, value, most) for id_, value, most in result.progress if id_ == SAMPLE] == [
        (SAMPLE, step, steps) for step in range(1, steps + 1)
    ]
    pictures = [Image.open(io.BytesIO(image)).convert("RGB") for id_, image in result.previews if id_ == SAMPLE]
    assert len(pictures) >= steps  # the clip plays between two steps
    assert all(abs(picture.width / picture.height - WIDTH / HEIGHT) < 0.01 for picture in pictures)
    first, last = (np.asarray(picture, dtype=int) for picture in (pictures[0], pictures[-1]))
    assert last.std() > 5 and np.abs(first - last).mean() > 1


def test_checkpoint_put_there_while_the_server_runs(comfyui):
    """Nobody restarts ComfyUI after a download: pressing R must be enough."""
    assert "later" not in comfyui.offered("CogVideoXLoadPipeline", "folder")
    (comfyui.pipelines / "later").symlink_to(comfyui.pipeline(folder_name("5b")), target_is_directory=True)
    assert "later" in comfyui.offered("CogVideoXLoadPipeline", "folder")
    assert_picture(comfyui.make(text_to_video("later")).frames)


def test_parts_loaded_one_by_one_make_the_same_video(comfyui):
    """The single loaders are how a bigger text encoder or another VAE comes in: they may change nothing else."""
    name, graph = folder_name("2b"), text_to_video(folder_name("2b"))
    loaders = {
        "model": node("CogVideoXLoadModel", model_name=name, weight_dtype="default"),
        "clip": node("CogVideoXLoadTextEncoder", text_encoder_name=name, weight_dtype="default"),
        "vae": node("CogVideoXLoadVAE", vae_name=name, weight_dtype="default"),
    }
    parts = {repr([PIPELINE, slot]): [part, 0] for slot, part in enumerate(loaders)}
    rewired = {
        id_: node(n["class_type"], **{k: parts.get(repr(v), v) for k, v in n["inputs"].items()})
        for id_, n in graph.items()
        if id_ != PIPELINE
    }
    whole, apart = comfyui.make(graph), comfyui.make(rewired | loaders)
    assert torch.equal(apart.latent, whole.latent)
    assert np.array_equal(apart.frames, whole.frames)


def test_empty_latent_of_any_model_makes_one_frame(comfyui):
    """An image workflow with the model exchanged runs: ComfyUI gives an empty latent the model's own channels."""
    graph = text_to_video() | {LATENT: node("EmptyLatentImage", width=WIDTH, height=HEIGHT, batch_size=1)}
    made = comfyui.make(graph)
    assert made.frames.shape == (1, HEIGHT, WIDTH, 3)
    assert made.latent.shape == (1, 16, 1, HEIGHT // 8, WIDTH // 8)


def assert_picture(frames: np.ndarray) -> None:
    """Neither black nor grey nor standing still. (PNGs hold no NaN: those come out black.)"""
    assert frames.std() > 10
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 1
