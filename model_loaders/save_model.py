"""A MODEL as one .safetensors file: converted, quantised and with its LoRAs merged, so that this happens once."""

import json
from collections.abc import Callable
from pathlib import Path

import comfy.lora
import comfy.model_patcher
import torch

from ..errors import UserError
from ..host.quantized import dequantized, is_gguf, is_quantized, quantize, quantized_state_dict, requantize
from ..sockets.model import CogVideoXModel, require_cogvideox_model
from ..transformer.parameter_types import is_block_matrix
from .files.safetensors_writer import Shapes, write_safetensors
from .precision import WEIGHT_DTYPES, quantized_mode

AS_LOADED = "as loaded"
SAVE_DTYPES = (AS_LOADED, "fp32", "bf16", "fp16", "fp8_e4m3fn", "int8")
_PREFIX = "diffusion_model."


def save_model(
    model: comfy.model_patcher.ModelPatcher,
    path: Path,
    weight_dtype: str = AS_LOADED,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the transformer of `model` under diffusers' names, with every patch that `model` carries; returns bytes.

    weight_dtype: one of SAVE_DTYPES. "as loaded" keeps each weight's own type; a patched GGUF weight, which cannot be
    packed again, becomes bf16. fp8 and int8 are written as ComfyUI's own quantised files are.
    on_progress(bytes done, bytes in all) may raise to stop.

    Raises UserError for a model of another pack, a file that is there already, a full disk, or weights that the
    type cannot hold.
    """
    require_cogvideox_model(model)
    weights = _weights(model)
    plans = {name: _plan(name, patches, weight_dtype) for name, patches in weights.items()}
    shapes, owner = {}, {}
    for name, plan in plans.items():
        pieces = _shapes(name, weights[name], plan)
        shapes |= pieces
        owner |= dict.fromkeys(pieces, name)
    held: dict[str, torch.Tensor] = {}  # what is left to write of one weight

    def piece(name: str) -> torch.Tensor:
        if name not in held:
            whole = owner[name]
            held.update(_pieces(whole, _converted(whole, weights[whole], plans[whole])))
        return held.pop(name)

    return write_safetensors(path, shapes, piece, _metadata(model.model, weight_dtype), on_progress)


def _weights(model: comfy.model_patcher.ModelPatcher) -> dict[str, tuple[torch.Tensor, list]]:
    """Each weight as it was loaded, and the patches that `model` puts on it, by diffusers' name."""
    transformer = model.model.diffusion_model
    kept = transformer.state_dict().keys()  # without the tables that are computed
    found = {}
    for name, tensor in [*transformer.named_parameters(), *transformer.named_buffers()]:
        key = _PREFIX + name
        # what ComfyUI replaced while the model is loaded, it keeps aside
        before = model.hook_backup.get(key) or model.backup.get(key)
        if name in kept:
            found[name] = before[0] if before else tensor, model.patches.get(key, [])
    return found


def _plan(name: str, weight_and_patches: tuple[torch.Tensor, list], weight_dtype: str) -> torch.dtype | str:
    """How one weight is written: a plain type, a quantised mode, or "kept" as it is quantised now."""
    weight, patches = weight_and_patches
    mode = quantized_mode(weight_dtype)
    if mode and is_block_matrix(name):
        return mode
    if weight_dtype in WEIGHT_DTYPES and not mode:
        return WEIGHT_DTYPES[weight_dtype]
    if not is_quantized(weight):
        return weight.dtype
    return torch.bfloat16 if mode or (patches and is_gguf(weight)) else "kept"


def _converted(name: str, weight_and_patches: tuple[torch.Tensor, list], plan: torch.dtype | str) -> torch.Tensor:
    """One weight with its patches merged in fp32, rounded once."""
    weight, patches = weight_and_patches
    # a quantised weight calls itself the type that it is computed in
    as_it_is = plan == "kept" or (plan == weight.dtype and not is_quantized(weight))
    if not patches and as_it_is:
        return weight
    merged = dequantized(weight.to("cpu"), torch.float32)
    if patches:
        merged = comfy.lora.calculate_weight(patches, merged.clone(), _PREFIX + name, intermediate_dtype=torch.float32)
    if isinstance(plan, torch.dtype):
        rounded = merged.to(plan)
        if not torch.isfinite(rounded).all():
            raise UserError(f"{name} holds values that are no numbers in {plan}. Save it in bf16 or fp32.")
        return rounded
    return requantize(weight, merged) if plan == "kept" else quantize(merged, plan, torch.bfloat16)


def _pieces(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """What stands in the file for one weight; GGUF blocks as bytes under the name of their type."""
    module = name.rpartition(".")[0]
    if is_gguf(tensor):
        return {f"{module}.{tensor._params.block_format.name}_qweight": tensor._qdata}
    return quantized_state_dict(tensor, f"{module}.") if is_quantized(tensor) else {name: tensor}


def _shapes(name: str, weight_and_patches: tuple[torch.Tensor, list], plan: torch.dtype | str) -> Shapes:
    """The pieces that _pieces will give, before anything is converted."""
    weight, _ = weight_and_patches
    if isinstance(plan, torch.dtype):
        return {name: (tuple(weight.shape), plan)}
    if plan == "kept":
        return {piece: (tuple(t.shape), t.dtype) for piece, t in _pieces(name, weight).items()}
    # one row tells all but how many rows there are
    row = _pieces(name, quantize(torch.ones(1, 32), plan, torch.bfloat16))
    rows = weight.shape[0]
    shapes = {piece: ((rows, 1) if t.ndim == 2 else tuple(t.shape), t.dtype) for piece, t in row.items()}
    return shapes | {name: (tuple(weight.shape), row[name].dtype)}


def _metadata(model: CogVideoXModel, weight_dtype: str) -> dict[str, str]:
    """What a lone file needs to be loaded again: the configs that otherwise stand beside it (checkpoints.py)."""
    known = model.model_config
    configs = {
        "transformer": {"_class_name": "CogVideoXTransformer3DModel", **known.transformer_config},
        "scheduler": {"snr_shift_scale": known.sampling_settings["snr_shift_scale"]},
        "vae": {
            "scaling_factor": known.latent_format.scale_factor,
            "invert_scale_latents": known.inverts_image_scale,
        },
    }
    return {
        "format": "pt",
        "config": json.dumps(configs),
        "modelspec.architecture": known.family.name,
        "weight_dtype": weight_dtype,
    }
