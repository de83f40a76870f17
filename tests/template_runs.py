"""Which video a saved workflow makes, by what stands in its file: sizes and lengths are followed along the links."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from cogvideox.devtools.run_workflow import Video
from cogvideox.host.toy import EXAMPLES, INPUT_FPS, INPUTS
from cogvideox.tests.support import host_lacks

_MULTIGPU = {"MultiGPU_WorkUnits", "SelectCLIPDevice", "SelectVAEDevice"}
_SEED_CONTROLS = ("fixed", "increment", "decrement", "randomize")


def skip_without_its_nodes(workflow: dict) -> None:
    """Skip a test of a template that has nodes which this version of ComfyUI lacks."""
    if (
        any(node["type"] in _MULTIGPU for node in workflow["nodes"])
        and find_spec("comfy_extras.nodes_multigpu") is None
    ):
        pytest.skip(host_lacks("multi-GPU nodes"))


def skip_where_it_cannot_run(workflow: dict) -> None:
    """The same for a test that runs the template, where Ray is not there either."""
    skip_without_its_nodes(workflow)
    if has_parallel(workflow) and (find_spec("ray") is None or sys.platform == "win32"):
        pytest.skip("Ray is not installed, or has no good support for this system")


def has_parallel(workflow: dict) -> bool:
    """Whether a template starts processes with Ray, which takes half a minute."""
    return any(node["type"] == "CogVideoXParallel" for node in workflow["nodes"])


class Frames(NamedTuple):
    """Pictures or their latents."""

    count: int
    width: int
    height: int


def widgets_of(node: dict) -> dict[str, object]:
    """Widget name -> value. After a seed the frontend saves what becomes of it."""
    values = list(node.get("widgets_values") or [])
    found = {}
    for entry in node["inputs"]:
        if "widget" in entry and values:
            found[entry["name"]] = values.pop(0)
            if entry["name"] == "seed" and values and values[0] in _SEED_CONTROLS:
                values.pop(0)
    return found


class Run:
    """The run of a workflow. made: its video."""

    def __init__(self, workflow: dict) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.sources = {link[0]: link[1] for link in workflow["links"]}
        (create,) = (node for node in self.nodes.values() if node["type"] == "CreateVideo")
        rate = self._source(create, "fps")
        fps = INPUT_FPS if rate is not None else float(str(widgets_of(create)["fps"]))
        assert rate is None or self._linked(rate, "video")["type"] == "CogVideoXExample"
        frames = self._given(create, "images")
        self.made = Video(frames.count, frames.width, frames.height, fps)

    def _source(self, node: dict, name: str) -> dict | None:
        entry = next((entry for entry in node["inputs"] if entry["name"] == name), None)
        return self.nodes[self.sources[entry["link"]]] if entry and entry.get("link") is not None else None

    def _linked(self, node: dict, name: str) -> dict:
        source = self._source(node, name)
        assert source is not None, f"{node['type']}.{name} is not linked"
        return source

    def _given(self, node: dict, name: str) -> Frames:
        return self.frames_of(self._linked(node, name))

    def frames_of(self, node: dict) -> Frames:
        """What a node gives on. Raises: KeyError for a kind of node that no template had."""
        widgets = widgets_of(node)
        whole = {name: int(value) for name, value in widgets.items() if isinstance(value, (int, float))}
        kind = node["type"]
        if kind in ("CogVideoXEmptyLatent", "CogVideoXImageToVideo", "CogVideoXFunInpaint", "CogVideoXFunControl"):
            return Frames(whole["frames"], whole["width"], whole["height"])
        if kind == "CogVideoXExample":
            return _read(EXAMPLES / INPUTS[str(widgets["example"])])
        through = {"GetVideoComponents": "video", "CogVideoXSample": "latent_image", "CogVideoXDecode": "samples"}
        if kind in through:
            return self._given(node, through[kind])
        changes = {
            "ImageFromBatch": ("image", lambda one: one._replace(count=min(whole["length"], one.count))),
            "CogVideoXEncodeVideo": (
                "images",
                lambda one: Frames((one.count - 1) // 4 * 4 + 1, whole["width"] or one.width, whole["height"]),
            ),
            "CogVideoXContinueVideo": ("images", lambda one: one._replace(count=whole["frames"])),
            "CogVideoXJoinVideos": (
                "images_before",
                lambda one: one._replace(count=one.count + self._given(node, "images_after").count - whole["overlap"]),
            ),
            # RealESRGAN_x4plus
            "ImageUpscaleWithModel": ("image", lambda one: Frames(one.count, 4 * one.width, 4 * one.height)),
            "FrameInterpolate": ("images", lambda one: one._replace(count=(one.count - 1) * whole["multiplier"] + 1)),
        }
        name, change = changes[kind]
        return change(self._given(node, name))


def _read(file: Path) -> Frames:
    with Image.open(file) as picture:
        return Frames(getattr(picture, "n_frames", 1), *picture.size)
