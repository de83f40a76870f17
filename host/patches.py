"""Every change that the pack makes to ComfyUI's own modules, for the whole process. There are no others.

`load_lora`, `model_lora_keys_unet`, `load_lora_for_models`
    wrapped by wrap_stock_lora_nodes when the first CogVideoX model is loaded: ComfyUI has no hook that tells its LoRA
    nodes of a model's layers; comfy.lora.model_lora_keys_unet asks for its own model classes by name.
`latent_preview.get_previewer`
    wrapped by wrap_previewer at the same time: ComfyUI's own previewer shows a video's first frame. What another pack
    has put there before stays.
ComfyUI's registry of quantised layouts
    gets the layout of GGUF blocks, under a name of ours (register_layout), when host.quantized is imported.
`comfy.model_management.in_training`, `comfy.ops.run_every_op`
    switched by training_switches for as long as a training runs in the graph, and put back.
logging
    is silent below errors while a VAE asks ComfyUI for its defaults (without_warnings), and put back.

A wrapper passes on what it was given for every model and latent format but ours. In a process of its own,
host.standalone parses ComfyUI's options as its main.py does.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import comfy.lora
import comfy.model_management as mm
import comfy.ops
import comfy.quant_ops
import comfy.sd
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args

_MARK = "_cogvideox_wrapped"


def wrap_once(module: ModuleType, name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Replace a module's function by wrap(function), unless that has been done."""
    original = getattr(module, name)
    if not hasattr(original, _MARK):
        wrapper = functools.wraps(original)(wrap(original))
        setattr(wrapper, _MARK, True)
        setattr(module, name, wrapper)


def wrap_stock_lora_nodes(
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


def wrap_previewer(
    format_class: type, make_previewer: Callable[[torch.device, object, bool], latent_preview.LatentPreviewer]
) -> None:
    """Preview latents of `format_class` with what `make_previewer` returns; every other latent as before.

    make_previewer: (device, latent format, whether the user has asked for a decoder's pictures) -> previewer.
    """

    def wrap(original: Callable) -> Callable:
        def get_previewer(device: torch.device, latent_format: object, *rest: object, **more: object) -> object:
            if not isinstance(latent_format, format_class):
                return original(device, latent_format, *rest, **more)
            method = args.preview_method
            with_decoder = method == LatentPreviewMethod.TAESD
            if with_decoder:  # of which ComfyUI has none for our format, and would say that a file "None" is missing
                args.preview_method = LatentPreviewMethod.Latent2RGB
            try:
                previewer = original(device, latent_format, *rest, **more)
            finally:
                args.preview_method = method
            if type(previewer) is not latent_preview.Latent2RGBPreviewer:
                return previewer
            return make_previewer(device, latent_format, with_decoder)

        return get_previewer

    wrap_once(latent_preview, "get_previewer", wrap)


def register_layout(name: str, layout: type) -> None:
    """Let ComfyUI's QuantizedTensor know of a layout of ours."""
    comfy.quant_ops.register_layout_class(name, layout)


@contextmanager
def training_switches() -> Iterator[None]:
    """ComfyUI's kernels that have no gradients put aside, and no cancelling in the middle of a step."""
    was_training = getattr(mm, "in_training", False)  # hosts before it have nothing to switch
    every_op = getattr(comfy.ops, "run_every_op", None)
    try:
        mm.in_training = True
        if every_op:  # it ends a cancelled run in the middle of a step, of which no checkpoint could be written
            comfy.ops.run_every_op = lambda: None
        yield
    finally:
        mm.in_training = was_training
        if every_op:
            comfy.ops.run_every_op = every_op


@contextmanager
def without_warnings() -> Iterator[None]:
    """Nothing below an error is logged."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
