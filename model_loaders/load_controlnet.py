"""Load a control net from disk as a CONTROL_NET."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ..errors import UserError
from ..host.compat import is_dynamic, model_patcher_class
from ..host.cpu_products import cpu_operations
from ..host.ops import adopt_ops
from ..host.optional_packages import prepare_diffusers
from ..sockets.control import CogVideoXControl, base_family
from ..sockets.families import FAMILIES
from ..transformer.parameter_types import parameter_dtype
from ..vae.geometry import CHANNELS, SPATIAL
from .assign import assign_weights
from .checkpoints import describe_component, open_component
from .config_conflicts import config_conflict
from .config_limits import checked_config
from .file_stamps import if_unchanged
from .precision import choose_dtypes
from .side_configs import control_differences, control_shape
from .variants import HasShape

if TYPE_CHECKING:
    from ..transformer.control_net import CogVideoXControlNet, ControlConfig

PIXEL_CHANNELS = 3


def load_controlnet(path: Path, weight_dtype: str = "default") -> CogVideoXControl:
    """Load the control net at `path` (see checkpoints.open_component) as a CONTROL_NET.

    weight_dtype: a key of precision.WEIGHT_DTYPES.

    Raises UserError where the weights are not a CogVideoX control net, or one that no CogVideoX model can use.
    """
    return CogVideoXControl(_load_patcher(path, weight_dtype))


def check_control_net(path: Path) -> None:
    """Raises UserError for what load_controlnet would refuse of the headers and configs at `path`; nothing else is
    read."""
    found, described = describe_component(path, "controlnet")
    _fitting_config(found.entries, described.config, str(described.path), described.is_config_in_header)


def _load_patcher(path: Path, weight_dtype: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    load_again = if_unchanged(_load_patcher, path, "controlnet")  # before the files are opened
    weights = open_component(path, "controlnet")
    state_dict, source = weights.state_dict, str(weights.path)
    config = resolve_control_config(state_dict, weights.config, source, weights.is_config_in_header)
    load_device = mm.get_torch_device()
    storage, compute = choose_dtypes(
        weight_dtype,
        base_family(config).trained_dtype,
        comfy.utils.weight_dtype(state_dict),
        comfy.utils.calculate_parameters(state_dict),
        load_device,
    )
    net = build_control_net(config, storage, compute, load_device)
    # Before the weights: see load_model._build_patcher.
    patcher = model_patcher_class(disable_dynamic)(
        net, load_device=load_device, offload_device=mm.unet_offload_device()
    )
    assign_weights(net, state_dict, cast=not is_dynamic(patcher), source=source)
    patcher.cached_patcher_init = (load_again, (path, weight_dtype))
    return patcher


def build_control_net(
    config: "ControlConfig", storage: torch.dtype, compute: torch.dtype | None, device: torch.device
) -> "CogVideoXControlNet":
    """An empty control net on the meta device: leaves are ComfyUI operations, parameters have their final dtypes.

    device: where it will be computed.
    """
    prepare_diffusers()
    from ..transformer.control_net import CogVideoXControlNet

    with torch.device("meta"):
        net = CogVideoXControlNet(config)
    net.dtype = compute or storage
    # On the meta device a cast moves no data. It notes the dtypes to which assign_weights casts.
    for name, parameter in net.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, parameter.ndim, storage, compute))
    adopt_ops(net, cpu_operations(net.dtype, device) or comfy.ops.pick_operations(storage, compute))
    return net.eval()


def resolve_control_config(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None, source: str, is_in_header: bool = False
) -> "ControlConfig":
    """The config of some weights.

    config: the config.json of the weights; None takes that of the published control nets of this size.
    source: path for messages. is_in_header: whether the config stands in the header of the weights' file.

    Raises UserError where config and weights contradict each other, for a control net that cannot run here, and as
    prepare_diffusers does.
    """
    prepare_diffusers()
    from ..transformer.control_net import ControlConfig

    config, shape = _fitting_config(state_dict, config, source, is_in_header)
    # config.json has entries besides, such as _class_name, that ControlConfig does not take.
    known = {f.name for f in fields(ControlConfig)}
    claimed = ControlConfig(**{k: v for k, v in config.items() if k in known})
    shape = {name: value for name, value in shape.items() if name not in ("dim", "pixels")}
    # The shapes win over the config, which lacks text_embed_dim and out_proj_dim in the published files.
    _require_runnable(claimed, source)
    return ControlConfig(**{k: v for k, v in config.items() if k in known} | shape)


def _fitting_config(
    tensors: Mapping[str, HasShape], config: Mapping[str, Any] | None, source: str, is_in_header: bool
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """(config, shape) of some weights or of their headers' entries; the rest: as for resolve_control_config.

    Raises UserError as resolve_control_config does, but for a control net that cannot run here.
    """
    shape = control_shape(tensors, source)
    checked_config("controlnet", shape, f"The control net that the weights in {source} describe")
    config = _published_config(shape, source) if config is None else checked_config("controlnet", config, source)
    if differences := control_differences(config, shape):
        raise config_conflict(differences, source, "control net", is_in_header)
    return config, shape


def _published_config(shape: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The config of a published control net: heads of 64 channels, positions of the model that it is for.

    That is the text to video model whose width the outputs have. Rotary positions leave no trace in the weights, so
    that the width is all there is to tell 2b's control nets from 5b's. Raises UserError where no model has this width.
    """
    output_dim = shape["out_proj_dim"] or shape["dim"]
    for family in FAMILIES:
        if family.task == "text" and family.patch_size_t is None and family.heads * 64 == output_dim:
            return {
                "num_attention_heads": shape["dim"] // 64,
                "attention_head_dim": 64,
                "use_rotary_positional_embeddings": family.rotary,
            }
    raise UserError(
        f"{source} has no config.json, and no CogVideoX model has its width of {output_dim}. Put the control net's "
        "config.json into the folder of its weights, and choose the folder."
    )


def _require_runnable(config: "ControlConfig", source: str) -> None:
    """Raises UserError for a control net whose outputs fit no CogVideoX model."""
    problems = []
    if config.downscale_coef != SPATIAL:
        problems.append(
            f"downscales the control video by {config.downscale_coef} instead of {SPATIAL} (as CogVideoX's VAE does)"
        )
    if (config.in_channels, config.vae_channels) != (PIXEL_CHANNELS, CHANNELS):
        problems.append(
            f"takes {config.in_channels} colour and {config.vae_channels} latent channels instead of {PIXEL_CHANNELS} "
            f"and {CHANNELS}"
        )
    if config.use_learned_positional_embeddings:
        problems.append("has a learned position table, which no CogVideoX text to video model has")
    if problems:
        raise UserError(
            f"The control net in {source} {' and '.join(problems)}, so it fits no CogVideoX model. Choose a control "
            "net that was trained for CogVideoX-2b or CogVideoX-5b."
        )
