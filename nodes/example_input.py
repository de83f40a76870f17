"""Example inputs that come with the pack, for graphs that run without any file of the user's."""

import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import InputImpl, Types, io, ui

from ..host.toy import INPUT_FPS, INPUTS
from ..media.example_frames import read_example
from .input_checks import checked
from .search_words import SEARCH_WORDS

_SHOWN_SCALE = 4  # of the picture on the node: 64 pixels are a speck there


@checked()
class CogVideoXExample(io.ComfyNode):
    """IMAGE [F, H, W, 3] and MASK [1, H, W] as of Load Image, and a VIDEO of the same frames as of Load Video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXExample",
            display_name="CogVideoX Example Input",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXExample"],
            description="A small picture or video that comes with the pack, to try a workflow with.",
            inputs=[
                io.Combo.Input(
                    "example",
                    options=list(INPUTS),
                    default=next(iter(INPUTS)),
                    tooltip="picture, last picture: the first and the last frame of a clip in which a red square moves "
                    "up. video: an orange circle moves to the right. Put Load Image or Load Video in the place of this "
                    "node for your own.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The picture, or the frames of the video, 64 x 64 pixels."),
                io.Mask.Output(tooltip="White where the shape is, or passes."),
                io.Video.Output(tooltip="The same frames as a video, 8 frames per second."),
            ],
        )

    @classmethod
    def execute(cls, example: str) -> io.NodeOutput:
        frames, mask = read_example(example)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=Fraction(INPUT_FPS)))
        return io.NodeOutput(frames, mask, video, ui=_show(example, frames))


def show_example(example: str) -> dict[str, Any]:
    """What the node shows of one of toy.INPUTS, as ComfyUI sends it to the page after a run.

    Raises UserError where the example's files are missing or damaged.
    """
    return _show(example, read_example(example)[0]).as_dict()


_written: dict[str, ui.SavedResult] = {}
_writing = threading.Lock()


def _show(example: str, frames: torch.Tensor) -> ui.SavedImages:
    """An animated picture in ComfyUI's temporary folder, written once. frames: [F, H, W, 3] in 0 .. 1."""
    with _writing:
        shown = _written.get(example)
        if shown is None or not _is_there(shown):
            # [F, H, W, 3], each pixel four times as wide and high
            large = frames.repeat_interleave(_SHOWN_SCALE, 1).repeat_interleave(_SHOWN_SCALE, 2)
            shown = _written[example] = ui.ImageSaveHelper.save_animated_png(
                large, "cogvideox_example", io.FolderType.temp, cls=None, fps=INPUT_FPS, compress_level=4
            )
    return ui.SavedImages([shown], is_animated=len(frames) > 1)


def _is_there(shown: ui.SavedResult) -> bool:
    return (Path(folder_paths.get_temp_directory()) / shown["subfolder"] / shown["filename"]).is_file()
