"""Apply LoRAs of every dialect to a CogVideoX MODEL."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import comfy.model_patcher
import torch

from ...errors import UserError
from ...sockets.model import require_cogvideox_model
from ..checkpoints import read_header
from ..files.safetensors_files import looks_like_safetensors, open_safetensors
from ..files.torch_files import looks_like_torch, open_torch
from .layers import HEADER_KEY, SCALES, Layer, describe_layer, missing_alphas
from .names import ALPHA, OWN_PREFIX, SortedKeys, sort_keys, spell_layers, split_key
from .patches import load_patches
from .report import LoraReport, misfit_message, name_some, zero_match_message

MAX_STRENGTH = 100.0
# what a model of another task has in another shape, though the rest is the same: more channels, pairs of frames
_TASK_LAYERS = {OWN_PREFIX + layer for layer in ("patch_embed.proj", "proj_out")}
_SAT_HINT = (
    "This file comes from SAT's trainer without an alpha. SAT trains with alpha 1: if the effect is far too strong, "
    f"set scale to “{SCALES[1]}”."
)


@dataclass(frozen=True)
class Lora:
    """tensors: what fits the model, named "diffusion_model.<layer>.<part>", each layer with its alpha if it has one."""

    tensors: dict[str, torch.Tensor]
    report: LoraReport


def open_lora(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors of a LoRA file and the strings of its header ({} where the format has none).

    Raises UserError for a file that is not whole, holds code, or is no safetensors or PyTorch file.
    """
    metadata = read_header(path).metadata
    if looks_like_safetensors(path):
        return open_safetensors(path), metadata
    if looks_like_torch(path):
        return open_torch(path), {}
    raise UserError(f"{path} is no LoRA that this version reads. Use a .safetensors file.")


def check_lora(path: Path) -> None:
    """Raises UserError for a file that is no LoRA of any model, reading only its header."""
    keys = list(read_header(path).entries)
    if not any(split_key(key) for key in keys):
        raise UserError(zero_match_message(str(path), keys, {}))


def apply_lora(
    model: comfy.model_patcher.ModelPatcher, path: Path, strength: float, scale: str = SCALES[0]
) -> tuple[comfy.model_patcher.ModelPatcher, LoraReport]:
    """A clone of `model` with the LoRA at `path` among its patches, and what became of the LoRA's keys.

    scale: one of SCALES. "as trained" is alpha / rank, from the tensors or the header, and 1 where neither has alpha.

    Raises UserError for a file that is no LoRA for this model.
    """
    require_strength(strength)
    if scale not in SCALES:
        raise UserError(f"There is no LoRA scale {scale!r}. Choose {' or '.join(SCALES)}.")
    require_cogvideox_model(model)
    state_dict, metadata = open_lora(path)
    lora = read_lora(state_dict, metadata, model, scale, str(path))
    patched = model.clone()
    patches = load_patches(lora.tensors, spell_layers(weight_shapes(model)))
    lost = patches.keys() - set(patched.add_patches(patches, strength))
    if lost:
        raise UserError(
            f"{path} changes {name_some(sorted(lost))}, which this model does not have. Load the model that the LoRA "
            "was made for."
        )
    return patched, lora.report


def require_strength(strength: float) -> None:
    """Raises UserError for a strength that is no sensible number; linked values are not held to limits."""
    if not (math.isfinite(strength) and abs(strength) <= MAX_STRENGTH):
        raise UserError(f"LoRA strength is {strength}: use {-MAX_STRENGTH:g} to {MAX_STRENGTH:g}.")


def weight_shapes(model: comfy.model_patcher.ModelPatcher) -> dict[str, tuple[int, ...]]:
    """The logical shape of every parameter of the transformer, quantised ones too, by its key in the MODEL."""
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
    """What of a LoRA fits `model`.

    allow_none: give an empty Lora, whose report says why, where nothing fits, instead of raising.

    Raises UserError where nothing fits, a layer has another size, is incomplete, or holds NaN.
    """
    shapes = weight_shapes(model)
    found = sort_keys(state_dict, spell_layers(shapes))
    if not found.layers:
        reason = zero_match_message(source, list(state_dict), found.skipped)
        if not allow_none:
            raise UserError(reason)
        nothing = LoraReport(len(state_dict), unmatched=tuple(found.unmatched), skipped=found.skipped, hint=reason)
        return Lora({}, nothing)
    layers = _describe_layers(state_dict, found, source)
    _drop_misfits(layers, found, shapes, source, list(state_dict))
    _require_finite(state_dict, found, source)
    ranks = {layer: described.rank for layer, described in layers.items() if described.rank}
    alphas = missing_alphas(found.layers, ranks, metadata or {}, scale)
    tensors = {f"{layer}.{part}": state_dict[key] for layer, keys in found.layers.items() for part, key in keys.items()}
    # float64: an alpha of 0.1 in fp32 would be another one than the header's
    tensors |= {f"{layer}.{ALPHA}": torch.tensor(alpha, dtype=torch.float64) for layer, alpha in alphas.items()}
    report = _report(found, layers, tensors, len(state_dict), _scale_source(found, alphas, metadata or {}, scale))
    logging.info(f"{source}: {report.message()}")
    if details := report.details():
        logging.info(details)
    return Lora(tensors, report)


def _describe_layers(state_dict: Mapping[str, torch.Tensor], found: SortedKeys, source: str) -> dict[str, Layer]:
    layers = {}
    for layer, keys in found.layers.items():
        try:
            layers[layer] = describe_layer({part: state_dict[key] for part, key in keys.items()})
        except ValueError as error:
            raise UserError(
                f"{source}: the layer {layer.removeprefix(OWN_PREFIX)} {error}. The LoRA is damaged or of a kind that "
                "cannot be applied; fetch it again, or choose another."
            ) from error
    return layers


def _drop_misfits(
    layers: dict[str, Layer], found: SortedKeys, shapes: Mapping[str, tuple[int, ...]], source: str, keys: list[str]
) -> None:
    """Move the layers that models of another task have in another shape to the skipped ones.

    Raises UserError for any other layer of another size.
    """
    misfits = {}
    for layer, described in layers.items():
        weight = shapes[layer + ".weight"]
        expected = weight[0], math.prod(weight[1:])
        if described.shape is not None and described.shape != expected:
            misfits[layer] = described.shape, expected
    if any(layer not in _TASK_LAYERS for layer in misfits) or len(misfits) == len(layers):
        widths = _lora_width(layers), shapes.get(f"{OWN_PREFIX}patch_embed.text_proj.weight", (None,))[0]
        raise UserError(misfit_message(source, misfits, widths, keys))
    for layer, (theirs, ours) in misfits.items():
        del layers[layer]
        why = f"of another shape, {list(theirs)} against this model's {list(ours)} (made for a model of another task)"
        found.skipped.setdefault(why, []).extend(found.layers.pop(layer).values())


def _lora_width(layers: Mapping[str, Layer]) -> int | None:
    inner = (".attn1.to_q", ".attn1.to_k", ".attn1.to_v")
    return next((d.shape[1] for layer, d in layers.items() if d.shape and layer.endswith(inner)), None)


def _require_finite(state_dict: Mapping[str, torch.Tensor], found: SortedKeys, source: str) -> None:
    for keys in found.layers.values():
        for part, key in keys.items():
            tensor = state_dict[key]
            if part == ALPHA:
                good = tensor.numel() == 1 and math.isfinite(tensor.item())
            else:
                good = tensor.is_floating_point() and _is_finite(tensor)
            if not good:
                raise UserError(
                    f"{source}: {key} ({tensor.dtype}, {list(tensor.shape)}) holds values that are no numbers (NaN or "
                    "infinity) or of a type that no LoRA has. The training diverged or the file is damaged; choose "
                    "another."
                )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.numel():
        return True
    # fp8 has no such operation of its own; NaN takes both extremes, and finding them is 20 times faster than a test
    # of every value
    extremes = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return all(bool(torch.isfinite(extreme)) for extreme in extremes)


def _scale_source(found: SortedKeys, alphas: Mapping[str, float], metadata: Mapping[str, str], scale: str) -> str:
    if scale == SCALES[1]:
        return "1 / rank, as chosen"
    sources = ["alpha of the tensors"] if any(ALPHA in keys for keys in found.layers.values()) else []
    if alphas:
        sources.append("alpha of the header" + ("" if HEADER_KEY in metadata else ", ss_network_alpha"))
    return " and ".join(sources) or "the file has no alpha"


def _report(
    found: SortedKeys, layers: Mapping[str, Layer], tensors: Mapping[str, torch.Tensor], total: int, source: str
) -> LoraReport:
    ranked = {layer: described.rank for layer, described in layers.items() if described.rank}
    alphas = {layer: tensors.get(f"{layer}.{ALPHA}") for layer in ranked}
    scales = {1.0 if alphas[layer] is None else alphas[layer].item() / rank for layer, rank in ranked.items()}
    return LoraReport(
        total=total,
        matched=sum(map(len, found.layers.values())),
        layers=len(layers),
        kinds=tuple(dict.fromkeys(described.kind for described in layers.values())),
        ranks=tuple(sorted(set(ranked.values()))),
        scales=tuple(sorted(scales)),
        scale_source=source,
        unmatched=tuple(found.unmatched),
        skipped=found.skipped,
        hint=_SAT_HINT if found.is_sat and source == "the file has no alpha" else "",
    )
