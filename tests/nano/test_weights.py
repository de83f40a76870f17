"""CogVideoX-nano's committed weights: small, exact, and painting what prompts say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cogvideox.host import toy
from cogvideox.model_loaders.lora.apply import apply_lora
from cogvideox.nano import folders, paint, score, tasks
from cogvideox.nano.captions import caption
from cogvideox.nano.folders import VARIANTS, WEIGHTS
from cogvideox.nano.world import Scene, draw_scene
from cogvideox.tests.score_table import score_table
from cogvideox.tests.support import check_parity, reference_pipeline

PROMPTS, STEPS, SCENES = 12, 14, 6  # the benchmark takes 200 and 50
LIMIT_BYTES = 32e6


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("nano")
    return {variant: folders.write_pipeline(root / variant, variant) for variant in VARIANTS}


def shares(
    pipeline: paint.Pipeline, settings: paint.Settings, from_image: bool = False, count: int = PROMPTS
) -> dict[str, float]:
    """Scores of prompts of another seed than the benchmark's, and the mean PSNR of the first frames."""
    requests = paint.held_out_requests(2026, count, settings)
    clips = paint.paint(pipeline, requests, settings, tasks.from_image if from_image else paint.from_text)
    found = score.score_clips(clips, [request.scene for request in requests])
    first_frame_db = float(np.mean([score.psnr_db(clip[0], r.truth[0] / 255) for clip, r in zip(clips, requests)]))
    print(score_table({"": found}), f"first frame {first_frame_db:.1f} dB")
    return found | {"first_frame_db": first_frame_db}


def test_all_parts_together_are_small() -> None:
    """Every clone of the pack downloads them."""
    files = [load_file(path) for path in WEIGHTS.rglob("*.safetensors")]
    assert len(files) == len(VARIANTS) + len(toy.LISTED["controlnet"]) + len(toy.LISTED["lora"]) + 2
    tensors = [tensor for file in files for tensor in file.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert sum(tensor.nbytes for tensor in tensors) <= LIMIT_BYTES


def test_text_to_video_paints_what_the_prompt_says(pipelines: dict[str, Path]) -> None:
    """The demo's promise, on combinations that training never showed."""
    found = shares(paint.load_pipeline(pipelines["5b"]), paint.Settings(steps=10), count=10)
    assert found["colour"] >= 0.9 and found["direction"] >= 0.9 and found["shape"] >= 0.8


def test_the_lora_paints_a_colour_that_the_model_never_saw(pipelines: dict[str, Path]) -> None:
    """The LoRA that comes with the pack, through Load CogVideoX LoRA, for prompts that none of its clips had."""
    plain = paint.load_pipeline(pipelines["5b"])
    scenes = [draw_scene(np.random.default_rng([99, index]), colour="pink") for index in range(SCENES)]
    requests = [
        paint.Request(scene, caption(scene, np.random.default_rng(index)), np.empty(0))
        for index, scene in enumerate(scenes)
    ]
    file = WEIGHTS / toy.LISTED["lora"]["CogVideoX-nano pink"]
    taught = paint.Pipeline(apply_lora(plain.model, file, 1.0)[0], plain.clip, plain.vae)
    pink = {}
    for name, pipeline in {"without": plain, "with": taught}.items():
        count = SCENES if name == "with" else 2  # of the plain model none is pink
        clips = paint.paint(pipeline, requests[:count], paint.Settings(steps=10))
        pink[name] = score.score_clips(clips, scenes[:count])["colour"]
    assert pink["without"] == 0 and pink["with"] >= 0.8, pink


@pytest.mark.long  # its sampler is compared with diffusers in tests/samplers
@pytest.mark.parametrize("variant", [name for name in ("2b", "1.5-5B") if name in VARIANTS])
def test_other_families_paint_what_the_prompt_says(pipelines: dict[str, Path], variant: str) -> None:
    """1.5: frame pairs and the odd latent in front, another path through the sampler. 2b: a table of positions and a
    noise schedule of its own."""
    found = shares(paint.load_pipeline(pipelines[variant]), paint.Settings(steps=STEPS))
    assert found["colour"] >= 0.9 and found["direction"] >= 0.85 and found["shape"] >= 0.75


@pytest.mark.long  # its channels are compared with diffusers in tests/samplers
@pytest.mark.parametrize(("name", "least_db"), [("image to video", 28), ("1.5, image to video", 26)])
def test_image_to_video_keeps_the_picture_and_moves_as_told(
    pipelines: dict[str, Path], name: str, least_db: float
) -> None:
    task = tasks.TASKS[name]
    settings = replace(paint.Settings(steps=STEPS), **task.changes)
    found = shares(paint.load_pipeline(pipelines[task.variant]), settings, from_image=True)
    assert found["first_frame_db"] >= least_db and found["direction"] >= 0.85


# Task -> what it must reach at least, on a dozen prompts; `bench nano` has the scores.
LEAST: dict[str, dict[str, float]] = {
    "start and end image": {"first frame dB": 24, "last frame dB": 23, "direction": 0.8},
    "region": {"rest dB": 32, "colour": 0.8},
    "edges, Fun Control": {"edges IoU": 0.6, "colour": 0.9},
    "edges, control net": {"edges IoU": 0.6, "colour": 0.9},
    "video to video, denoise 0.6": {"colour": 0.8, "direction": 0.8},
    "inversion edit": {"colour": 0.8, "direction": 0.8},
    # Half of the joins jump: a motion of this world fills a clip, so that a part of one is new to the toy.
    "extend": {"no jump": 0.4, "colour": 0.9},
}


@pytest.mark.long  # the nodes are compared with diffusers in tests/samplers
@pytest.mark.parametrize("name", LEAST)
def test_a_task_paints_what_it_is_told(pipelines: dict[str, Path], name: str) -> None:
    """The templates' pictures: numbers that equal a reference's do not show that a video is any good."""
    task = tasks.TASKS[name]
    settings = replace(paint.Settings(steps=20), **task.changes)
    requests = paint.held_out_requests(2026, PROMPTS, settings)
    pipeline = paint.load_pipeline(pipelines[task.variant])
    clips = paint.paint(pipeline, requests, settings, task.prepare, paint.BATCH if task.batched else 1)
    judged = [task.judge(clip, request) for clip, request in zip(clips, requests)]
    reached = {figure: float(np.nanmean([one[figure] for one in judged])) for figure in LEAST[name]}
    assert all(reached[figure] >= least for figure, least in LEAST[name].items()), reached


def test_the_rhythm_of_the_vae_is_no_jump(pipelines: dict[str, Path]) -> None:
    """The first of its every four frames differs most from the one before, in a clip that moves evenly as well."""
    vae = paint.load_pipeline(pipelines["5b"]).vae
    for request in paint.held_out_requests(7, 2, paint.Settings(frames=29)):
        assert tasks.is_smooth(vae.decode(vae.encode(tasks.pictures(request.truth)))[0].numpy())


def test_a_trained_model_gives_diffusers_latents(pipelines: dict[str, Path]) -> None:
    """Random weights may hide what trained ones show: the same prompt and seed through diffusers' own pipeline."""
    prompt, settings = "a big red star moves to the left on a white background", paint.Settings(steps=8, seed=3, cfg=6)
    reference: Any = reference_pipeline(pipelines["5b"])
    theirs = reference(
        prompt,
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=8,
        guidance_scale=6.0,
        generator=torch.Generator("cpu").manual_seed(3),
        max_sequence_length=32,
        output_type="latent",
    ).frames
    scene = Scene("star", "red", "large", "left", ("white",))
    request = paint.Request(scene, prompt, np.empty(0))
    ours = paint.sample(
        [paint.from_text(paint.load_pipeline(pipelines["5b"], "fp32"), request, settings)], settings, settings.seed
    )
    theirs = theirs.transpose(1, 2) / 0.7
    # 4.0e-6 was seen. From the same run in fp64 diffusers' differs by 3.0e-6 and ours by 3.5e-6: trained weights and
    # cfg 6 amplify the rounding of fp32, which differs from processor to processor.
    check_parity("CogVideoX-nano, text to video with DDIM", ours, theirs, 1e-5)
