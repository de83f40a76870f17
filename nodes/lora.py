"""LoRAs: apply one to a model, and save those of a model."""

from functools import partial
from pathlib import Path

import comfy.model_patcher
import comfy.utils
from comfy_api.latest import io

from ..host import folders
from ..host.messages import show_on_node
from ..host.output import check_output_prefix, new_output_path, write_numbered
from ..model_loaders.files.safetensors_writer import write_tensors
from ..model_loaders.lora.apply import apply_lora, check_lora
from ..model_loaders.lora.export import SAVE_DTYPES, diffusers_lora, merge_loras
from ..model_loaders.lora.layers import SCALES
from ..model_loaders.lora.report import format_range
from ..sockets.model import require_cogvideox_model
from .file_inputs import checks_files, reads_file
from .input_checks import checked
from .inputs import TOY, filled_name, model_input
from .missing_models import find, offer
from .search_words import SEARCH_WORDS

_MAX_STRENGTH = 100.0


def _find_lora(name: str) -> Path:
    return find(name, "lora")


def _check_file(lora_name: str, strength: float = 1.0) -> None:
    """A LoRA of strength 0 is not opened."""
    if strength != 0:
        check_lora(_find_lora(lora_name))


@reads_file("lora_name", _find_lora)
@checked(require_cogvideox_model, _check_file)
class CogVideoXApplyLora(io.ComfyNode):
    """MODEL out, a clone with the LoRA among its patches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXApplyLora",
            display_name="Load CogVideoX LoRA",
            category="CogVideoX/lora",
            search_aliases=SEARCH_WORDS["CogVideoXApplyLora"],
            description="Apply a LoRA of any trainer to a CogVideoX model, and show which of its keys fit.",
            inputs=[
                model_input(),
                io.Combo.Input(
                    "lora_name",
                    options=offer(folders.list_files("loras", folders.LORA_SUFFIXES), "lora"),
                    tooltip=f"A file under models/loras. {TOY}",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-_MAX_STRENGTH,
                    max=_MAX_STRENGTH,
                    step=0.01,
                    tooltip="Strength of the LoRA. 0 has no effect, a negative number inverts the effect.",
                ),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    default=SCALES[0],
                    optional=True,
                    advanced=True,
                    tooltip="as trained: alpha / rank if the file or its header has an alpha, otherwise 1. 1 / rank: "
                    "for LoRAs trained with SAT, such as DimensionX's. Their alpha of 1 is missing in the file, and "
                    'with "as trained" they are far too strong.',
                ),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model with the LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, lora_name: str, strength: float, scale: str = SCALES[0]
    ) -> io.NodeOutput:
        if strength == 0:
            show_on_node("Strength is 0: the model stays as it is.", cls.hidden.unique_id)
            return io.NodeOutput(model)
        patched, report = apply_lora(model, _find_lora(lora_name), strength, scale)
        show_on_node(report.message(), cls.hidden.unique_id)
        return io.NodeOutput(patched)


def _check_prefix(filename_prefix: str) -> None:
    check_output_prefix(filename_prefix)


@checks_files
@checked(_check_prefix)
class CogVideoXSaveLora(io.ComfyNode):
    """A file in the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSaveLora",
            display_name="Save CogVideoX LoRA",
            category="CogVideoX/lora",
            search_aliases=SEARCH_WORDS["CogVideoXSaveLora"],
            description="Save all LoRAs of a model as one LoRA file that diffusers and ComfyUI load.",
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX model to which one or more LoRAs are applied."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/cogvideox",
                    tooltip="The file's path in ComfyUI's output folder; a number is added. LoRA loaders list the "
                    "files in its loras folder.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    advanced=True,
                    tooltip="The largest rank to keep, by singular values: a smaller file that is not exact. 0 keeps "
                    "everything; the ranks of several LoRAs add up.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(SAVE_DTYPES),
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="default: the LoRA's own precision if its tensors are saved unchanged, otherwise fp32.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, filename_prefix: str, rank: int = 0, dtype: str = "default"
    ) -> io.NodeOutput:
        new_path = partial(new_output_path, filled_name(cls, filename_prefix), ".safetensors")
        new_path()  # a prefix that cannot be one is refused before the LoRAs are merged, which may take long
        layers = merge_loras(model, rank, dtype, comfy.utils.ProgressBar(1).update_absolute)
        tensors, header = diffusers_lora(layers)
        path, _ = write_numbered(new_path, lambda path: write_tensors(path, tensors, header))
        rank_text = format_range([a.shape[0] for a, _ in layers.values()])
        text = f"Saved {path.name} in {path.parent.name}: {len(layers)} layers, rank {rank_text}."
        show_on_node(text, cls.hidden.unique_id)
        return io.NodeOutput()
