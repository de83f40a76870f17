"""ComfyUI while something is trained in it: gradients on, and nothing of the training left afterwards."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import attention_pytorch

from ..errors import UserError
from .compat import is_out_of_memory
from .patches import training_switches

_ALL_MEMORY_BYTES = 10**20  # more than any device has


@contextmanager
def training_mode() -> Iterator[None]:
    """Gradients inside a node (ComfyUI runs nodes without), and ComfyUI's kernels without gradients switched off.

    A cancelled run goes on until is_interrupted is asked.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), training_switches():
            yield
    finally:
        gc.collect()  # a trained model is part of a reference cycle
        mm.cleanup_models()


def fresh_copy(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """The MODEL loaded again, with weights that may be changed, and the LoRAs that `model` carries.

    Call it inside training_mode: what is loaded elsewhere takes no gradients.

    Raises UserError where `model` cannot be loaded again.
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


def load_fully(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Bring all of `patcher` onto its device; every other model is unloaded, for training needs all memory there is."""
    mm.load_models_gpu([patcher], memory_required=_ALL_MEMORY_BYTES, force_full_load=True)


def differentiable_options(transformer_options: dict) -> dict:
    """`transformer_options` with torch's attention: not every one that ComfyUI may be started with has gradients."""

    def override(_: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention_pytorch(*args, **kwargs)

    return {**transformer_options, "optimized_attention_override": override}


def is_interrupted() -> bool:
    """Whether the user has cancelled the run; the interrupt flag stays set until compat.throw_if_interrupted."""
    return mm.processing_interrupted()


InterruptProcessingException = mm.InterruptProcessingException


@contextmanager
def explained_out_of_memory(advice: str) -> Iterator[None]:
    """Raises UserError with `advice` instead of an out of memory error."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"The device has no memory left for training ({str(error)[:120]}). {advice}") from error
