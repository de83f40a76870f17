"""ComfyUI's EasyCache and LazyCache on videos that are sampled in context windows."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.context_windows
import comfy.patcher_extension
import comfy_extras.nodes_easycache as easycache
import pytest
import torch

from cogvideox.tests.support import relative_error
from cogvideox.tests.tasks import HEIGHT, WIDTH, Task, pictures, task_of
from cogvideox.tests.tiers import long_after, long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
FRAMES, STEPS = 25, 10  # 7 latents in windows of 3 with an overlap of 1, most of them with one more frame in front
VARIANTS = ("5b", "1.5-5B", "1.5-5B-I2V")
ORDERS = ("cache first", "windows first")


@pytest.fixture(params=VARIANTS)
def task(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines[request.param])


def windowed(task: Task, model: Any, schedule: str = "standard_static") -> Any:
    """A clone that is sampled window by window, by the pack's node."""
    options = {"schedule": schedule, "fuse_method": "pyramid", "freenoise": True}
    return task.node("long", "CogVideoXContextWindows", model=model, context_frames=9, overlap_frames=4, **options)[0]


def cached(model: Any, threshold: float = 0.5, node: Any = easycache.EasyCacheNode) -> Any:
    """A clone with a cache that may skip every step but the first ones."""
    return node.execute(model, threshold, 0.0, 1.0, False).args[0]


def sampled(task: Task, model: Any) -> tuple[torch.Tensor, int]:
    """The latents, and how many times the transformer was run."""
    if task.folder.name.endswith("I2V"):
        given = task.condition("image", "CogVideoXImageToVideo", FRAMES, start_image=pictures(1))
    else:
        latent = task.node("latent", "CogVideoXEmptyLatent", width=WIDTH, height=HEIGHT, frames=FRAMES, batch_size=1)
        given = task.positive, task.negative, latent[0]
    runs = []
    blocks = model.model.diffusion_model.transformer_blocks
    handle = blocks[0].attn1.norm_q.register_forward_hook(lambda *_: runs.append(1))
    try:
        return task.sample(*given, model=model, steps=STEPS), len(runs)
    finally:
        handle.remove()


def with_caches_by_hand(model: Any) -> Any:
    """A clone in which the context windows themselves exchange EasyCache's state, and none of the pack's code does."""
    model = cached(model)
    key, wrappers = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "cogvideox"
    model.remove_wrappers_with_key(key, wrappers)
    states: dict[tuple[int, ...], Any] = {}

    def take_state(*arguments: Any) -> None:
        window, options = arguments[7], arguments[8]["transformer_options"]
        frames = tuple(window.index_list)
        if frames not in states:
            states[frames] = options["easycache"].clone().prepare_timesteps(model.model.model_sampling)
        options["easycache"] = states[frames]

    callbacks = model.model_options["context_handler"].callbacks
    callback = comfy.context_windows.IndexListCallbacks.EVALUATE_CONTEXT_WINDOWS
    comfy.patcher_extension.add_callback(callback, take_state, callbacks)
    return model


@pytest.mark.parametrize(("task", "order"), long_but_one_in(2, VARIANTS, ORDERS), indirect=["task"])
def test_each_window_has_a_cache_of_its_own(task: Task, order: str) -> None:
    """EasyCache skips steps of each window by that window's own last step. With one cache for all windows it ended in
    an error about tensor sizes, or added one window's change to another."""
    plain, all_runs = sampled(task, windowed(task, task.model))
    model = cached(windowed(task, task.model)) if order == ORDERS[1] else windowed(task, cached(task.model))
    got, runs = sampled(task, model)
    want, wanted_runs = sampled(task, with_caches_by_hand(windowed(task, task.model)))
    assert torch.equal(got, want) and runs == wanted_runs < all_runs
    assert 1e-6 < relative_error(got, plain) < 0.5
    # The cache of the node itself stays as the next run needs it.
    assert not hasattr(model.model_options["transformer_options"]["easycache"], "cogvideox_own")
    assert torch.equal(sampled(task, model)[0], got)


@pytest.mark.parametrize("schedule", long_after(2, ("looped_uniform", "batched", "standard_uniform")))
def test_every_schedule_of_windows(tiny_pipelines: dict[str, Path], schedule: str) -> None:
    """Windows that move from step to step, or a shorter one at the end."""
    task = task_of(tiny_pipelines["5b"])
    plain, all_runs = sampled(task, windowed(task, task.model, schedule))
    got, runs = sampled(task, cached(windowed(task, task.model, schedule)))
    assert runs <= all_runs and relative_error(got, plain) < 0.5
    exact, runs = sampled(task, cached(windowed(task, task.model, schedule), threshold=0.0))
    assert torch.equal(exact, plain) and runs == all_runs


def test_the_log_counts_steps(tiny_pipelines: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """EasyCache's line at the end of a run counts each step once, not once for each window."""
    task = task_of(tiny_pipelines["5b"])
    with caplog.at_level(logging.INFO):
        _, runs = sampled(task, cached(windowed(task, task.model)))
    (line,) = [record.message for record in caplog.records if "EasyCache - skipped" in record.message]
    skipped = int(line.split("skipped ")[1].split("/")[0])
    assert 0 < skipped < STEPS and f"/{STEPS} steps" in line


def test_lazy_cache_and_a_short_video(tiny_pipelines: dict[str, Path]) -> None:
    """What worked before works as before: LazyCache, which keeps a whole prediction, and a video in one window."""
    task = task_of(tiny_pipelines["5b"])
    plain, all_runs = sampled(task, windowed(task, task.model))
    got, runs = sampled(task, cached(windowed(task, task.model), node=easycache.LazyCacheNode))
    assert runs < all_runs and got.isfinite().all() and not torch.equal(got, plain)
    one_window: Callable[[Any], Any] = lambda model: task.node(  # noqa: E731
        "long",
        "CogVideoXContextWindows",
        model=model,
        context_frames=FRAMES,
        overlap_frames=4,
        schedule="standard_static",
        fuse_method="flat",
        freenoise=False,
    )[0]
    alone, windows = sampled(task, cached(task.model)), sampled(task, cached(one_window(task.model)))
    assert torch.equal(alone[0], windows[0]) and alone[1] == windows[1]
