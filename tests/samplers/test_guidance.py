"""Guidance rescale against diffusers' formula, and ComfyUI's node for it."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_extras.nodes_model_advanced import RescaleCFG

from cogvideox.model_loaders.load_model import load_model
from cogvideox.nodes.sample import CogVideoXDynamicCFG
from cogvideox.tests.support import check_parity, relative_error
from cogvideox.tests.tasks import Task, task_of
from cogvideox.tests.tiers import long_after, long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")


VARIANTS = ("5b", "2b", "1.5-5B")


@pytest.fixture(params=long_after(1, VARIANTS))
def task(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines[request.param])


def with_rescale(task: Task, monkeypatch: pytest.MonkeyPatch, sampler: str, rescale: float, **given: Any) -> Any:
    """diffusers' text to video pipeline with the two lines that its other video pipelines have behind guidance."""
    import diffusers
    from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg

    scheduler: Any = diffusers.CogVideoXDPMScheduler if sampler == "dpm" else diffusers.CogVideoXDDIMScheduler
    transformer: Any = diffusers.CogVideoXTransformer3DModel
    forward, step = transformer.forward, scheduler.step
    seen: list[torch.Tensor] = []

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        seen.append(out[0].float().chunk(2)[1])
        return out

    @functools.wraps(step)  # the pipeline looks for a generator among its parameters
    def rescaled(self: Any, noise_pred: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return step(self, rescale_noise_cfg(noise_pred, seen[-1], guidance_rescale=rescale), *args, **kwargs)

    monkeypatch.setattr(transformer, "forward", recorded)
    monkeypatch.setattr(scheduler, "step", rescaled)
    return task.reference("CogVideoXPipeline", sampler, num_inference_steps=6, **given)


@pytest.mark.parametrize("task", VARIANTS, indirect=True)
@pytest.mark.parametrize(("sampler", "dynamic_cfg"), long_but_one_in(2, ("ddim", "dpm"), (True, False)))
def test_rescale_is_diffusers(task: Task, sampler: str, dynamic_cfg: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deviation over the wrong dimensions, or of x0 instead of v, gives another contrast. Even counts of latents: an
    odd one's deviation would include the frame in front in both."""
    (latent,) = task.node("latent", "CogVideoXEmptyLatent", width=96, height=64, frames=13, batch_size=1)
    got = task.sample(
        task.positive, task.negative, latent, sampler=sampler, dynamic_cfg=dynamic_cfg, guidance_rescale=0.7
    )
    want = with_rescale(task, monkeypatch, sampler, 0.7, num_frames=13, use_dynamic_cfg=dynamic_cfg)
    check_parity(f"guidance rescale, {sampler}", got, want, 1e-4 if dynamic_cfg else 5e-6)
    plain = task.sample(task.positive, task.negative, latent, sampler=sampler, dynamic_cfg=dynamic_cfg)
    assert relative_error(got, plain) > 1e-3


def test_every_video_of_a_batch_by_itself(task: Task) -> None:
    """One loud video must not dim the others."""
    (latent,) = task.node("latent", "CogVideoXEmptyLatent", width=96, height=64, frames=13, batch_size=2)
    both = task.sample(task.positive, task.negative, latent, guidance_rescale=0.7)
    second = {**latent, "samples": latent["samples"][1:], "batch_index": [1]}
    assert relative_error(task.sample(task.positive, task.negative, second, guidance_rescale=0.7), both[1:]) < 5e-6


def test_the_part_for_stock_samplers(tiny_pipelines: dict[str, Path]) -> None:
    """CogVideoX Dynamic CFG offers it for KSampler: the same as CogVideoX Sampler's own."""
    task = task_of(tiny_pipelines["5b"])
    (latent,) = task.node("latent", "CogVideoXEmptyLatent", width=96, height=64, frames=13, batch_size=1)
    built_in = task.sample(task.positive, task.negative, latent, dynamic_cfg=True, guidance_rescale=0.5)
    patched = CogVideoXDynamicCFG.execute(task.model, 6, 6.0, 0.5).args[0]
    assert torch.equal(task.sample(task.positive, task.negative, latent, model=patched), built_in)
    plain = task.sample(task.positive, task.negative, latent)
    assert torch.equal(task.sample(task.positive, task.negative, latent, guidance_rescale=0.0), plain)


def test_comfyui_s_node_is_said_to_be_for_images(tiny_pipelines: dict[str, Path]) -> None:
    """RescaleCFG takes the deviation of each column of a video's latent: 1 to 2 % off, without a word."""
    told: list[str] = []
    task = Task(tiny_pipelines["5b"])
    task.model = load_model(tiny_pipelines["5b"], "fp32", told.append)
    (latent,) = task.node("latent", "CogVideoXEmptyLatent", width=96, height=64, frames=13, batch_size=1)
    ours = task.sample(task.positive, task.negative, latent, guidance_rescale=0.7)
    assert not told
    (patched,) = RescaleCFG().patch(task.model, 0.7)
    theirs = task.sample(task.positive, task.negative, latent, model=patched)
    assert relative_error(theirs, ours) > 1e-3
    assert len(told) == 1 and "guidance_rescale" in told[0]
