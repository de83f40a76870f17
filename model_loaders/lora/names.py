"""The names of CogVideoX's layers and of the parts of a LoRA in each LoRA dialect. Nothing here reads a file.

Sources of the names: diffusers' loaders/peft.py and utils/state_dict_utils.py; THUDM/CogVideo tools/
export_sat_lora_weight.py; aigc-apps/CogVideoX-Fun cogvideox/utils/lora_utils.py; ComfyUI's comfy/weight_adapter.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...errors import UserError, quoted

OWN_PREFIX = "diffusion_model."  # of a layer in ComfyUI's MODEL
# Only the key map of a CogVideoX model has this name, so that a key map with it is recognised as one: ComfyUI's
# load_lora is not told the model.
SIGNATURE_KEY = "lora_unet__patch_embed_text_proj"

# Every dialect names a layer by a prefix and diffusers' or ComfyUI's name of it. Flat dialects (Fun, kohya, LyCORIS)
# write "_" for the dots, which cannot be reversed: "transformer_blocks_0" has "_" of its own. Therefore all names of
# each layer are made, and a key is looked up among them.
_DOTTED_PREFIXES = (
    "",
    "transformer.",
    "diffusion_model.",
    "model.diffusion_model.",
    "base_model.model.",
    "transformer.base_model.model.",
    "base_model.model.transformer.",
    "unet.",
)
_FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
# diffusers' layers -> the names of ComfyUI's own CogVideoX model (comfy/ldm/cogvideo/model.py)
_COMFYUI_LAYERS = (
    (re.compile(r"^transformer_blocks\."), "blocks."),
    (re.compile(r"\.attn1\.to_([qkv])$"), r".\1"),
    (re.compile(r"\.attn1\.to_out\.0$"), ".attn_out"),
    (re.compile(r"\.ff\.net\.0\.proj$"), ".ff_proj"),
    (re.compile(r"\.ff\.net\.2$"), ".ff_out"),
    (re.compile(r"^(time|ofs)_embedding\.linear_"), r"\1_embedding_linear_"),
)
# Old diffusers kept LoRA layers in attention processors: "attn1.processor.to_q_lora.down.weight".
_PROCESSOR = re.compile(r"\.(to_[qkv]|to_out)(?:\.0)?$")

_ADAPTER = r"(?:\.(?!weight$|bias$)\w+)?"  # peft puts the adapter's name into the key: lora_A.default.weight
# The parts of a layer, by ComfyUI's names (comfy/weight_adapter/lora.py) as far as it reads them. MAGNITUDE and UP_BIAS
# are peft's; patches.py handles them.
DOWN, UP, UP_BIAS, ALPHA, MAGNITUDE = "lora_down.weight", "lora_up.weight", "lora_up.bias", "alpha", "magnitude"
_PARTS = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (rf"\.lora_A{_ADAPTER}(?:\.weight)?$", DOWN),
        (rf"\.lora_B{_ADAPTER}(?:\.weight)?$", UP),
        (rf"\.(?:lora_B{_ADAPTER}|lora_up)\.bias$", UP_BIAS),
        (r"(?:\.lora_down|[._]lora\.down|\.lora_linear_layer\.down)\.weight$", DOWN),
        (r"(?:\.lora_up|[._]lora\.up|\.lora_linear_layer\.up)\.weight$", UP),
        (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?$", MAGNITUDE),
        (r"\.magnitude$", MAGNITUDE),
    )
)
_PLAIN_PART = re.compile(
    r"\.(alpha|dora_scale|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|diff|diff_b|set_weight|w_norm|b_norm"
    r"|hada_t[12]|lokr_t2|lora_mid\.weight|reshape_weight)$"
)
# SAT's matrix_A.0, .1 and .2 of the fused query_key_value are those of q, k and v.
_SAT = re.compile(r"(?:^|\.)layers\.(\d+)\.attention\.(query_key_value|dense)\.matrix_([AB])\.([012])$")
_SAT_BASE = re.compile(r"(?:^|\.)(?:transformer\.(?:layers|final_layernorm|\w+_embeddings)|mixins|time_embed)\.")
_TEXT = re.compile(r"^(?:lora_te\d?_|text_encoders?[._]|text_encoder_2[._]|lora_prior_te)")
_OFS = re.compile(r"(?:^|[._])ofs_embedding")


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
    """The names of a layer of diffusers' transformer ("transformer_blocks.0.attn1.to_q") in all dialects."""
    native = layer
    for pattern, replacement in _COMFYUI_LAYERS:
        native = pattern.sub(replacement, native)
    for name in dict.fromkeys((layer, native)):
        yield from (prefix + name for prefix in _DOTTED_PREFIXES)
        yield from (prefix + name.replace(".", "_") for prefix in _FLAT_PREFIXES)
    if ".attn1.to_" in layer:
        old = _PROCESSOR.sub(r".processor.\1", layer)
        yield from (prefix + old for prefix in _DOTTED_PREFIXES)
        # Old diffusers' "attn1.to_out_lora.down" has no index 0.
        yield from (prefix + layer.removesuffix(".0") for prefix in _DOTTED_PREFIXES if layer.endswith(".0"))


def weights_by_alias(weights: Iterable[str]) -> dict[str, str]:
    """Name of a layer in any dialect -> the weight of a MODEL ("diffusion_model.….weight") that it means."""
    return {
        name: weight
        for weight in weights
        if weight.startswith(OWN_PREFIX) and weight.endswith(".weight")
        for name in layer_aliases(weight[len(OWN_PREFIX) : -len(".weight")])
    }


def split_key(key: str) -> tuple[str, str] | None:
    """(layer in the key's dialect, part) of a LoRA's key; None for a key that does not belong to a LoRA."""
    if match := _SAT.search(key):
        number, module, matrix, index = match.groups()
        layer = "attn1.to_out.0" if module == "dense" else f"attn1.to_{'qkv'[int(index)]}"
        return f"transformer_blocks.{number}.{layer}", DOWN if matrix == "A" else UP
    for pattern, part in _PARTS:
        if match := pattern.search(key):
            return key[: match.start()], part
    if match := _PLAIN_PART.search(key):
        return key[: match.start()], match[1]
    return None


def sort_keys(keys: Iterable[str], names: Mapping[str, str]) -> SortedKeys:
    """Find the layer and part of each key.

    names: of weights_by_alias, or a key map of ComfyUI that contains these.

    Raises UserError where two keys mean the same part of a layer.
    """
    keys = list(keys)
    found = SortedKeys(is_sat=any(_SAT.search(key) for key in keys))
    for key in keys:
        split = split_key(key)
        layer, part = split or ("", "")
        weight = names.get(layer) if split else None
        # A key map of ComfyUI also names text encoders' weights, and may have tuples as values.
        if isinstance(weight, str) and weight.startswith(OWN_PREFIX):
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
    if _TEXT.search(key):
        return "for a text encoder"
    if _OFS.search(key):
        return "for the ofs embedding, which only CogVideoX1.5-5B-I2V has"
    if is_sat and not is_lora_key and _SAT_BASE.search(key):
        return "of the checkpoint itself, which SAT saves in the same file"
    return None


# A pattern that only the keys of this family's LoRAs match. The first match wins.
_OTHER_FAMILIES = (
    (re.compile(r"(?:^|[._])(?:double_blocks|single_blocks)[._]"), "Flux or HunyuanVideo"),
    (re.compile(r"single_transformer_blocks[._]"), "Flux"),
    (re.compile(r"(?:^|[._])joint_blocks[._]"), "Stable Diffusion 3"),
    (re.compile(r"blocks[._]\d+[._](?:self_attn|cross_attn)[._]"), "Wan"),
    (re.compile(r"blocks[._]\d+[._]attn[._](?:qkv_x|proj_x)"), "Mochi"),
    (re.compile(r"(?:input_blocks|output_blocks|middle_block|(?:down|up)_blocks|mid_block)[._]"), "Stable Diffusion"),
    (re.compile(r"transformer_blocks[._]\d+[._]attn2[._]"), "LTX-Video or PixArt"),
    (re.compile(r"transformer_blocks[._]\d+[._]attn[._]"), "Flux, Stable Diffusion 3, Qwen-Image or HunyuanVideo"),
    (re.compile(r"model[._]layers[._]\d+[._]self_attn"), "a language model"),
    (re.compile(r"(?:^|[._])layers[._]\d+[._](?:attention|feed_forward)[._]"), "Lumina or Z-Image"),
)


def guess_family(keys: Iterable[str]) -> str | None:
    """The other model family for which a LoRA with these keys was trained, in words; None where it is unknown."""
    # SAT's own "layers.0.attention." would be taken for Lumina's.
    keys = [key for key in keys if not _SAT.search(key)]
    return next((name for pattern, name in _OTHER_FAMILIES if any(pattern.search(key) for key in keys)), None)
