"""ComfyUI while something is trained in it: gradients on, and nothing of the training left afterwards."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as mm
import comfy.model_patcher
import torch

from ..errors import UserError
from .compat import is_out_of_memory
from .patches import training_switches

_ALL_MEMORY_BYTES = 10**20  # more than any device has


@contextmanager
def training_mode() -> Iterator[None]:
    """Gradients inside a node, which ComfyUI runs in inference mode, and ComfyUI's kernels without gradients switched
    off.

    Cancel raises nothing meanwhile: a training asks is_interrupted itself.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), training_switches():
            yield
    finally:
        # A trained model is part of a reference cycle. Only once that is collected does cleanup_models take the model
        # off ComfyUI's list of loaded ones.
        gc.collect()
        mm.cleanup_models()


def fresh_copy(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """The MODEL loaded again, with weights that may be changed, and the LoRAs that `model` carries.

    Call it inside training_mode: tensors that are made in inference mode take no gradients. ModelPatcher.clone would
    not do, because a clone shares the weights of the MODEL, which other nodes go on using.

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
    # Without dynamic VRAM, whose patcher loads weights on demand: a training changes the parameters themselves.
    copy = load(*arguments, disable_dynamic=True)
    copy.patches = {key: list(patches) for key, patches in model.patches.items()}
    copy.patches_uuid = model.patches_uuid  # as ModelPatcher.clone does: the same patches under the same id
    return copy


def load_fully(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Bring all of `patcher` onto its device. Every other model is unloaded, because a training needs all the memory
    that there is."""
    mm.load_models_gpu([patcher], memory_required=_ALL_MEMORY_BYTES, force_full_load=True)


def settle_attention(device: torch.device) -> None:
    """Have torch decide about its attention kernels, before anything is computed that has to be computed again.

    On Hopper and Blackwell cards torch puts cuDNN's kernel first at the first attention of the process, whatever order
    ComfyUI has asked for; from the second on ComfyUI's order holds. A block that gradient checkpointing computes again
    would get another kernel than at first, which keeps tensors of other shapes: torch ends the training with
    "Recomputed values ... have different metadata". Seen on an H100 with torch 2.11.

    Source: torch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, priority_order.
    """
    if device.type == "cuda":
        tokens = torch.zeros(1, 1, 8, 64, device=device, dtype=torch.float16)
        torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


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
        # torch's message goes on for lines with statistics of its allocator.
        raise UserError(f"The device has no memory left for training ({str(error)[:120]}). {advice}") from error
