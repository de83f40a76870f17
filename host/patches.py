"""Every change that the pack makes to ComfyUI's own modules, for the process as a whole. There are no others.

`comfy.lora.load_lora`, `comfy.lora.model_lora_keys_unet`, `comfy.sd.load_lora_for_models`
    are wrapped by wrap_stock_lora_nodes when the first CogVideoX model is loaded. ComfyUI has no hook through which its
    LoRA nodes could learn the names of a model's layers: model_lora_keys_unet knows ComfyUI's own model classes only.
`latent_preview.get_previewer`
    is wrapped by wrap_previewer at the same time, because ComfyUI's own previewer shows a video's first frame. While it
    runs for a latent of ours, `comfy.cli_args.args.preview_method` may have another value. A previewer that another
    pack has put there stays.
`comfy.quant_ops`
    learns the layout of GGUF blocks, under a name of ours, when host.quantized is imported (register_layout).
`comfy.model_management.in_training`, `comfy.ops.run_every_op`
    are switched by training_switches while a training runs in the graph, and restored.
`logging`
    is silent below errors while a VAE asks ComfyUI for its defaults (without_warnings), and restored.

A wrapper hands every call for other models and latent formats on, unchanged.

Other process-wide state, none of it ComfyUI's: the package's __init__.py enters the package in `sys.modules` under its
proper name; host.standalone sets `sys.path` and, while ComfyUI's options are parsed, `sys.argv`, in processes that are
not ComfyUI; training.parallelize resets accelerate's AcceleratorState before and after a training in the graph;
model_loaders.files.gguf_files silences one of numpy's warnings while it maps a file.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import comfy.lora
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.sd
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args

from .protocols import LatentFormat

_MARK = "_cogvideox_wrapped"  # an attribute of every wrapper of ours
Format = TypeVar("Format", bound=LatentFormat)


def wrap_once(module: ModuleType, name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Replace a module's function by wrap(function), unless that has been done."""
    original = getattr(module, name)
    if not hasattr(original, _MARK):
        wrapper = functools.wraps(original)(wrap(original))
        setattr(wrapper, _MARK, True)
        setattr(module, name, wrapper)


def wrap_stock_lora_nodes(
    model_class: type[torch.nn.Module],
    is_ours: Callable[[dict[str, Any]], bool],
    layer_aliases: Callable[[Any], dict[str, Any]],
    load: Callable[[dict[str, Any], dict[str, Any], Callable, bool], dict[str, Any]],
    prepare: Callable[[comfy.model_patcher.ModelPatcher, dict[str, Any], dict[str, str] | None], dict[str, Any]],
) -> None:
    """Make Load LoRA, and every node that calls the same functions, work with models of `model_class`.

    is_ours: whether a key map is that of such a model. layer_aliases: model -> the names that LoRA files have for its
    weights, for the key map. load: (LoRA, key map, ComfyUI's load_lora, log_missing) -> patches. prepare: (MODEL, LoRA,
    header of its file) -> the LoRA, checked, with the header's alpha.
    """

    # A LoRA node calls load_lora_for_models, and that calls model_lora_keys_unet for the key map, then load_lora with
    # it. Each wrapper therefore knows our models by what it is given: the model, the key map, the MODEL.
    def keys(original: Callable) -> Callable:
        def model_lora_keys_unet(model: Any, key_map: dict[str, Any] | None = None) -> dict[str, Any]:
            names: dict[str, Any] = original(model, {} if key_map is None else key_map)
            if isinstance(model, model_class):
                names.update(layer_aliases(model))
            return names

        return model_lora_keys_unet

    def patches(original: Callable) -> Callable:
        def load_lora(lora: dict[str, Any], to_load: dict[str, Any], log_missing: bool = True) -> dict[str, Any]:
            if is_ours(to_load):
                return load(lora, to_load, original, log_missing)
            return original(lora, to_load, log_missing)

        return load_lora

    def apply(original: Callable) -> Callable:
        def load_lora_for_models(
            model: comfy.model_patcher.ModelPatcher, clip: Any, lora: dict[str, Any], *args: Any, **kwargs: Any
        ) -> tuple:
            if isinstance(getattr(model, "model", None), model_class):
                # After the LoRA come both strengths and then the file's header, which older versions of ComfyUI do not
                # hand on.
                header = kwargs.get("lora_metadata", args[2] if len(args) > 2 else None)
                lora = prepare(model, lora, header)
            return original(model, clip, lora, *args, **kwargs)

        return load_lora_for_models

    wrap_once(comfy.lora, "model_lora_keys_unet", keys)
    wrap_once(comfy.lora, "load_lora", patches)
    wrap_once(comfy.sd, "load_lora_for_models", apply)


def wrap_previewer(
    format_class: type[Format], make_previewer: Callable[[torch.device, Format, bool], latent_preview.LatentPreviewer]
) -> None:
    """Preview latents of `format_class` with what `make_previewer` returns; every other latent as before.

    make_previewer: (device, latent format, whether the user has asked for a decoder's pictures) -> previewer.
    """

    def wrap(original: Callable) -> Callable:
        def get_previewer(
            device: torch.device, latent_format: Any, *rest: Any, **more: Any
        ) -> latent_preview.LatentPreviewer | None:
            if not isinstance(latent_format, format_class):
                return original(device, latent_format, *rest, **more)
            method = args.preview_method
            with_decoder = method == LatentPreviewMethod.TAESD
            if with_decoder:
                # ComfyUI has no decoder for our format and would warn that a file called "None" is missing.
                args.preview_method = LatentPreviewMethod.Latent2RGB
            try:
                previewer = original(device, latent_format, *rest, **more)
            finally:
                args.preview_method = method
            # Anything else means that previews are switched off or that another pack's wrapper has returned a previewer
            # of its own, which may be a subclass: hence not isinstance.
            if type(previewer) is not latent_preview.Latent2RGBPreviewer:
                return previewer
            return make_previewer(device, latent_format, with_decoder)

        return get_previewer

    wrap_once(latent_preview, "get_previewer", wrap)


def register_layout(name: str, layout: type) -> None:
    """Make a layout of ours known to ComfyUI's QuantizedTensor."""
    comfy.quant_ops.register_layout_class(name, layout)


@contextmanager
def training_switches() -> Iterator[None]:
    """While this lasts ComfyUI uses no kernels without gradients and does not cancel a run in the middle of a step."""
    was_training = getattr(mm, "in_training", False)  # versions of ComfyUI without it have no such kernels
    every_op = getattr(comfy.ops, "run_every_op", None)
    try:
        # comfy.ldm.flux.math.apply_rope1, among others, takes torch's operations then in place of a fused kernel.
        mm.in_training = True
        if every_op:
            # Every layer calls it, and it raises once the user has cancelled. A training has to end its step first: a
            # checkpoint of half a step could not be resumed.
            comfy.ops.run_every_op = lambda: None
        yield
    finally:
        mm.in_training = was_training
        if every_op:
            comfy.ops.run_every_op = every_op


@contextmanager
def without_warnings() -> Iterator[None]:
    """While this lasts only errors are logged, by any code of the process."""
    before = logging.root.manager.disable  # the level that logging.disable has set; there is no public getter
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
