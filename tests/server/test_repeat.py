"""The same seed gives the same video, whatever happened on the server in between."""

import time

import numpy as np
import pytest
import torch

from cogvideox.devtools import client
from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.tests.graphs import SAMPLE, Made, collect, patched, text_to_video, with_ksampler
from cogvideox.tests.tiers import long_rows_after

ENDLESS = {  # runs that end only where they are stopped
    "ddim": text_to_video(seed=3, steps=500, frames=17),
    "1.5 dpm": text_to_video(folder_name("1.5-5B"), seed=3, steps=500, sampler="dpm", dynamic_cfg=True),
    "KSampler": with_ksampler(text_to_video(seed=3, steps=500, frames=17), "dpmpp_2m", "karras"),
    "EasyCache": patched(
        text_to_video(seed=3, steps=500),
        "EasyCache",
        reuse_threshold=0.2,
        start_percent=0.0,
        end_percent=1.0,
        verbose=False,
    ),
}


def assert_same(ours: Made, theirs: Made) -> None:
    assert ours.latent is not None and theirs.latent is not None
    assert torch.equal(ours.latent, theirs.latent)
    assert np.array_equal(ours.frames, theirs.frames)


@pytest.mark.parametrize(
    ("variant", "sampler"),
    long_rows_after(
        3, [("2b", "ddim"), ("5b", "dpm"), ("1.5-5B", "ddim"), ("2b", "dpm"), ("5b", "ddim"), ("1.5-5B", "dpm")]
    ),
)
def test_same_seed_same_video(comfyui, variant, sampler):
    """A seed noted down is worth nothing if it gives another video the next day."""
    graph = text_to_video(folder_name(variant), sampler=sampler)
    first = comfyui.make(graph)
    other = comfyui.make(text_to_video(folder_name(variant), sampler=sampler, seed=2))
    assert np.abs(first.frames.astype(int) - other.frames).mean() > 10
    assert_same(comfyui.make_again(graph), first)


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])
def test_after_freeing_memory(comfyui, weight_dtype):
    """Weights that come back changed after an unload would show only in the second video of a session."""
    graph = text_to_video(weight_dtype=weight_dtype)
    first = comfyui.make(graph)
    comfyui.free()
    result = comfyui.run(graph)
    assert set(result.executed) == set(graph), "something was still remembered"
    assert_same(collect(result, comfyui.server.output), first)


@pytest.mark.parametrize(
    ("name", "step"),
    long_rows_after(
        4, [("ddim", 1), ("1.5 dpm", 4), ("KSampler", 4), ("EasyCache", 1), *zip(ENDLESS, (4, 1, 1, 4), strict=True)]
    ),
)
def test_after_an_interrupt(comfyui, name, step):
    """Stop means stop, within a step, and the stopped run leaves nothing behind for the next one."""
    graph = ENDLESS[name]
    plain = text_to_video(graph["pipeline"]["inputs"]["folder"], seed=4)
    before = comfyui.make(plain)
    asked = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["value"] == step and not asked:
            client.interrupt(comfyui.url)
            asked.append(time.monotonic())

    result = comfyui.run(graph, stop)
    assert time.monotonic() - asked[0] < 5
    assert result.error is not None and result.error.kind == "interrupted", result.error
    assert result.error.node_id == SAMPLE
    assert max(value for _, value, _ in result.progress) < 250
    assert_same(comfyui.make_again(plain), before)
