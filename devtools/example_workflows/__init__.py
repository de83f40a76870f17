"""The example workflows as tables; devtools/build_example_workflow.py makes the JSON files from them."""

from .clips import image_to_video, text_to_video, video_to_video
from .fun import fun_control, fun_inpaint, start_end_frame
from .guided import controlnet, inversion_edit
from .longer import extend_video, long_video
from .table import Column, Example, Node
from .train import train_lora

__all__ = ["EXAMPLES", "Column", "Example", "Node"]

EXAMPLES: tuple[Example, ...] = (
    text_to_video(),
    image_to_video(),
    video_to_video(),
    extend_video(),
    long_video(),
    start_end_frame(),
    fun_inpaint(),
    fun_control(),
    controlnet(),
    inversion_edit(),
    train_lora(),
)
