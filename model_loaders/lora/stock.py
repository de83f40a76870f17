"""The same reading of LoRAs behind ComfyUI's own nodes: Load LoRA, its model-only form, hooks and bypass."""

from functools import partial

from ...host.messages import Notify
from ...host.patches import wrap_stock_lora_nodes
from .apply import read_lora
from .names import OWN_PREFIX, TELLTALE_NAME, spell_layers
from .patches import load_patches


def enable_stock_lora_nodes(model_class: type, notify: Notify) -> None:
    """Teach ComfyUI's LoRA functions the layers of `model_class`, once; see host.patches.

    notify: is told why nothing of a LoRA fits.
    """
    wrap_stock_lora_nodes(model_class, _is_ours, _spell, load_patches, partial(_prepare, notify))


def _is_ours(key_map: dict) -> bool:
    return TELLTALE_NAME in key_map


def _spell(model: object) -> dict[str, str]:
    return spell_layers(OWN_PREFIX + name for name, _ in model.diffusion_model.named_parameters())


def _prepare(notify: Notify, model: object, lora: dict, header: dict | None) -> dict:
    """The LoRA with what fits `model` checked and renamed; what is for a text encoder stays as it is."""
    read = read_lora(lora, header, model, allow_none=True)
    text = read.report.skipped.get("for a text encoder", ())
    if not read.tensors:
        if len(text) < len(lora):
            notify(read.report.hint)
        return lora
    return read.tensors | {key: lora[key] for key in (*read.report.unmatched, *text)}
