"""One layer of a LoRA: its kind, the shape of its weight delta, its rank and its scale."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...errors import UserError
from ...host.compat import throw_if_interrupted
from ..files.headers import json_metadata
from ..files.plain_numbers import LORA_CONFIG
from .names import ALPHA, DOWN, MAGNITUDE, OWN_PREFIX, UP, UP_BIAS, split_key

# The second is for files that were trained with alpha 1 and do not say so, such as SAT's. ComfyUI-CogVideoXWrapper
# applies it to DimensionX's files, which it knows by their names; here it is the user's choice.
SCALES = ("as trained", "1 / rank (DimensionX)")
# Of alpha / rank. Trainers choose about 1, and nobody more than the rank; a strength multiplies it.
MAX_SCALE = 1000.0
HEADER_KEY = "lora_adapter_metadata"  # diffusers 0.34 and later (loaders/lora_base.py)
# Parts of layers with a third factor (Tucker decomposition), or that enlarge a weight.
_TUCKER = ("lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2", "reshape_weight")
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
# A header's regular expressions are accepted only in this form, without groups. Nested quantifiers in a hostile header
# could make matching take hours.
_MOST_PATTERNS = 1024  # a 5b model has 600 linear layers
_MOST_WILD_PATTERNS = 16
_PLAIN_PATTERN = r"[\w.^$\\|*-]{0,200}"


class Layer(NamedTuple):
    """kind: "LoRA", "DoRA", "LoHa", "LoKr" or "difference". shape: [out, in] of the weight delta, None without one."""

    kind: str
    rank: int | None
    shape: tuple[int, int] | None


def describe_layer(parts: Mapping[str, torch.Tensor]) -> Layer:
    """The kind, rank and shape of a layer from its tensors by part (names.py).

    A rank above the smaller side of the weight adds nothing, but honest files have it: a trainer gives every layer the
    same rank, and proj_out of a 5b model has 64 rows. None has one above the larger side, since two factors of such a
    rank take more room than the weight of both sides' length.

    Raises ValueError where parts are missing or do not fit each other; its text continues "the layer ...".
    """
    layer = _describe(parts)
    if layer.rank is not None and layer.shape is not None and layer.rank > max(layer.shape):
        raise ValueError(
            f"has rank {layer.rank} for a weight delta of shape {list(layer.shape)}, where at most {max(layer.shape)} "
            "is allowed"
        )
    dora = parts.get("dora_scale")
    if dora is not None and (layer.shape is None or dora.numel() not in layer.shape):
        raise ValueError(f"has {dora.numel()} values in dora_scale for a weight delta of shape {layer.shape}")
    return layer


def _describe(parts: Mapping[str, torch.Tensor]) -> Layer:
    if found := [part for part in _TUCKER if part in parts]:
        raise ValueError(f"has {found[0]}, which this version does not read")
    if DOWN in parts or UP in parts:
        return _describe_lora(parts)
    if any(part in parts for part in _HADA):
        w1_a, w1_b, w2_a, w2_b = (_matrix(parts, part) for part in _HADA)
        _require_chain(w1_a, w1_b)
        _require_chain(w2_a, w2_b)
        return Layer("LoHa", w1_b.shape[0], (w1_a.shape[0], w1_b.shape[1]))
    if any(part.startswith("lokr_") for part in parts):
        (out1, in1, rank1), (out2, in2, rank2) = _kronecker_factor(parts, 1), _kronecker_factor(parts, 2)
        return Layer("LoKr", rank2 or rank1, (out1 * out2, in1 * in2))
    delta = next((parts[part] for part in ("diff", "set_weight", "w_norm") if part in parts), None)
    if delta is not None:
        return Layer("difference", None, (delta.shape[0], math.prod(delta.shape[1:])))
    if "diff_b" in parts or "b_norm" in parts:
        return Layer("difference", None, None)
    raise ValueError(f"has only {' and '.join(sorted(parts))}")


def _describe_lora(parts: Mapping[str, torch.Tensor]) -> Layer:
    # down [rank, in] or [rank, in, h, w]; up [out, rank] or [out, rank, 1, 1]. For a pair that does not fit, ComfyUI
    # logs an error, leaves the layer unchanged and goes on.
    down, up = (_matrix(parts, part) for part in (DOWN, UP))
    if up[0].numel() != down.shape[0]:
        raise ValueError(f"has a lora_down of rank {down.shape[0]} and a lora_up of rank {up[0].numel()}")
    out, rank = up.shape[0], down.shape[0]
    for part in (MAGNITUDE, UP_BIAS):
        if part in parts and parts[part].numel() != out:
            raise ValueError(f"has {parts[part].numel()} values in {part} for {out} outputs")
    is_dora = MAGNITUDE in parts or "dora_scale" in parts
    return Layer("DoRA" if is_dora else "LoRA", rank, (out, down[0].numel()))


def _matrix(parts: Mapping[str, torch.Tensor], part: str) -> torch.Tensor:
    if part not in parts:
        raise ValueError(f"lacks {part}")
    if parts[part].ndim < 2 or not parts[part].numel():
        raise ValueError(f"has a {part} of shape {list(parts[part].shape)}")
    return parts[part]


def _require_chain(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"has factors of rank {a.shape[1]} and {b.shape[0]}")


def _kronecker_factor(parts: Mapping[str, torch.Tensor], number: int) -> tuple[int, int, int | None]:
    """(out, in, rank or None where it is not factorised) of factor 1 or 2 of a LoKr layer."""
    name = f"lokr_w{number}"
    if name in parts:
        factor = _matrix(parts, name)
        return factor.shape[0], math.prod(factor.shape[1:]), None
    a, b = _matrix(parts, name + "_a"), _matrix(parts, name + "_b")
    _require_chain(a, b)
    return a.shape[0], math.prod(b.shape[1:]), a.shape[1]


def header_alphas(
    metadata: Mapping[str, str], ranks: Mapping[str, int], spelled: Mapping[str, str] = {}
) -> dict[str, float]:
    """Layer -> alpha as the file's header has it; {} where it has none.

    ranks: layer -> rank. spelled: layer -> its name in the file, with the prefixes that the header's patterns may have
    as well. diffusers and finetrainers write peft's settings (lora_alpha, alpha_pattern, use_rslora), kohya its own.

    Raises UserError for settings that cannot be read, an alpha that is not a finite number, and an alpha_pattern of no
    usual kind.
    """
    # diffusers puts a component's name before each setting, since one file may hold LoRAs of several; peft does not.
    config = _header_settings(metadata)
    own = {key.removeprefix("transformer."): v for key, v in config.items() if key.startswith("transformer.")}
    config = own or config
    default = config.get("lora_alpha", config.get("alpha"))
    if default is None:
        kohya = metadata.get("ss_network_alpha")
        default = None if kohya in (None, "", "None", "null") else kohya
    patterns = _compiled_patterns(config.get("alpha_pattern") or {})
    alphas = {}
    for layer, rank in ranks.items():
        throw_if_interrupted()
        names = layer.removeprefix(OWN_PREFIX), spelled.get(layer, "")
        # the first that matches, as peft's get_pattern_key (utils/other.py) finds it
        alpha = next((value for pattern, value in patterns if any(map(pattern.match, names))), default)
        if alpha is not None:
            # peft's rank-stabilised LoRA divides alpha by the root of the rank (tuners/lora/layer.py), ComfyUI divides
            # by the rank: the factor makes up for the difference.
            alphas[layer] = _number(alpha) * (math.sqrt(rank) if config.get("use_rslora") is True else 1)
    return alphas


def _header_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """A LoRA's settings as peft calls them. diffusers does not read those of finetrainers, and applies 1.

    Raises UserError for settings that are damaged.
    """
    # Other programs may keep a text of another kind under finetrainers' name.
    has_own = HEADER_KEY not in metadata and metadata.get(LORA_CONFIG, "").lstrip().startswith("{")
    return json_metadata(metadata, LORA_CONFIG if has_own else HEADER_KEY, "The LoRA")


def _compiled_patterns(patterns: Any) -> list[tuple[re.Pattern[str], Any]]:
    """The regular expressions of peft's alpha_pattern and their values, in order.

    Raises UserError for what is not a table of layers, or would take long to match.
    """
    if not isinstance(patterns, dict):
        raise UserError(
            f"The LoRA's header has {str(patterns)[:80]!r} as alpha_pattern, which is not a table of layers. "
            "Save the LoRA again without alpha_pattern."
        )
    if len(patterns) > _MOST_PATTERNS or sum("*" in p or "|" in p for p in patterns) > _MOST_WILD_PATTERNS:
        raise UserError(
            f"The LoRA's header has an alpha_pattern of {len(patterns)} expressions. At most "
            f"{_MOST_PATTERNS} are read, and {_MOST_WILD_PATTERNS} with * or |: save the LoRA again with fewer."
        )
    compiled = []
    for pattern, value in patterns.items():
        if not re.fullmatch(_PLAIN_PATTERN, pattern) or pattern.count("*") > 2:
            raise UserError(
                f"The LoRA's header names layers by the expression {pattern[:80]!r}, which this version does not read. "
                "Save the LoRA again with plain layer names in alpha_pattern."
            )
        try:
            compiled.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except re.error as error:
            raise UserError(
                f"The LoRA's header has an invalid expression {pattern[:80]!r}: {error}. Save the LoRA again."
            ) from error
    return compiled


def _number(value: Any) -> float:
    """Raises UserError for anything but a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UserError(
            f"The LoRA's header has {str(value)[:80]!r} as alpha, which is not a finite number. Save the LoRA again."
        )
    return number


def missing_alphas(
    layers: Mapping[str, Mapping[str, str]], ranks: Mapping[str, int], metadata: Mapping[str, str], scale: str
) -> dict[str, float]:
    """Layer -> the alpha that the tensors do not give: from the header, or 1 where `scale` is "1 / rank".

    layers: layer -> part -> key in the file. ranks: layer -> rank. Layers that have an alpha tensor are left out unless
    `scale` overrides it.
    """
    if scale == SCALES[1]:
        return dict.fromkeys(ranks, 1.0)
    without = {layer: rank for layer, rank in ranks.items() if ALPHA not in layers[layer]}
    spelled = {layer: (split_key(next(iter(layers[layer].values()))) or ("",))[0] for layer in without}
    return header_alphas(metadata, without, spelled)
