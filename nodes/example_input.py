"""Example inputs that come with the pack, for graphs that run without any file of the user's."""

from fractions import Fraction

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
        # [F, H, W, 3], each pixel four times as wide and high
        large = frames.repeat_interleave(_SHOWN_SCALE, 1).repeat_interleave(_SHOWN_SCALE, 2)
        shown = ui.ImageSaveHelper.save_animated_png(
            large, "cogvideox_example", io.FolderType.temp, cls=None, fps=INPUT_FPS, compress_level=4
        )
        return io.NodeOutput(frames, mask, video, ui=ui.SavedImages([shown], is_animated=len(frames) > 1))
