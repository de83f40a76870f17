"""Load a transformer from disk as a MODEL."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension

from ..host.compat import is_dynamic, model_patcher_class
from ..host.messages import Notify
from ..host.toy import is_toy
from ..host.weight_patcher import adopt_patcher
from ..samplers.outer_sample import sample_checked
from ..samplers.toy_sizes import tell_toy_size
from ..samplers.window_caches import cached_apart
from ..sockets.model import CogVideoXConfig, CogVideoXModel
from ..sockets.preview_renderers import enable_previews
from ..sockets.recommended import add_settings_hint, recommended_for
from ..sockets.toy_colours import show_toy_colours
from .assign import assign_weights
from .checkpoints import Weights, describe_component, open_component
from .file_stamps import if_unchanged
from .load_tiny_decoder import first_tiny_decoder
from .lora.stock import enable_stock_lora_nodes
from .precision import check_precision, choose_precision
from .quantization import any_gguf
from .variants import DETECT, detect_family, resolve_config, resolve_snr_shift


def load_model(
    path: Path,
    weight_dtype: str = "default",
    notify: Notify = logging.warning,
    family: str = DETECT,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """Load the transformer at `path` (see checkpoints.open_component) as a MODEL.

    weight_dtype: one of precision.PRECISIONS. notify: called with sentences for the user, about runs of this model and
    LoRAs on it. family: one of variants.FAMILY_NAMES, for weights that cannot tell. disable_dynamic: without dynamic
    VRAM, which ComfyUI's ModelPatcher.clone asks for, for example where hooks change weights during a run or
    TorchCompileModel compiles the model.

    Raises UserError where the weights are not a CogVideoX transformer, or the device cannot run the precision.
    """
    check_precision(weight_dtype, mm.get_torch_device())
    load_again = if_unchanged(load_model, path, "transformer")  # before the files are opened
    weights = open_component(path, "transformer")
    patcher = _build_patcher(weights, weight_dtype, notify, family, disable_dynamic)
    if is_toy(path):
        told = partial(tell_toy_size, notify)
        patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "cogvideox toy", told)
        show_toy_colours(patcher)
    loaded: Any = patcher.model
    known = loaded.model_config
    if settings := recommended_for(known.family, known.transformer_config):
        add_settings_hint(patcher, known.family.name, settings, notify)
    _add_checks(patcher, notify)
    # The function and arguments by which ComfyUI loads the model a second time, with weights that no patch has
    # touched: for a clone without dynamic VRAM (it adds disable_dynamic=True), and for one on another GPU. Without
    # them, both raise.
    patcher.cached_patcher_init = (load_again, (path, weight_dtype, notify, family))
    return patcher


def check_model(path: Path, family: str = DETECT) -> None:
    """Raises UserError where the weights at `path` are not a CogVideoX transformer, or not of `family`.

    Only headers and configs are read. Whether each layer is there shows in diffusers' class of the model, whose import
    takes seconds: that is found when the model is loaded.
    """
    found, described = describe_component(path, "transformer")
    config = resolve_config(found.entries, described.config, str(described.path), family, described.is_config_in_header)
    detect_family(config, family, described.hint)


def _build_patcher(
    weights: Weights, weight_dtype: str, notify: Notify, chosen_family: str, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    state_dict = weights.state_dict
    config = resolve_config(state_dict, weights.config, str(weights.path), chosen_family, weights.is_config_in_header)
    family = detect_family(config, chosen_family, weights.hint)
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    precision = choose_precision(weight_dtype, family.trained_dtype, state_dict, load_device)
    has_gguf = precision.keeps_quantized and any_gguf(state_dict)
    # The scaling factor belongs to the VAE, but a run has to know it without one: KSampler gets a MODEL only. It comes
    # from the VAE's config in the same pipeline, and from the family for weights that are alone.
    vae_config = weights.siblings.get("vae", {})
    model_config = CogVideoXConfig(
        config,
        family,
        vae_config.get("scaling_factor", family.vae_scaling_factor),
        resolve_snr_shift(weights.siblings.get("scheduler"), family, str(weights.path), notify),
        vae_config.get("invert_scale_latents", family.inverts_image_scale),
    )
    model_config.set_inference_dtype(precision.storage, precision.compute)
    model_config.custom_operations = precision.operations_on(load_device)
    # Both change ComfyUI for the whole process (host/patches.py), therefore only once a CogVideoX model is in use.
    enable_stock_lora_nodes(CogVideoXModel, notify)
    enable_previews(first_tiny_decoder)
    model = CogVideoXModel(model_config)
    # The patcher comes before the weights: only the finished one can say whether it loads dynamically, since ComfyUI's
    # class makes a plain patcher where the device is the CPU, and that decides whether the weights are cast.
    patcher_class = model_patcher_class(disable_dynamic or has_gguf)
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    adopt_patcher(patcher)
    source = str(weights.path)
    assign_weights(model.diffusion_model, state_dict, not is_dynamic(patcher), source, precision)
    return patcher


def _add_checks(patcher: comfy.model_patcher.ModelPatcher, notify: Notify) -> None:
    """On the MODEL, so that the checks and CogVideoX 1.5's frame in front apply to every sampler node, KSampler too."""
    wrapper = partial(sample_checked, notify)
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "cogvideox", wrapper)
    # Before any node can put EasyCache on the MODEL, so that it is around EasyCache's own wrapper.
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "cogvideox", cached_apart)
