"""Let ComfyUI's own LoRA nodes know of our models' layers.

ComfyUI has no hook for this: comfy.lora.model_lora_keys_unet asks for its own model classes by name. So three of its
functions are wrapped, once, when the first CogVideoX model is loaded; for every other model the wrappers pass on what
they were given.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import comfy.lora
import comfy.sd

_MARK = "_cogvideox_wrapped"


def wrap_once(module: ModuleType, name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Replace a module's function by wrap(function), unless that has been done."""
    original = getattr(module, name)
    if not hasattr(original, _MARK):
        wrapper = functools.wraps(original)(wrap(original))
        setattr(wrapper, _MARK, True)
        setattr(module, name, wrapper)


def hook_stock_lora_nodes(
    model_class: type,
    is_ours: Callable[[dict], bool],
    spell: Callable[[object], dict],
    load: Callable[[dict, dict, Callable, bool], dict],
    prepare: Callable[[object, dict, dict | None], dict],
) -> None:
    """Make Load LoRA and all that goes the same way work with models of `model_class`.

    is_ours: whether a key map is that of such a model. spell: model -> every dialect's names of its weights, for the
    key map. load: (LoRA, key map, ComfyUI's load_lora, log_missing) -> patches. prepare: (MODEL, LoRA, header) -> the
    LoRA checked, with the header's alpha.
    """

    def keys(original: Callable) -> Callable:
        def model_lora_keys_unet(model: object, key_map: dict | None = None) -> dict:
            key_map = original(model, {} if key_map is None else key_map)
            if isinstance(model, model_class):
                key_map.update(spell(model))
            return key_map

        return model_lora_keys_unet

    def patches(original: Callable) -> Callable:
        def load_lora(lora: dict, to_load: dict, log_missing: bool = True) -> dict:
            if is_ours(to_load):
                return load(lora, to_load, original, log_missing)
            return original(lora, to_load, log_missing)

        return load_lora

    def apply(original: Callable) -> Callable:
        def load_lora_for_models(model: object, clip: object, lora: dict, *args: object, **kwargs: object) -> tuple:
            if isinstance(getattr(model, "model", None), model_class):
                # older hosts do not pass the file's header on
                header = kwargs.get("lora_metadata", args[2] if len(args) > 2 else None)
                lora = prepare(model, lora, header)
            return original(model, clip, lora, *args, **kwargs)

        return load_lora_for_models

    wrap_once(comfy.lora, "model_lora_keys_unet", keys)
    wrap_once(comfy.lora, "load_lora", patches)
    wrap_once(comfy.sd, "load_lora_for_models", apply)
