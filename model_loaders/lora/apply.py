"""Apply LoRAs of every dialect to a CogVideoX MODEL."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import comfy.model_patcher
import torch

from ...errors import UserError, quoted
from ...host.compat import throw_if_interrupted
from ...sockets.model import require_cogvideox_model
from ..component_files import read_header
from ..files.headers import check_names
from ..files.plain_numbers import ALPHA_NAME, LORA_CONFIG, alpha_metadata, tensors_of
from ..files.safetensors_files import looks_like_safetensors, open_safetensors
from ..files.torch_files import looks_like_torch, open_torch
from .layers import HEADER_KEY, MAX_SCALE, SCALES, Layer, describe_layer, missing_alphas
from .names import ALPHA, OWN_PREFIX, SortedKeys, sort_keys, split_key, weights_by_alias
from .other_models import require_this_model
from .report import LoraReport, misfit_message, name_some, zero_match_message
from .weight_patches import load_patches

# Layers whose shapes depend on the task of a model, through its input channels, and on CogVideoX 1.5's pairs of frames.
# All others have the same shapes in every model of this width: an image to video LoRA works on the text to video model
# but for these layers.
_TASK_LAYERS = {OWN_PREFIX + layer for layer in ("patch_embed.proj", "proj_out")}
_SAT_HINT = (
    "This file comes from SAT's trainer, which writes no alpha. SAT trains with alpha 1: if the effect is far too "
    f"strong, set scale to “{SCALES[1]}”."
)
_PART_HINT = (
    "The LoRA was trained with layers that this model does not have. The rest is applied; for its complete effect, "
    "load the model that it was trained for."
)


class Lora(NamedTuple):
    """A LoRA as it fits a model.

    tensors: "diffusion_model.<layer>.<part>" -> tensor, with the alpha of each layer that has one.
    """

    tensors: dict[str, torch.Tensor]
    report: LoraReport


def open_lora(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors of a LoRA file and the metadata of its header; of a PyTorch file, which has none, the alpha of all
    layers that may stand beside the tensors.

    Raises UserError for a file that is incomplete, contains code, or is neither a safetensors nor a PyTorch file.
    """
    metadata = read_header(path).metadata
    if looks_like_safetensors(path):
        return open_safetensors(path), metadata
    if looks_like_torch(path):
        return open_torch(path), metadata
    raise UserError(f"{path} is not a LoRA in a format that this version reads. Use a .safetensors file.")


def check_lora(path: Path) -> None:
    """Raises UserError for a file that is not a LoRA of any model. Only its header is read."""
    keys = list(read_header(path).entries)
    if not any(split_key(key) for key in keys):
        raise UserError(zero_match_message(str(path), keys, {}))


def apply_lora(
    model: comfy.model_patcher.ModelPatcher, path: Path, strength: float, scale: str = SCALES[0]
) -> tuple[comfy.model_patcher.ModelPatcher, LoraReport]:
    """A clone of `model` with the LoRA at `path` among its patches, and a report on the LoRA's keys.

    scale: one of SCALES. "as trained" is alpha / rank, from the tensors or the header, and 1 where neither has alpha.

    Raises UserError for a file that is not a LoRA for this model.
    """
    if scale not in SCALES:
        raise UserError(f"There is no LoRA scale {scale!r}. Choose one of: {', '.join(SCALES)}.")
    require_cogvideox_model(model)
    state_dict, metadata = open_lora(path)
    lora = read_lora(state_dict, metadata, model, scale, str(path))
    patched = model.clone()
    patches = load_patches(lora.tensors, weights_by_alias(weight_shapes(model)))
    # add_patches skips weights that the model does not have and returns the others. An example is a LoRA's bias for a
    # layer that has none.
    lost = patches.keys() - set(patched.add_patches(patches, strength))
    if lost:
        raise UserError(
            f"{path} changes {name_some(sorted(lost))}, which this model does not have. Load the model for which the "
            "LoRA was trained."
        )
    return patched, lora.report


def weight_shapes(model: comfy.model_patcher.ModelPatcher) -> dict[str, tuple[int, ...]]:
    """The logical shape of every parameter of the transformer, quantised or not, by its key in the MODEL."""
    named = model.model.diffusion_model.named_parameters()
    return {OWN_PREFIX + name: tuple(parameter.shape) for name, parameter in named}


def read_lora(
    state_dict: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None,
    model: comfy.model_patcher.ModelPatcher,
    scale: str = SCALES[0],
    source: str = "The LoRA",
    allow_none: bool = False,
) -> Lora:
    """The part of a LoRA that fits `model`.

    allow_none: where nothing fits, return an empty Lora whose report has the reason as its hint, instead of raising.

    Raises UserError where nothing fits, where the LoRA was trained for another model (require_this_model), or a layer
    has another size, is incomplete, or contains NaN or Inf.
    """
    try:  # a stock node has read the file with ComfyUI's own functions
        check_names(state_dict)
    except ValueError as error:
        raise UserError(f"{source} has {error}. Choose another LoRA.") from error
    shapes = weight_shapes(model)
    metadata = dict(metadata or {})
    if not {HEADER_KEY, LORA_CONFIG} & metadata.keys():
        metadata |= alpha_metadata(state_dict)
    state_dict = tensors_of(state_dict)
    names = weights_by_alias(shapes)
    found = sort_keys(state_dict, names)
    if not found.layers:
        reason = zero_match_message(source, list(state_dict), found.skipped)
        if not allow_none:
            raise UserError(reason)
        nothing = LoraReport(len(state_dict), unmatched=tuple(found.unmatched), skipped=found.skipped, hint=reason)
        return Lora({}, nothing)
    layers = _describe_layers(state_dict, found, source)
    # Shapes before values: shapes are known from the header, while checking for NaN reads the whole file.
    _drop_misfits(layers, found, shapes, source, list(state_dict))
    # After the shapes, whose message names the width: a LoRA of 5b has more blocks than 2b as well.
    require_this_model(found, names, source)
    _require_finite(state_dict, found, source)
    ranks = {layer: described.rank for layer, described in layers.items() if described.rank}
    alphas = missing_alphas(found.layers, ranks, metadata, scale)
    tensors = {f"{layer}.{part}": state_dict[key] for layer, keys in found.layers.items() for part, key in keys.items()}
    _require_usual_scales(tensors, alphas, ranks, source)
    # As tensors, which is how ComfyUI's load_lora reads them. In float64, because an alpha of 0.1 rounded to fp32 is
    # not the one of the header.
    tensors |= {f"{layer}.{ALPHA}": torch.tensor(alpha, dtype=torch.float64) for layer, alpha in alphas.items()}
    report = _report(found, layers, tensors, len(state_dict), _scale_source(found, alphas, metadata, scale))
    logging.info(f"{source}: {report.message()}")
    if details := report.details():
        logging.info(details)
    return Lora(tensors, report)


def _describe_layers(state_dict: Mapping[str, torch.Tensor], found: SortedKeys, source: str) -> dict[str, Layer]:
    """Layer -> its kind, rank and shape. Raises UserError for a layer that is incomplete or contradicts itself."""
    layers = {}
    for layer, keys in found.layers.items():
        throw_if_interrupted()
        try:
            layers[layer] = describe_layer({part: state_dict[key] for part, key in keys.items()})
        except ValueError as error:
            raise UserError(
                f"{source}: the layer {layer.removeprefix(OWN_PREFIX)} {error}. The LoRA is damaged or of a kind that "
                "cannot be applied. Download it again, or choose another one."
            ) from error
    return layers


def _drop_misfits(
    layers: dict[str, Layer], found: SortedKeys, shapes: Mapping[str, tuple[int, ...]], source: str, keys: list[str]
) -> None:
    """Move the layers whose shapes differ only because of the model's task to `found.skipped`.

    Raises UserError for any other layer of another shape.
    """
    misfits = {}
    for layer, described in layers.items():
        weight = shapes[layer + ".weight"]
        expected = weight[0], math.prod(weight[1:])  # of a convolution: [out, in * h * w], as the factors multiply
        if described.shape is not None and described.shape != expected:
            misfits[layer] = described.shape, expected
    # ComfyUI would log an error for each such layer and sample without the LoRA.
    if any(layer not in _TASK_LAYERS for layer in misfits) or len(misfits) == len(layers):
        widths = _lora_width(layers), shapes.get(f"{OWN_PREFIX}patch_embed.text_proj.weight", (None,))[0]
        raise UserError(misfit_message(source, misfits, widths, keys))
    for layer, (theirs, ours) in misfits.items():
        del layers[layer]
        why = (
            f"of another shape, {list(theirs)} against this model's {list(ours)} (trained for a model of another task)"
        )
        found.skipped.setdefault(why, []).extend(found.layers.pop(layer).values())


def _lora_width(layers: Mapping[str, Layer]) -> int | None:
    """The width of the model for which a LoRA was trained; None where it has no attention layers."""
    inner = (".attn1.to_q", ".attn1.to_k", ".attn1.to_v")
    return next((d.shape[1] for layer, d in layers.items() if d.shape and layer.endswith(inner)), None)


def _require_finite(state_dict: Mapping[str, torch.Tensor], found: SortedKeys, source: str) -> None:
    """Raises UserError where a tensor contains NaN or Inf, or has a dtype or shape that no LoRA has."""
    for keys in found.layers.values():
        throw_if_interrupted()  # a LoRA of gigabytes is read from the disk here
        for part, key in keys.items():
            tensor = state_dict[key]
            if part == ALPHA:
                is_valid = tensor.numel() == 1 and math.isfinite(tensor.item())
            else:
                # NaN in one weight turns the whole video black.
                is_valid = tensor.is_floating_point() and _is_finite(tensor)
            if not is_valid:
                raise UserError(
                    f"{source}: {key} ({tensor.dtype}, {list(tensor.shape)}) contains NaN or Inf, or is of a dtype or "
                    "shape that no LoRA has. The training diverged or the file is damaged. Choose another LoRA."
                )


def _require_usual_scales(
    tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float], ranks: Mapping[str, int], source: str
) -> None:
    """Raises UserError where alpha / rank, from the tensors or else from `alphas`, is beyond MAX_SCALE."""
    for layer, rank in ranks.items():
        key = f"{layer}.{ALPHA}"
        alpha = alphas[layer] if layer in alphas else tensors[key].item() if key in tensors else rank
        if not abs(alpha) <= MAX_SCALE * rank:
            raise UserError(
                f"{source}: the layer {layer.removeprefix(OWN_PREFIX)} has alpha {alpha:g} for rank {rank}, "
                f"more than {MAX_SCALE:g} times the rank: the file is damaged. Choose another LoRA."
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.numel():
        return True
    # NaN propagates to both extremes, and finding these is 20 times faster than isfinite on every value. fp8 has no
    # aminmax.
    extremes = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return all(bool(torch.isfinite(extreme)) for extreme in extremes)


def _scale_source(found: SortedKeys, alphas: Mapping[str, float], metadata: Mapping[str, str], scale: str) -> str:
    """Where the scales come from, in words. alphas: those that the header, a number
    beside the tensors or the user's choice gives."""
    if scale == SCALES[1]:
        return "1 / rank, as chosen"
    sources = ["alpha of the tensors"] if any(ALPHA in keys for keys in found.layers.values()) else []
    if alphas and ALPHA_NAME in metadata:
        sources.append(f"alpha beside the tensors, {quoted(metadata[ALPHA_NAME])}")
    elif alphas:
        sources.append(
            "alpha of the header" + ("" if {HEADER_KEY, LORA_CONFIG} & set(metadata) else ", ss_network_alpha")
        )
    return " and ".join(sources) or "the file has no alpha"


def _hint(found: SortedKeys, scale_source: str) -> str:
    """What else a user should know of the LoRA. scale_source: of _scale_source."""
    hints = [_SAT_HINT] if found.is_sat and scale_source == "the file has no alpha" else []
    if any(split_key(key) for key in found.unmatched):
        hints.append(_PART_HINT)
    return " ".join(hints)


def _report(
    found: SortedKeys, layers: Mapping[str, Layer], tensors: Mapping[str, torch.Tensor], total: int, source: str
) -> LoraReport:
    ranks = {layer: described.rank for layer, described in layers.items() if described.rank}
    alphas = {layer: tensors[f"{layer}.{ALPHA}"].item() for layer in ranks if f"{layer}.{ALPHA}" in tensors}
    scales = {alphas.get(layer, rank) / rank for layer, rank in ranks.items()}  # 1 without an alpha
    return LoraReport(
        total=total,
        matched=sum(map(len, found.layers.values())),
        layers=len(layers),
        kinds=tuple(dict.fromkeys(described.kind for described in layers.values())),
        ranks=tuple(sorted(set(ranks.values()))),
        scales=tuple(sorted(scales)),
        scale_source=source,
        unmatched=tuple(found.unmatched),
        skipped=found.skipped,
        hint=_hint(found, source),
    )
