"""Save a MODEL as one .safetensors file, with its LoRAs merged, and converted or quantised."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.model_patcher
import torch

from ..errors import UserError
from ..host.messages import Notify
from ..host.quantized import (
    QUANTIZED_MODES,
    dequantized,
    is_gguf,
    is_quantized,
    quantize,
    quantized_state_dict,
    requantize,
    require_mode,
)
from ..samplers.checks import check_merge
from ..sockets.model import CogVideoXModel, require_cogvideox_model, require_weights
from ..transformer.parameter_types import is_block_matrix
from .files.safetensors_writer import Shapes, write_safetensors
from .precision import WEIGHT_DTYPES, quantized_mode

AS_LOADED = "as loaded"
SAVE_DTYPES = (AS_LOADED, "fp32", "bf16", "fp16", "fp8_e4m3fn", "int8")
_PREFIX = "diffusion_model."
_KEEP = "keep"  # as a weight's format: the quantisation that it has


def check_save_dtype(weight_dtype: str) -> None:
    """Raises UserError for one of SAVE_DTYPES that this ComfyUI has no type for."""
    if weight_dtype in QUANTIZED_MODES:
        require_mode(weight_dtype)


def save_model(
    model: comfy.model_patcher.ModelPatcher,
    path: Path,
    weight_dtype: str = AS_LOADED,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    notify: Notify = logging.warning,
) -> int:
    """Write the transformer of `model` under diffusers' names, its patches merged; returns the size in bytes.

    weight_dtype: one of SAVE_DTYPES. "as loaded" keeps each weight's dtype or quantisation; a patched GGUF weight,
    which cannot be packed again, becomes bf16. fp8 and int8 have the format of ComfyUI's own quantised files.
    on_progress(bytes done, bytes in total) may raise to stop; then no file is left behind. notify: gets a sentence
    where a merge has left weights out.

    Raises UserError for a model of another pack, one merged with a model of another size, an existing file, a full
    disk, or weights beyond the range of the dtype.
    """
    require_cogvideox_model(model)
    require_weights(model)
    check_merge(model, notify)
    weights = _patched_weights(model)
    # Shapes first, tensors later: a safetensors header comes before the data and needs every size, while the converted
    # model need not fit into memory.
    formats = {name: _choose_format(name, weight, weight_dtype) for name, weight in weights.items()}
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    weight_of: dict[str, str] = {}  # tensor in the file -> the weight that it is a part of
    for name, file_format in formats.items():
        parts = _file_shapes(name, weights[name], file_format)
        shapes |= parts
        weight_of |= dict.fromkeys(parts, name)
    # A quantised weight is several tensors in the file. It is converted once, when the first of them is written.
    converted: dict[str, torch.Tensor] = {}

    def file_tensor(name: str) -> torch.Tensor:
        if name not in converted:
            weight = weight_of[name]
            converted.update(_file_tensors(weight, _convert(weight, weights[weight], formats[weight])))
        # Popped, so that only the parts of the weight that is being written are in memory.
        return converted.pop(name)

    return write_safetensors(path, shapes, file_tensor, _metadata(model.model, weight_dtype), on_progress)


class PatchedWeight(NamedTuple):
    """A weight as it was loaded, and the patches of ModelPatcher on it."""

    tensor: torch.Tensor
    patches: list[Any]


def _patched_weights(model: comfy.model_patcher.ModelPatcher) -> dict[str, PatchedWeight]:
    """The weights of the transformer by diffusers' names, without computed buffers such as position tables."""
    transformer = model.model.diffusion_model
    saved = transformer.state_dict().keys()
    found = {}
    for name, tensor in [*transformer.named_parameters(), *transformer.named_buffers()]:
        key = _PREFIX + name
        # While a model is loaded, its parameters are the patched weights, and ComfyUI keeps the originals here. Merging
        # the patches into the parameters would apply a LoRA twice.
        backup = model.hook_backup.get(key) or model.backup.get(key)
        if name in saved:  # named_buffers also gives buffers with persistent=False
            found[name] = PatchedWeight(backup[0] if backup else tensor, model.patches.get(key, []))
    return found


def _choose_format(name: str, patched: PatchedWeight, weight_dtype: str) -> torch.dtype | str:
    """How one weight is written: a plain dtype, one of QUANTIZED_MODES, or _KEEP for its present quantisation."""
    weight, patches = patched
    # weight_dtype        block matrix    another weight
    # "as loaded"         as it is        as it is (a patched GGUF weight: bf16)
    # fp32, bf16, fp16    that dtype      that dtype
    # fp8_e4m3fn, int8    that mode       as it is (a quantised one: bf16)
    mode = quantized_mode(weight_dtype)
    if mode and is_block_matrix(name):
        return mode
    if weight_dtype in WEIGHT_DTYPES and not mode:
        return WEIGHT_DTYPES[weight_dtype]
    if not is_quantized(weight):
        return weight.dtype
    return torch.bfloat16 if mode or (patches and is_gguf(weight)) else _KEEP


def _convert(name: str, patched: PatchedWeight, file_format: torch.dtype | str) -> torch.Tensor:
    """One weight in `file_format`, its patches merged in fp32 and rounded once.

    Raises UserError where a plain dtype cannot represent its values.
    """
    weight, patches = patched
    # The dtype of a QuantizedTensor is the one that it is computed in, not the one that it is stored in.
    is_unchanged = file_format == _KEEP or (file_format == weight.dtype and not is_quantized(weight))
    if not patches and is_unchanged:
        return weight
    # In fp32 and from the original: rounding once gives the weight nearest to the exact sum. The clone below is needed,
    # because calculate_weight adds in place, and a plain fp32 weight is not copied here.
    merged = dequantized(weight.to("cpu"), torch.float32)
    if patches:
        merged = comfy.lora.calculate_weight(patches, merged.clone(), _PREFIX + name, intermediate_dtype=torch.float32)
    if isinstance(file_format, torch.dtype):
        # fp16 ends at 65504: a larger value would become Inf, and every video of the saved model black.
        rounded = merged.to(file_format)
        if not torch.isfinite(rounded).all():
            raise UserError(f"{name} contains NaN or Inf after rounding to {file_format}. Save it in bf16 or fp32.")
        return rounded
    if file_format == _KEEP:
        assert is_quantized(weight)
        return requantize(weight, merged)
    return quantize(merged, file_format, torch.bfloat16)


def _file_tensors(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of the file that one weight consists of.

    safetensors has no dtype for GGUF blocks. They are written as bytes under a name that contains their block type, as
    MinusZoneAI/ComfyUI-CogVideoX-MZ does and files/tensor_specs.py reads.
    """
    module = name.rpartition(".")[0]
    if is_gguf(tensor):
        return {f"{module}.{tensor._params.block_format.name}_qweight": tensor._qdata}
    return quantized_state_dict(tensor, f"{module}.") if is_quantized(tensor) else {name: tensor}


def _file_shapes(name: str, patched: PatchedWeight, file_format: torch.dtype | str) -> Shapes:
    """The shapes and dtypes of _file_tensors, without converting the weight."""
    weight = patched.tensor
    if isinstance(file_format, torch.dtype):
        return {name: (tuple(weight.shape), file_format)}
    if file_format == _KEEP:
        return {part: (tuple(t.shape), t.dtype) for part, t in _file_tensors(name, weight).items()}
    # Quantising a matrix of one row shows the names, dtypes and ranks of the parts. The codes have the shape of the
    # weight; of the others, a matrix holds one scale a row (int8), and the rest (fp8's scale, the format's name) is the
    # same for any size.
    row = _file_tensors(name, quantize(torch.ones(1, 32), file_format, torch.bfloat16))
    rows = weight.shape[0]
    shapes = {part: ((rows, 1) if t.ndim == 2 else tuple(t.shape), t.dtype) for part, t in row.items()}
    return shapes | {name: (tuple(weight.shape), row[name].dtype)}


def _metadata(model: CogVideoXModel, weight_dtype: str) -> dict[str, str]:
    """The header of the file: the configs that checkpoints.py reads where a file has no folder with a config.json.

    "modelspec.architecture" is a key of Stability AI's ModelSpec, which ComfyUI's Save Checkpoint writes as well
    (comfy_extras/nodes_model_merging.py).
    """
    model_config = model.model_config
    configs = {
        "transformer": {"_class_name": "CogVideoXTransformer3DModel", **model_config.transformer_config},
        "scheduler": {"snr_shift_scale": model_config.sampling_settings["snr_shift_scale"]},
        "vae": {
            "scaling_factor": model_config.latent_format.scale_factor,
            "invert_scale_latents": model_config.inverts_image_scale,
        },
    }
    return {
        "format": "pt",
        "config": json.dumps(configs),
        "modelspec.architecture": model_config.family.name,
        "weight_dtype": weight_dtype,
    }
