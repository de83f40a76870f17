"""CogVideoXDecodeToFile on the real server: the file is there, plays, and is what CogVideoX Decode makes."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cogvideox.devtools import client
from cogvideox.tests.graphs import IMAGES, PIPELINE, SAMPLE, node, text_to_video, with_inputs, without

FILE = "file"
NODE = "CogVideoXDecodeToFile"
UPSTREAM = ("CogVideoXLoadPipeline", "CogVideoXEncodeText", "CogVideoXEmptyLatent")


def to_file(graph: dict, **changes: object) -> dict:
    """`graph` that writes a file as well."""
    settings = {"fps": 16.0, "filename_prefix": "clips/made", "format": "mp4 (h264)", "crf": 2, "memory": "low"}
    return graph | {FILE: node(NODE, vae=[PIPELINE, 2], samples=[SAMPLE, 0], **settings | changes)}


def read(path: Path) -> tuple[np.ndarray, float, dict[str, str]]:
    """Frames, uint8 [frames, H, W, 3]; frames a second; tags."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate), dict(container.metadata)


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far their brightness is apart, of 255; the colours of a video file are at half the size."""
    return float(np.abs((ours.astype(float) - theirs) @ [0.2126, 0.7152, 0.0722]).mean())


def test_file_of_a_batch(comfyui) -> None:
    """What a user sees: a file for each video in the output folder, on the node, with the workflow in it."""
    graph = to_file(text_to_video(batch_size=2))
    result = comfyui.run(graph)
    assert result.error is None, str(result.error)
    entries = result.outputs[FILE]["images"]
    assert [entry["subfolder"] for entry in entries] == ["clips", "clips"]
    assert result.outputs[FILE]["animated"] == [True]
    assert any(node_id == FILE and "Saved made_" in text for node_id, text in result.texts)
    assert (FILE, 18, 18) in result.progress
    videos = np.split(comfyui.make(graph).frames, 2)
    for entry, frames, other in zip(entries, videos, videos[::-1]):
        made, fps, tags = read(comfyui.server.output / entry["subfolder"] / entry["filename"])
        assert made.shape == frames.shape == (9, 64, 96, 3) and fps == 16
        assert json.loads(tags["prompt"])[FILE]["class_type"] == NODE
        assert apart(made, frames) < 2 < 10 < apart(made, other)
    assert not list(comfyui.server.output.rglob("*.part"))


def test_other_nodes_go_on_with_it(comfyui) -> None:
    """VIDEO is ComfyUI's own: its frames can be taken out again. A prompt of a script, which no frontend has seen, has
    its seed in the file's name."""
    named = "video/seed%CogVideoXSample.seed%"
    graph = to_file(without(text_to_video(seed=77), IMAGES), format="webm (vp9)", filename_prefix=named)
    graph |= {
        "parts": node("GetVideoComponents", video=[FILE, 0]),
        IMAGES: node("SaveImage", images=["parts", 0], filename_prefix="again"),
    }
    assert comfyui.make(graph).frames.shape == (9, 64, 96, 3)
    assert [path.name for path in (comfyui.server.output / "video").glob("seed*")] == ["seed77_00001_.webm"]


def test_interrupt(comfyui) -> None:
    """Cancel while a file is written leaves no part of it, and the server works on."""
    folder = comfyui.server.output / "stopped"
    graph = to_file(text_to_video(frames=161, steps=1), filename_prefix="stopped/made")
    graph = {name: graph[name] for name in graph if name == FILE or graph[name]["class_type"].startswith("CogVideoX")}

    def on_event(kind: str, data: dict) -> None:
        if kind == "progress" and data.get("node") == FILE and 1 <= data["value"] < 20:
            client.interrupt(comfyui.url)

    result = comfyui.run(graph, on_event)
    assert result.error is not None and result.error.kind == "interrupted", str(result.error)
    assert list(folder.iterdir()) == []
    assert comfyui.run(to_file(text_to_video())).error is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filename_prefix": "../made"}, "is not a valid file name"),
        ({"crf": 60}, "use 0 (best) to 51"),
        ({"format": "gif"}, "format is 'gif': use "),
    ],
)
def test_refused_before_sampling(comfyui, changes: dict, words: str) -> None:
    """A slip in a widget must not cost the minutes of sampling."""
    graph = to_file(text_to_video(), **changes)
    graph = {name: graph[name] for name in graph if name in (FILE, SAMPLE) or graph[name]["class_type"] in UPSTREAM}
    result = comfyui.run(graph)
    assert result.error is not None and result.error.kind == "rejected"
    assert result.error.node_type == NODE and words in result.error.message
    assert not result.executed


def test_latent_that_is_not_a_number(comfyui) -> None:
    """The frame is named, and nothing is written."""
    samples = torch.zeros(1, 16, 3, 8, 12)
    samples[0, 0, 2] = torch.nan
    save_file({"latent_tensor": samples, "latent_format_version_0": torch.zeros(0)}, comfyui.base / "input/nan.latent")
    graph = {
        PIPELINE: text_to_video()[PIPELINE],
        "latent": node("LoadLatent", latent="nan.latent"),
        FILE: with_inputs(to_file({}), FILE, samples=["latent", 0], filename_prefix="nan/made")[FILE],
    }
    result = comfyui.run(graph)
    assert result.error is not None and result.error.node_type == NODE
    assert "latent frame 2 of 3 (video frames 5 to 8)" in result.error.message
    assert not (comfyui.server.output / "nan").exists() or not list((comfyui.server.output / "nan").iterdir())
