"""Save a converted model, so that a slow conversion happens only once."""

from pathlib import Path

import comfy.model_management as mm
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..host import folders
from ..host.messages import show_on_node
from ..host.placeholders import has_values, stand_in
from ..model_loaders.files.safetensors_writer import refuse_taken
from ..model_loaders.save_model import AS_LOADED, SAVE_DTYPES, check_save_dtype, save_model
from ..system.complete_file import remove_unfinished_below
from .file_inputs import checks_files
from .input_checks import checked
from .inputs import filled_name
from .search_words import SEARCH_WORDS

_CATEGORY = "diffusion_models"


def _path(name: str) -> Path:
    return folders.new_file(name, _CATEGORY, ".safetensors")


def _check_name(name: str) -> None:
    path = _path(stand_in(name))
    if not has_values(name):  # or it is another file's
        refuse_taken(path)


@checks_files
@checked(_check_name, check_save_dtype)
class CogVideoXSaveModel(io.ComfyNode):
    """MODEL -> one .safetensors file under models/diffusion_models."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSaveModel",
            display_name="Save CogVideoX Model",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXSaveModel"],
            description=(
                "Save the transformer, with its LoRAs merged and in the precision chosen here, as one .safetensors "
                "file for Load CogVideoX Model. No file is overwritten."
            ),
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX model, with or without LoRAs."),
                io.String.Input(
                    "name",
                    default="CogVideoX/converted",
                    tooltip="Name of the new file under models/diffusion_models; may contain folders.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(SAVE_DTYPES),
                    default=AS_LOADED,
                    tooltip=(
                        "How the weights are stored. “as loaded” keeps them as they are in the model; fp8 and int8 "
                        "store the blocks' large matrices in one byte each."
                    ),
                ),
            ],
            # The loaders' inputs are combos, to which ComfyUI links no STRING (comfy_execution/validation.py).
            outputs=[io.Combo.Output(display_name="model_name", tooltip="The file's name, for Load CogVideoX Model.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: ModelPatcher, name: str, weight_dtype: str) -> io.NodeOutput:
        remove_unfinished_below(folders.first_root(_CATEGORY))
        path, bar = _path(filled_name(cls, name)), comfy.utils.ProgressBar(1)  # the total comes with each update

        def on_progress(done: int, total: int) -> None:
            # The bar raises this too, but only when it is drawn, and ComfyUI leaves out most of its updates.
            mm.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        notes: list[str] = []
        size = save_model(model, path, weight_dtype, on_progress, notes.append)
        show_on_node(" ".join([f"Saved {path.name}, {size / 1e6:.1f} MB.", *notes]), cls.hidden.unique_id)
        return io.NodeOutput(path.relative_to(folders.first_root(_CATEGORY)).as_posix())
