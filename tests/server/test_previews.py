"""Previews that a client of the real server gets while a sampler runs, and the draft of what it has made."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.tests.graphs import DECODE, IMAGES, SAMPLE, patched, replaced, text_to_video, with_ksampler
from cogvideox.tests.part_graphs import latent_only
from cogvideox.tests.server.pack_beside import SLOWER
from cogvideox.tests.tiers import long_after
from cogvideox.tests.tiny_decoders import NAME, write_tiny_decoder

STEPS, STEP_S = 100, 0.03  # three seconds: the clip of three latents plays a few times


@pytest.fixture
def tiny_decoder(comfyui) -> Iterator[Path]:
    path = write_tiny_decoder(comfyui.base / "models" / "vae_approx" / NAME)
    yield path
    path.unlink()


def previews(comfyui, graph: dict, method: str) -> list[np.ndarray]:
    """What the client was shown of the sampler, each [H, W, 3]."""
    result = comfyui.run(latent_only(graph), extra_data={"preview_method": method})
    assert result.error is None, str(result.error)
    assert {node for node, _ in result.previews} <= {SAMPLE}
    return [np.asarray(Image.open(io.BytesIO(image))) for _, image in result.previews]


def slowly(graph: dict) -> dict:
    """`graph` with steps that take STEP_S seconds longer."""
    return patched(graph, SLOWER, seconds=STEP_S)


def turns(pictures: list[np.ndarray]) -> int:
    """How often another frame of the clip comes up: what one frame changes from step to step is far less."""
    changes = [np.abs(a.astype(int) - b.astype(int)).mean() for a, b in zip(pictures, pictures[1:])]
    return sum(change > max(1.0, 5 * np.median(changes)) for change in changes)


@pytest.mark.parametrize(
    "with_sampler", long_after(1, (lambda graph: graph, with_ksampler)), ids=("CogVideoXSample", "KSampler")
)
def test_the_whole_clip_is_shown(comfyui, with_sampler) -> None:
    """ComfyUI's own preview stands still on the first frame, whatever goes on in the others."""
    shown = previews(comfyui, slowly(with_sampler(text_to_video(steps=STEPS, seed=11))), "latent2rgb")
    assert len(shown) > STEPS and turns(shown) >= 4
    assert {picture.shape for picture in shown} == {(341, 512, 3)}  # as ComfyUI enlarges 12 x 8 latents


def test_sharp_previews_with_the_tiny_decoder(comfyui, tiny_decoder: Path) -> None:
    """Who has put taecvx there and asked for taesd sees its pictures, of all frames."""
    rough = previews(comfyui, text_to_video(steps=20, seed=12), "latent2rgb")
    sharp = previews(comfyui, slowly(text_to_video(steps=STEPS, seed=12, cfg=5.9)), "taesd")
    assert turns(sharp) >= 4
    assert detail(sharp[-1]) > 1.5 * detail(rough[-1])


def detail(picture: np.ndarray) -> float:
    """The mean step between neighbouring pixels."""
    return float(np.abs(np.diff(picture.astype(int), axis=1)).mean())


def test_previews_without_the_file_or_with_a_broken_one(comfyui) -> None:
    """A run must not end, nor stay without previews, for want of a file that is there for previews alone."""
    assert previews(comfyui, text_to_video(seed=13), "taesd")
    path = comfyui.base / "models" / "vae_approx" / NAME
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"<html>not found</html>")
    try:
        assert previews(comfyui, text_to_video(seed=14), "taesd")
    finally:
        path.unlink()
    assert "need taecvx.pth" in comfyui.log()
    assert "is not a weight file" in comfyui.log()


def test_no_previews(comfyui) -> None:
    """Who has switched them off gets none."""
    assert not previews(comfyui, text_to_video(seed=15), "none")


def test_draft_decode(comfyui, tiny_decoder: Path) -> None:
    """The node on a real sampler's latent: as many frames as CogVideoX Decode makes, of the same size."""
    graph = text_to_video()
    exact = comfyui.make(graph)
    draft = comfyui.make(replaced(graph, DECODE, "CogVideoXDraftDecode", samples=[SAMPLE, 0], decoder=NAME))
    assert draft.frames.shape == exact.frames.shape and draft.frames.std() > 1
    assert torch.equal(draft.latent, exact.latent)


def test_draft_decode_refuses_another_file(comfyui) -> None:
    """Before the sampler has run: nobody waits an hour to hear that a file is damaged."""
    path = comfyui.base / "models" / "vae_approx" / NAME
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"<html>not found</html>")
    try:
        graph = replaced(text_to_video(seed=16), DECODE, "CogVideoXDraftDecode", samples=[SAMPLE, 0], decoder=NAME)
        result = comfyui.run({key: graph[key] for key in graph if key in _needed(graph)})
    finally:
        path.unlink()
    assert result.error is not None and result.error.kind == "rejected"
    assert NAME in result.error.message and "is not a weight file" in result.error.message


def _needed(graph: dict) -> set[str]:
    return {key for key in graph if key in (IMAGES, DECODE, SAMPLE) or graph[key]["class_type"].startswith("CogVideoX")}
