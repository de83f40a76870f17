"""LoRAs of other models: told by the names of their layers, of which some may fit CogVideoX's by chance."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from ...errors import UserError, quoted
from .names import SAT_LAYER, SortedKeys, find_weight, split_key

_BLOCK = r"(?<![^._])((?:transformer_)?blocks[._])(\d+)(?=[._])"
_ATTENTION = ".attn1.to_"
_MOST_KEYS = 2000  # that are looked at; a LoRA on every layer of a large model has about as many
# A pattern that only the keys of this family's LoRAs match. The first match wins.
_OTHER_FAMILIES = (
    (r"(?:^|[._])(?:double_blocks|single_blocks)[._]", "Flux or HunyuanVideo"),
    (r"single_transformer_blocks[._]", "Flux"),
    (r"(?:^|[._])joint_blocks[._]", "Stable Diffusion 3"),
    (r"blocks[._]\d+[._](?:self_attn|cross_attn)[._]", "Wan"),
    (r"blocks[._]\d+[._](?:attn[._](?:qkv_x|proj_x)|attn1[._](?:add_[qkv]_proj|to_add_out))", "Mochi"),
    (r"(?:input_blocks|output_blocks|middle_block|(?:down|up)_blocks|mid_block)[._]", "Stable Diffusion"),
    (r"transformer_blocks[._]\d+[._]attn2[._]", "LTX-Video or PixArt"),
    (r"transformer_blocks[._]\d+[._]attn[._]", "Flux, Stable Diffusion 3, Qwen-Image or HunyuanVideo"),
    (r"model[._]layers[._]\d+[._]self_attn", "a language model"),
    (r"(?:^|[._])layers[._]\d+[._](?:attention|feed_forward)[._]", "Lumina or Z-Image"),
)


def guess_family(keys: Iterable[str]) -> str | None:
    """The other model family for which a LoRA with these keys was trained, in words; None where it is unknown."""
    # SAT's own "layers.0.attention." would be taken for Lumina's.
    keys = [key for key in itertools.islice(keys, _MOST_KEYS) if not re.search(SAT_LAYER, key)]
    return next((name for pattern, name in _OTHER_FAMILIES if any(re.search(pattern, key) for key in keys)), None)


def require_this_model(found: SortedKeys, names: Mapping[str, str], source: str = "The LoRA") -> None:
    """Raises UserError for a LoRA that was trained for another model although some of its layers are named as ours.

    Models of other families have feed-forward and output layers of CogVideoX's names, and even of its sizes (Flux).
    Others have attention of the same names in more blocks (Mochi, EasyAnimate): there no block is the one that the LoRA
    was trained for, nor in a model of ours that somebody has cut down. A LoRA with layers besides, which a fine-tune
    has added, fits as far as it goes.

    names: as for sort_keys.
    """
    # Layers that ComfyUI's key map has are a text encoder's.
    foreign = [(key, split[0]) for key in found.unmatched if (split := split_key(key)) and split[0] not in names]
    if not foreign or not found.layers:
        return
    family = guess_family(key for key, _ in foreign)
    blocks, theirs = _count_blocks(names), _count_blocks_beyond(foreign, names)
    if theirs > blocks:
        looks = f", and looks like one for {family}" if family else ""
        raise UserError(
            f"{source} was trained for a model of at least {theirs} transformer blocks{looks}; this model has "
            f"{blocks}. Choose a LoRA for this model, or load the model that it was trained for."
        )
    matched = sum(map(len, found.layers.values()))
    has_attention = any(_ATTENTION in layer for layer in found.layers)
    if len(foreign) > matched or (family and not has_attention):
        raise UserError(
            f"{source} was trained for another model{f' ({family})' if family else ''}: {len(foreign)} of its "
            f"{len(foreign) + matched} keys name layers that this model does not have, such as "
            f"{quoted(foreign[0][0])}. Choose a LoRA that was trained for CogVideoX."
        )


def _count_blocks(names: Mapping[str, str]) -> int:
    """The transformer blocks of the model."""
    numbers = (re.search(_BLOCK, weight) for weight in names.values() if isinstance(weight, str))
    return 1 + max((int(number[2]) for number in numbers if number), default=-1)


def _count_blocks_beyond(foreign: Sequence[tuple[str, str]], names: Mapping[str, str]) -> int:
    """The blocks that a model has to have for a LoRA's layers, of those that have this model's names but for the block.

    foreign: (key, layer) of layers that the model does not have.
    """
    longest = max(map(len, names), default=0)
    deepest = 0
    for _, layer in foreign:
        block = re.search(_BLOCK, layer)
        if block and find_weight(f"{layer[: block.start(2)]}0{layer[block.end(2) :]}", names, longest) is not None:
            deepest = max(deepest, 1 + int(block[2]))
    return deepest
