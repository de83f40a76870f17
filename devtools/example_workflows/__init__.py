"""The example workflows as tables; devtools/build_example_workflow.py makes the JSON files from them."""

from .apps import APPS
from .cards import parallel, two_cards
from .clips import image_to_video, text_to_video, video_to_video
from .fun import fun_control, fun_inpaint, start_end_frame
from .guided import controlnet, inversion_edit
from .longer import extend_video, long_video
from .real import REAL
from .table import Column, Example, Node, saved_under_its_title
from .train import train_lora

__all__ = ["EXAMPLES", "Column", "Example", "Node", "file_name"]

# From simple to special. The file of each begins with its number: so the cards stand in ComfyUI's list, and a further
# one at a section's end renumbers none of the others.
_TOY: tuple[Example, ...] = (
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
    two_cards(),
    parallel(),
)
_NUMBERS = {
    example.name: number
    for first, section in ((1, _TOY), (21, REAL), (41, APPS))
    for number, example in enumerate(section, first)
}
EXAMPLES: tuple[Example, ...] = tuple(map(saved_under_its_title, (*_TOY, *REAL, *APPS)))


def file_name(example: Example) -> str:
    """The name of its file in example_workflows, without the ending: what ComfyUI shows as the template's title."""
    return f"{_NUMBERS[example.name]:02d} {example.title}"
