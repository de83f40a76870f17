"""CogVideoX Parallel on the real server: every node that takes its MODEL or its VAE makes what it makes without it."""

import sys
import threading
import time
from importlib.util import find_spec

import numpy as np
import psutil
import pytest

from cogvideox.devtools import client
from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.tests.graphs import LATENTS, PIPELINE, SAMPLE, node, read_png, with_inputs
from cogvideox.tests.support import relative_error
from cogvideox.tests.task_graphs import image_to_video

pytestmark = [
    pytest.mark.long,  # the ranks' start takes half a minute; tests/parallel starts them once for its tests
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform == "win32", reason="Ray has no good support for Windows"),
    pytest.mark.usefixtures("media"),
]
VAE, FRAMES = [PIPELINE, 2], ["decoded by CogVideoXDecode", 0]
TILES = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
DECODERS = {
    "CogVideoXDecode": {"memory": "low"},
    "VAEDecode": {},
    "VAEDecodeTiled": TILES,
}
ENCODERS = {
    "VAEEncode": {"pixels": FRAMES},
    "VAEEncodeTiled": {"pixels": FRAMES} | TILES,
    "CogVideoXEncodeVideo": {"images": FRAMES},
    "CogVideoXContinueVideo": {"images": FRAMES, "frames": 9, "overlap": 5},
}
TO_FILE = {"fps": 8.0, "filename_prefix": "ranks/made", "format": "mp4 (h264)", "crf": 0, "memory": "low"}


def image_to_video_and_all() -> dict:
    """A video from a picture, which goes through every node that decodes or encodes; each saves what it makes."""
    graph = image_to_video(folder_name("5b-I2V"))
    for name, inputs in DECODERS.items():
        made = f"decoded by {name}"
        graph[made] = node(name, vae=VAE, samples=[SAMPLE, 0], **inputs)
        graph[f"{made}, saved"] = node("SaveImage", images=[made, 0], filename_prefix="ranks/decoded")
    for name, inputs in ENCODERS.items():
        made = f"encoded by {name}"
        graph[made] = node(name, vae=VAE, **inputs)
        graph[f"{made}, saved"] = node("SaveLatent", samples=[made, 0], filename_prefix="ranks/encoded")
    graph["file"] = node("CogVideoXDecodeToFile", vae=VAE, samples=[SAMPLE, 0], **TO_FILE)
    graph["components"] = node("GetVideoComponents", video=["file", 0])
    graph["file, saved"] = node("SaveImage", images=["components", 0], filename_prefix="ranks/file")
    return graph


def on_ranks(graph: dict) -> dict:
    """`graph` with CogVideoX Parallel behind its loader."""
    far = {(PIPELINE, 0): ["ranks", 0], (PIPELINE, 2): ["ranks", 1]}
    changed = {
        name: with_inputs(graph, name, **{key: moved(value, far) for key, value in each["inputs"].items()})[name]
        for name, each in graph.items()
    }
    return changed | {"ranks": node("CogVideoXParallel", model=[PIPELINE, 0], vae=VAE, cards=2, split="auto")}


def moved(value: object, far: dict) -> object:
    return far.get(tuple(value), value) if isinstance(value, list) else value


def test_every_node_makes_what_it_makes_without_it(comfyui) -> None:
    """Each asks a MODEL or a VAE for what it is in its own way, ComfyUI's nodes too; one of them copies it."""
    graph = image_to_video_and_all()
    saving = [name for name in graph if name.endswith(", saved")]
    far = on_ranks(graph)
    if "SelectVAEDevice" in client.object_info(comfyui.url):
        far |= {"chosen": node("SelectVAEDevice", vae=["ranks", 1], device="default")}
        far = with_inputs(far, "decoded by VAEDecode", vae=["chosen", 0])
    near_run, far_run = comfyui.run(graph), comfyui.run(far)
    assert near_run.error is None and far_run.error is None, (near_run.error, far_run.error)
    read = {}
    for name in (LATENTS, *saving):
        files = [
            [client.local_file(item, comfyui.server.output) for item in client.saved_files(run.outputs[name])]
            for run in (near_run, far_run)
        ]
        read[name] = files
        if files[0][0].suffix == ".png":
            near, got = (np.stack([read_png(file) for file in each]).astype(int) for each in files)
            # A PNG holds 8 bits: a value on the border between two steps falls on either side. A video file is lossy.
            assert near.shape == got.shape and np.abs(near - got).max() <= (8 if "file" in name else 1), name
    latents = [name for name, files in read.items() if files[0][0].suffix == ".latent"]
    assert len(latents) == 1 + len(ENCODERS)
    for near, got in zip(comfyui.latents(graph, *latents), comfyui.latents(far, *latents)):
        assert relative_error(got, near) <= 5e-5  # of frames that are within rounding, not equal


def test_cancel_and_the_next_run(comfyui) -> None:
    """Cancel on the page ends a run in which other processes compute, and the next one is as good as any."""
    graph = on_ranks(image_to_video(folder_name("5b-I2V"), steps=400))
    pressed: list[float] = []

    def press(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == SAMPLE and data["value"] >= 3 and not pressed:
            pressed.append(time.monotonic())
            threading.Thread(target=client.interrupt, args=(comfyui.url,)).start()

    result = comfyui.run(graph, press)
    assert result.error is not None and result.error.kind == "interrupted"
    assert time.monotonic() - pressed[0] < 5  # a second, on a machine that does nothing else
    shorter = image_to_video(folder_name("5b-I2V"), steps=3)
    assert relative_error(comfyui.latent(on_ranks(shorter)), comfyui.latent(shorter)) <= 5e-6


def test_what_the_node_says_while_it_starts(comfyui) -> None:
    """The first run waits for half a minute, without a bar: the node that waits says why, and no longer than that."""
    comfyui.free()
    server, deadline = psutil.Process(comfyui.server.process.pid), time.monotonic() + 90
    while any(each.name().startswith("ray::Worker") for each in server.children(recursive=True)):
        assert time.monotonic() < deadline, "the ranks have outlived the models that used them"
        time.sleep(1)
    result = comfyui.run(on_ranks(image_to_video(folder_name("5b-I2V"))))
    assert result.error is None, str(result.error)
    (first, *_) = (name for name, text in result.texts if "Starting the processes of CogVideoX Parallel (2)" in text)
    assert [text for name, text in result.texts if name == first][-1].strip() == ""


def test_an_output_whose_input_is_not_connected(comfyui) -> None:
    """The node itself says what is missing, before the video is sampled for nothing."""
    graph = on_ranks(image_to_video_and_all())
    del graph["ranks"]["inputs"]["vae"]
    ran: list[str] = []
    result = comfyui.run(graph, lambda kind, data: ran.append(data["node"]) if kind == "executing" else None)
    assert result.error is not None and "connect one to its input vae" in result.error.message
    assert result.error.node_id == "ranks" and SAMPLE not in ran


def test_what_needs_weights_says_where_to_go(comfyui) -> None:
    """Saving and training, of this pack's nodes."""
    graph = on_ranks(image_to_video(folder_name("5b-I2V")))
    save = node("CogVideoXSaveModel", model=["ranks", 0], name="ranks/saved", weight_dtype="as loaded")
    result = comfyui.run({name: graph[name] for name in (PIPELINE, "ranks")} | {"save": save})
    assert result.error is not None and "weights are in other processes" in result.error.message
    assert "before CogVideoX Parallel" in result.error.message
