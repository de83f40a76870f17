"""ComfyUI while something is trained in it: gradients on, and nothing of it left afterwards."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import attention_pytorch

from ..errors import UserError
from .compat import is_out_of_memory
from .patches import training_switches


@contextmanager
def training_mode() -> Iterator[None]:
    """Gradients inside a node (ComfyUI runs nodes without), and ComfyUI's kernels that have none put aside.

    A cancelled run goes on until is_interrupted is asked.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), training_switches():
            yield
    finally:
        gc.collect()  # a trained model holds itself in circles
        mm.cleanup_models()


def fresh_copy(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """The MODEL loaded anew with its own weights, which may be trained with, and the LoRAs that `model` carries.

    Call it inside training_mode: what is loaded elsewhere takes no gradients.

    Raises UserError where `model` cannot be loaded anew.
    """
    load, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    if load is None:
        raise UserError(
            "This model cannot be loaded a second time for training.",
            advice="load with this pack",
        )
    if getattr(model, "injections", None) or getattr(model, "weight_wrapper_patches", None):
        raise UserError(
            "The model carries a LoRA in bypass mode or another injected layer; its copy for training would lose it.",
            advice="apply the LoRA to weights",
        )
    copy = load(*arguments, disable_dynamic=True)
    copy.patches = {key: list(patches) for key, patches in model.patches.items()}
    copy.patches_uuid = model.patches_uuid
    return copy


def load_whole(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Bring all of `patcher` onto its device; every other model gives way, for training needs what there is."""
    mm.load_models_gpu([patcher], memory_required=1e20, force_full_load=True)


def differentiable_options(transformer_options: dict) -> dict:
    """`transformer_options` with torch's attention: not every one that ComfyUI may be started with has gradients."""

    def override(_: Callable, *args: object, **kwargs: object) -> torch.Tensor:
        return attention_pytorch(*args, **kwargs)

    return {**transformer_options, "optimized_attention_override": override}


def is_interrupted() -> bool:
    """Whether the user has cancelled the run; the wish stays noted until compat.throw_if_interrupted."""
    return mm.processing_interrupted()


InterruptProcessingException = mm.InterruptProcessingException


@contextmanager
def explained_out_of_memory(advice: str) -> Iterator[None]:
    """Raises UserError with `advice` in the place of an out of memory error."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"The device has no memory left for training ({str(error)[:120]}). {advice}") from error
