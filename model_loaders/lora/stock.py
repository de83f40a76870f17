"""Let ComfyUI's own LoRA nodes read every dialect: Load LoRA, its model-only form, hooks and bypass."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.model_patcher
import torch

from ...host.messages import Notify, clear_running_node
from ...host.patches import wrap_stock_lora_nodes
from ...sockets.model import CogVideoXModel
from .apply import read_lora
from .names import OWN_PREFIX, SIGNATURE_KEY, weights_by_alias
from .weight_patches import load_patches


def enable_stock_lora_nodes(model_class: type, notify: Notify) -> None:
    """Wrap ComfyUI's LoRA functions for models of `model_class`, once per process; see host.patches.

    notify: called with the reason where no key of a LoRA fits.
    """
    wrap_stock_lora_nodes(model_class, _is_ours, _key_map, load_patches, partial(_prepare, notify))


def _is_ours(key_map: Mapping[str, Any]) -> bool:
    return SIGNATURE_KEY in key_map


def _key_map(model: CogVideoXModel) -> dict[str, str]:
    return weights_by_alias(OWN_PREFIX + name for name, _ in model.diffusion_model.named_parameters())


def _prepare(
    notify: Notify,
    model: comfy.model_patcher.ModelPatcher,
    lora: dict[str, torch.Tensor],
    header: Mapping[str, str] | None,
) -> dict[str, torch.Tensor]:
    """`lora` with the keys that fit `model` checked and renamed; keys for a text encoder stay as they are."""
    clear_running_node()
    read = read_lora(lora, header, model, allow_none=True)
    # Nothing fits the model: a warning, unless the LoRA is one for a text encoder only, which ComfyUI's node applies.
    text = read.report.skipped.get("for a text encoder", ())
    if not read.tensors:
        if len(text) < len(lora):
            notify(read.report.hint)
        return lora
    return read.tensors | {key: lora[key] for key in (*read.report.unmatched, *text)}
