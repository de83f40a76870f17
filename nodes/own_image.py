"""An image of the user's own in the place of another one, for graphs that run before anything is uploaded."""

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..errors import UserError, quoted
from ..host.standalone import comfyui_nodes
from ..system.inside import is_inside, is_spelled_inside
from .file_inputs import reads_file
from .input_checks import checked
from .search_words import SEARCH_WORDS

_NONE = ""  # the first of the list: no file. The page has no picture to show for it


def find_image(image: str) -> Path:
    """The file of ComfyUI's input folder, or with "[output]" after its name of the output folder.

    Raises UserError where there is none.
    """
    name = str(image)  # a prompt may hold anything
    plain, folder = folder_paths.annotated_filepath(name)
    root = Path(folder or folder_paths.get_input_directory())
    # Not every version of ComfyUI asks whether a name leads out of the folder.
    if is_spelled_inside(root / plain, root) and folder_paths.exists_annotated_filepath(name):
        path = Path(folder_paths.get_annotated_filepath(name))
        if path.is_file() and is_inside(path, root):
            return path
    raise UserError(
        f"There is no image {quoted(name)!r} in ComfyUI's input folder. Upload it, or choose another one; or the empty "
        "line of the list, for the image that is connected."
    )


def check_image(image: str) -> None:
    """Raises UserError where a file is chosen and is not there."""
    if image != _NONE:
        find_image(image)


@reads_file("image", find_image)
@checked(check_image)
class CogVideoXOwnImage(io.ComfyNode):
    """IMAGE [F, H, W, 3]: the chosen file as Load Image reads it, or what is connected.

    ComfyUI checks the file of a Load Image even behind a switch that is off, and refuses the graph where it is missing.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        (files, *_) = comfyui_nodes().LoadImage.INPUT_TYPES()["required"]["image"]
        return io.Schema(
            node_id="CogVideoXOwnImage",
            display_name="CogVideoX Own Image",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXOwnImage"],
            description="An image of your own where one is chosen, otherwise the one that is connected.",
            inputs=[
                io.Image.Input("otherwise", tooltip="The image that is taken as long as none of your own is chosen."),
                io.Combo.Input(
                    "image",
                    options=[_NONE, *files],
                    upload=io.UploadType.image,
                    tooltip="Your own image: upload it, or choose one of ComfyUI's input folder. The empty line takes "
                    "the image that is connected.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Your own image, or the connected one.")],
        )

    @classmethod
    def execute(cls, otherwise: torch.Tensor, image: str) -> io.NodeOutput:
        if image == _NONE:
            return io.NodeOutput(otherwise)
        try:
            return io.NodeOutput(comfyui_nodes().LoadImage().load_image(image)[0])
        except Exception as error:  # of the library that reads this kind of file
            raise UserError(f"The image {quoted(image)!r} cannot be read ({error}). Upload it again.") from error
