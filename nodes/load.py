"""Loaders: from a name in ComfyUI's model folders to MODEL, CLIP and VAE."""

from pathlib import Path

import comfy.model_management as mm
from comfy_api.latest import io

from ..host import folders
from ..host.messages import show_on_running_node
from ..model_loaders.checkpoints import check_component, require_pipeline
from ..model_loaders.load_model import check_model, load_model
from ..model_loaders.load_text_encoder import T5_PRECISIONS, check_t5_precision, check_text_encoder, load_text_encoder
from ..model_loaders.load_vae import check_vae_dtype, load_vae
from ..model_loaders.precision import PRECISIONS, WEIGHT_DTYPES, check_precision, quantized_mode
from ..model_loaders.variants import DETECT
from .file_inputs import reads_file
from .input_checks import checked
from .inputs import (
    CLIP_OUT,
    MODEL_DTYPE,
    MODEL_OUT,
    TEXT_ENCODER_DTYPE,
    TOY,
    VAE_DTYPE,
    VAE_OUT,
    dtype_input,
    family_input,
)
from .missing_models import find, offer
from .search_words import SEARCH_WORDS


def _find_pipeline(name: str) -> Path:
    return find(name, "pipeline")


def _find_model(name: str) -> Path:
    return find(name, "transformer")


def _find_text_encoder(name: str) -> Path:
    return find(name, "text_encoder")


def _find_vae(name: str) -> Path:
    return find(name, "vae")


def _check_device_precision(weight_dtype: str) -> None:
    check_precision(weight_dtype, mm.get_torch_device())


def _check_pipeline(folder: str, family: str = DETECT) -> None:
    path = _find_pipeline(folder)
    require_pipeline(path)
    check_model(path, family)
    check_text_encoder(path)
    check_component(path, "vae")


def _check_model(model_name: str, family: str = DETECT) -> None:
    check_model(_find_model(model_name), family)


def _check_text_encoder(text_encoder_name: str) -> None:
    check_text_encoder(_find_text_encoder(text_encoder_name))


def _check_vae(vae_name: str) -> None:
    check_component(_find_vae(vae_name), "vae")


@reads_file("folder", _find_pipeline)
@checked(_check_device_precision, _check_pipeline)
class CogVideoXLoadPipeline(io.ComfyNode):
    """A diffusers pipeline folder, or one file with all parts -> MODEL, CLIP, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXLoadPipeline",
            display_name="Load CogVideoX Pipeline",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXLoadPipeline"],
            description="Load the transformer, text encoder and VAE of a CogVideoX checkpoint.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=offer(folders.list_pipelines() + folders.list_files("checkpoints"), "pipeline"),
                    tooltip=(
                        "A folder under models/diffusers with the complete checkpoint (model_index.json), or a file "
                        f"under models/checkpoints with transformer, text encoder and VAE. {TOY}"
                    ),
                ),
                dtype_input(PRECISIONS, MODEL_DTYPE),
                family_input(),
            ],
            outputs=[
                io.Model.Output(tooltip=MODEL_OUT),
                io.Clip.Output(tooltip=CLIP_OUT),
                io.Vae.Output(tooltip=VAE_OUT),
            ],
        )

    @classmethod
    def execute(cls, folder: str, weight_dtype: str, family: str = DETECT) -> io.NodeOutput:
        path = _find_pipeline(folder)
        # fp8 and int8 are for the transformer only. The VAE cannot be stored in them; T5 can, where Load CogVideoX Text
        # Encoder asks for it.
        rest = "default" if quantized_mode(weight_dtype) else weight_dtype
        return io.NodeOutput(
            load_model(path, weight_dtype, show_on_running_node, family),
            load_text_encoder(path, rest),
            load_vae(path, rest, show_on_running_node),
        )


@reads_file("model_name", _find_model, "transformer")
@checked(_check_device_precision, _check_model)
class CogVideoXLoadModel(io.ComfyNode):
    """A transformer -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXLoadModel",
            display_name="Load CogVideoX Model",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXLoadModel"],
            description="Load only the transformer of a CogVideoX checkpoint.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=offer(folders.list_components("transformer", "diffusion_models"), "transformer"),
                    tooltip="A pipeline under models/diffusers, or a folder or file under models/diffusion_models. "
                    f"{TOY}",
                ),
                dtype_input(PRECISIONS, MODEL_DTYPE),
                family_input(),
            ],
            outputs=[io.Model.Output(tooltip=MODEL_OUT)],
        )

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, family: str = DETECT) -> io.NodeOutput:
        return io.NodeOutput(load_model(_find_model(model_name), weight_dtype, show_on_running_node, family))


@reads_file("text_encoder_name", _find_text_encoder, "text_encoder")
@checked(check_t5_precision, _check_text_encoder)
class CogVideoXLoadTextEncoder(io.ComfyNode):
    """A T5 encoder -> CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXLoadTextEncoder",
            display_name="Load CogVideoX Text Encoder",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXLoadTextEncoder"],
            description="Load only the T5 text encoder of a CogVideoX checkpoint.",
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=offer(folders.list_components("text_encoder", "text_encoders"), "text_encoder"),
                    tooltip=f"A pipeline under models/diffusers, or a folder or file under models/text_encoders. {TOY}",
                ),
                dtype_input(T5_PRECISIONS, TEXT_ENCODER_DTYPE),
            ],
            outputs=[io.Clip.Output(tooltip=CLIP_OUT)],
        )

    @classmethod
    def execute(cls, text_encoder_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_text_encoder(_find_text_encoder(text_encoder_name), weight_dtype))


# ComfyUI may load the VAE only after sampling: what is wrong with its file has to be known when the prompt is queued.
@reads_file("vae_name", _find_vae, "vae")
@checked(_check_vae, check_vae_dtype)
class CogVideoXLoadVAE(io.ComfyNode):
    """A VAE -> VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXLoadVAE",
            display_name="Load CogVideoX VAE",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXLoadVAE"],
            description="Load only the VAE of a CogVideoX checkpoint.",
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=offer(folders.list_components("vae", "vae"), "vae"),
                    tooltip=f"A pipeline under models/diffusers, or a folder or file under models/vae. {TOY}",
                ),
                dtype_input(WEIGHT_DTYPES, VAE_DTYPE),
            ],
            outputs=[io.Vae.Output(tooltip=VAE_OUT)],
        )

    @classmethod
    def execute(cls, vae_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_vae(_find_vae(vae_name), weight_dtype, show_on_running_node))
