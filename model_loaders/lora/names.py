"""The names of CogVideoX's layers and of the parts of a LoRA in each LoRA dialect. Nothing here reads a file.

Sources of the names: diffusers' loaders/peft.py and utils/state_dict_utils.py; THUDM/CogVideo tools/
export_sat_lora_weight.py; aigc-apps/CogVideoX-Fun cogvideox/utils/lora_utils.py; ComfyUI's comfy/weight_adapter.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...errors import UserError, quoted
from ..files.key_maps import MODULE_WRAPPERS, split_ends

OWN_PREFIX = "diffusion_model."  # of a layer in ComfyUI's MODEL
# Only the key map of a CogVideoX model has this name, so that a key map with it is recognised as one: ComfyUI's
# load_lora is not told the model.
SIGNATURE_KEY = "lora_unet__patch_embed_text_proj"

# Every dialect names a layer by a prefix and the name of the layer in diffusers, ComfyUI or DiffSynth. The prefixes are
# countless, for each program wraps the model in modules of its own: the longest end of a key that names a layer decides
# (find_weight). Flat dialects (Fun, kohya, LyCORIS) write "_" for the dots, which cannot be reversed:
# "transformer_blocks_0" has "_" of its own. Therefore all names of each layer are made, and a key is looked up among
# them.
_FLAT_PREFIX = "lora_unet__"  # Fun's: of SIGNATURE_KEY
# A prefix with one of these does not wrap this model: the layer is a part of something larger. A number counts blocks
# (Flux: single_transformer_blocks.0.proj_out, Stable Diffusion: down_blocks.1.attentions.0.transformer_blocks.0.attn1).
_FOREIGN_WORD = r"(?:^|[._])(?:\d+|single|double|joint|encoder|decoder|te\d?|text|vae|control|controlnet)(?:[._]|$)"
# Flat names are short, and their words stand in other names as well (img_proj_out): what is before one, back to the
# last dot, has to begin as trainers' prefixes do.
_FLAT_START = r"(?:^|\.)(?:lora|lycoris)_\w*$"
# diffusers' layers -> the names of ComfyUI's own CogVideoX model (comfy/ldm/cogvideo/model.py)
_COMFYUI_LAYERS = (
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.to_([qkv])$", r".\1"),
    (r"\.attn1\.to_out\.0$", ".attn_out"),
    (r"\.ff\.net\.0\.proj$", ".ff_proj"),
    (r"\.ff\.net\.2$", ".ff_out"),
    (r"^(time|ofs)_embedding\.linear_", r"\1_embedding_linear_"),
)
# diffusers' layers -> those of DiffSynth-Studio (diffsynth/models/cog_dit.py)
_DIFFSYNTH_LAYERS = (
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.to_out\.0$", ".attn1.to_out"),
    (r"\.attn1\.norm_([qk])$", r".norm_\1"),
    (r"\.ff\.net\.0\.proj$", ".ff.0"),
    (r"\.ff\.net\.2$", ".ff.2"),
    (r"^patch_embed\.proj$", "patchify.proj"),
    (r"^patch_embed\.text_proj$", "context_embedder"),
    (r"^time_embedding\.linear_1$", "time_embedder.timestep_embedder.0"),
    (r"^time_embedding\.linear_2$", "time_embedder.timestep_embedder.2"),
)
# Old diffusers kept LoRA layers in attention processors: "attn1.processor.to_q_lora.down.weight".
_PROCESSOR = r"\.(to_[qkv]|to_out)(?:\.0)?$"

# peft keeps a layer that is trained whole beside the original one (ModulesToSaveWrapper), under the adapter's name.
_WHOLE_LAYER = r"\.(?:modules_to_save(?:\.(?!weight$|bias$)[^.]+)?|original_module)(?=\.)"
_MOST_LETTERS = 300  # of a key in which such a part is looked for; the longest of any dialect has about 120
_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"  # peft puts the adapter's name into the key: lora_A.default.weight
# The parts of a layer, by ComfyUI's names (comfy/weight_adapter/lora.py) as far as it reads them. MAGNITUDE and UP_BIAS
# are peft's; weight_patches.py handles them.
DOWN, UP, UP_BIAS, ALPHA, MAGNITUDE = "lora_down.weight", "lora_up.weight", "lora_up.bias", "alpha", "magnitude"
_PARTS = (
    (rf"\.lora_A{_ADAPTER}(?:\.weight)?$", DOWN),
    (rf"\.lora_B{_ADAPTER}(?:\.weight)?$", UP),
    (rf"\.(?:lora_B{_ADAPTER}|lora_up)\.bias$", UP_BIAS),
    (r"(?:\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight$", DOWN),
    (r"(?:\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight$", UP),
    (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?$", MAGNITUDE),
    (r"\.magnitude$", MAGNITUDE),
)
_PLAIN_PART = (
    r"\.(alpha|dora_scale|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|diff|diff_b|set_weight|w_norm|b_norm"
    r"|hada_t[12]|lokr_t2|lora_mid\.weight|reshape_weight)$"
)
# SAT's matrix_A.0, .1 and .2 of the fused query_key_value are those of q, k and v.
SAT_LAYER = r"(?:^|\.)layers\.(\d+)\.attention\.(query_key_value|dense)\.matrix_([AB])\.([012])$"
_SAT_BASE = r"(?:^|\.)(?:transformer\.(?:layers|final_layernorm|\w+_embeddings)|mixins|time_embed)\."
# The last are the layers of T5, whatever is before them.
_TEXT = (
    r"^(?:lora_te\d?_|lora_prior_te)|(?:^|[._])(?:text_encoders?(?:_\d)?|t5xxl)[._]"
    r"|[._](?:SelfAttention|DenseReluDense)[._]"
)
_OFS = r"(?:^|[._])ofs_embedding"


@dataclass
class SortedKeys:
    """The keys of a LoRA file.

    layers: layer ("diffusion_model.…" without ".weight") -> part -> key. unmatched: keys of no layer. skipped: reason
    -> keys that are left out on purpose. is_sat: whether the file comes from SAT's trainer.
    """

    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    is_sat: bool = False


def layer_aliases(layer: str) -> Iterator[str]:
    """The names of a layer of diffusers' transformer ("transformer_blocks.0.attn1.to_q") in all dialects, without the
    dialects' prefixes."""
    for name in dict.fromkeys((layer, _spelled(layer, _COMFYUI_LAYERS), _spelled(layer, _DIFFSYNTH_LAYERS))):
        yield from {name: None, name.replace(".", "_"): None, _FLAT_PREFIX + name.replace(".", "_"): None}
    if ".attn1.to_" in layer:
        yield re.sub(_PROCESSOR, r".processor.\1", layer)
        # Old diffusers' "attn1.to_out_lora.down" has no index 0.
        yield from (name.removesuffix(".0") for name in (layer,) if layer.endswith(".0"))


def _spelled(layer: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        layer = re.sub(pattern, replacement, layer)
    return layer


def weights_by_alias(weights: Iterable[str]) -> dict[str, str]:
    """Name of a layer in any dialect -> the weight of a MODEL ("diffusion_model.….weight") that it means."""
    return {
        name: weight
        for weight in weights
        if weight.startswith(OWN_PREFIX) and weight.endswith(".weight")
        for name in layer_aliases(weight[len(OWN_PREFIX) : -len(".weight")])
    }


def find_weight(layer: str, names: Mapping[str, str], longest: int) -> str | None:
    """The weight whose name is the longest end of `layer`, where what is before it only wraps this model; None where
    there is none.

    names: as for sort_keys. longest: letters of the longest of them, so that a key of any length costs the same.
    """
    layer = re.sub(MODULE_WRAPPERS, "", layer)
    first = max(0, len(layer) - longest)
    starts = [first] if first == 0 or layer[first - 1] in "._" else []
    for start in starts + [index + 1 for index in range(first, len(layer)) if layer[index] in "._"]:
        name, prefix = layer[start:], layer[:start]
        weight = names.get(name)
        # A key map of ComfyUI also names text encoders' weights, and may have tuples as values.
        if not (isinstance(weight, str) and weight.startswith(OWN_PREFIX)):
            continue
        if prefix.endswith("_") and ("." in name or not re.search(_FLAT_START, prefix)):
            continue  # the end of a longer word: "single_transformer_blocks.0.…"
        return None if re.search(_FOREIGN_WORD, prefix) else weight
    return None


def _part_of_own_layer(key: str, names: Mapping[str, str], longest: int) -> str:
    """What follows the name of a layer of this model in a key whose end no dialect has; "" where none precedes it."""
    if len(key) > _MOST_LETTERS:
        return ""
    for layer, part in split_ends(re.sub(_WHOLE_LAYER, "", re.sub(MODULE_WRAPPERS, "", key))):
        if find_weight(layer, names, longest) is not None:
            return part
    return ""


def _unread_part_message(key: str, part: str) -> str:
    """Why a LoRA is refused of which this version does not read one of a layer's tensors: the rest alone is another."""
    kind = " of AdaLoRA" if part.startswith("lora_E") else ""
    return (
        f"The LoRA has {quoted(key)}, and this version does not read “{quoted(part)}”{kind}. Merge the adapter into "
        "the model and save that, or train a LoRA, DoRA, LoHa or LoKr."
    )


def split_key(key: str) -> tuple[str, str] | None:
    """(layer in the key's dialect, part) of a LoRA's key; None for a key that does not belong to a LoRA."""
    if match := re.search(SAT_LAYER, key):
        number, module, matrix, index = match.groups()
        layer = "attn1.to_out.0" if module == "dense" else f"attn1.to_{'qkv'[int(index)]}"
        return f"transformer_blocks.{number}.{layer}", DOWN if matrix == "A" else UP
    for pattern, part in _PARTS:
        if match := re.search(pattern, key):
            return key[: match.start()], part
    if match := re.search(_PLAIN_PART, key):
        return key[: match.start()], match[1]
    return None


def sort_keys(keys: Iterable[str], names: Mapping[str, str]) -> SortedKeys:
    """Find the layer and part of each key.

    names: of weights_by_alias, or a key map of ComfyUI that contains these.

    Raises UserError where two keys mean the same part of a layer, and for a part of a layer that is not read.
    """
    keys = list(keys)
    found = SortedKeys(is_sat=any(re.search(SAT_LAYER, key) for key in keys))
    longest = max(map(len, names), default=0)
    for key in keys:
        split = split_key(key)
        layer, part = split or ("", "")
        weight = find_weight(layer, names, longest) if split else None
        own_part = "" if split else _part_of_own_layer(key, names, longest)
        if own_part in ("weight", "bias"):
            found.skipped.setdefault("of the model's own weights, which are not applied", []).append(key)
        elif own_part and not re.search(_TEXT, key):
            raise UserError(_unread_part_message(key, own_part))
        elif weight is not None:
            parts = found.layers.setdefault(weight.removesuffix(".weight"), {})
            if part in parts:
                raise UserError(
                    f"The LoRA has two values for one part of a layer: {quoted(parts[part])} and {quoted(key)}. The "
                    "file may contain two LoRAs. Use a file for each of them."
                )
            parts[part] = key
        elif reason := _skip_reason(key, split is not None, found.is_sat):
            found.skipped.setdefault(reason, []).append(key)
        else:
            found.unmatched.append(key)
    return found


def _skip_reason(key: str, is_lora_key: bool, is_sat: bool) -> str | None:
    """Why a key that matches no layer may be left out without harm; None where it may not."""
    if re.search(_TEXT, key):
        return "for a text encoder"
    if re.search(_OFS, key):
        return "for the ofs embedding, which only CogVideoX1.5-5B-I2V has"
    if is_sat and not is_lora_key and re.search(_SAT_BASE, key):
        return "of the checkpoint itself, which SAT saves in the same file"
    return None
