"""Control nets: guide a video with the edges, depth or poses of another one."""

from pathlib import Path

import torch
from comfy_api.latest import io

from ..host import folders
from ..media.pictures import check_pictures
from ..model_loaders.load_controlnet import check_control_net, load_controlnet
from ..model_loaders.precision import WEIGHT_DTYPES
from ..sockets.control import CogVideoXControl, chain_control
from .file_inputs import reads_file
from .input_checks import check_percent_range, checked
from .inputs import CONTROL_NET_DTYPE, TOY, dtype_input, hold_input, prompt_inputs, range_inputs, strength_input
from .missing_models import find, offer
from .search_words import SEARCH_WORDS


def _find_control_net(name: str) -> Path:
    return find(name, "controlnet")


def _check_control_net(control_net_name: str) -> None:
    check_control_net(_find_control_net(control_net_name))


@reads_file("control_net_name", _find_control_net, "controlnet")
@checked(_check_control_net)
class CogVideoXLoadControlNet(io.ComfyNode):
    """The name of a control net -> CONTROL_NET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXLoadControlNet",
            display_name="Load CogVideoX ControlNet",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXLoadControlNet"],
            description="Load a control net for CogVideoX-2b or CogVideoX-5b.",
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=offer(folders.list_control_nets(), "controlnet"),
                    tooltip="A folder or file under models/controlnet, or a control net's folder under "
                    f"models/diffusers. {TOY}",
                ),
                dtype_input(WEIGHT_DTYPES, CONTROL_NET_DTYPE),
            ],
            outputs=[io.ControlNet.Output(tooltip="For Apply CogVideoX ControlNet, or ComfyUI's Apply ControlNet.")],
        )

    @classmethod
    def execute(cls, control_net_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_controlnet(_find_control_net(control_net_name), weight_dtype))


@checked(check_percent_range)
class CogVideoXApplyControlNet(io.ComfyNode):
    """CONDITIONING out, positive and negative, with the control net chained to them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXApplyControlNet",
            display_name="Apply CogVideoX ControlNet",
            category="CogVideoX/condition",
            search_aliases=SEARCH_WORDS["CogVideoXApplyControlNet"],
            description="Guide where things are and how they move with a control video (edges, depth, ...).",
            inputs=[
                *prompt_inputs(),
                io.ControlNet.Input("control_net", tooltip="From Load CogVideoX ControlNet."),
                io.Image.Input(
                    "control_video",
                    tooltip="One image for each frame of the video, made by the preprocessor that the control net "
                    "was trained with. It is scaled and cropped to the video's size.",
                ),
                strength_input("How strongly the control net guides the video. 0 has no effect."),
                *range_inputs("the control"),
                hold_input("the control video"),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt with the control net, for a sampler."
                ),
                io.Conditioning.Output(display_name="negative", tooltip="The same for the negative prompt."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        control_net: CogVideoXControl,
        control_video: torch.Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        hold_last_frame: bool = False,
    ) -> io.NodeOutput:
        # As ComfyUI's ControlNetApplyAdvanced: without the control net in the CONDITIONING it is not loaded either.
        if strength == 0:
            return io.NodeOutput(positive, negative)
        check_pictures(control_video)
        percent_range = (start_percent, end_percent)
        return io.NodeOutput(
            *chain_control([positive, negative], control_net, control_video, strength, percent_range, hold_last_frame)
        )
