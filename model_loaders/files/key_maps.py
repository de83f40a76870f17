"""The names of CogVideoX's tensors in each dialect -> diffusers' names. Nothing here reads a file.

Sources of the names: SAT from THUDM/CogVideo tools/convert_weight_sat2hf.py, ComfyUI's own from comfy/ldm/cogvideo,
DiffSynth-Studio's from diffsynth/models/cog_dit.py, T5 in GGUF from llama.cpp's naming (gguf-py/gguf/constants.py). The
rules from SAT's VAE are in diffusers' repository, scripts/convert_cogvideox_to_diffusers.py.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from ...errors import UserError, quoted


class TensorLocation(NamedTuple):
    """Which rows of which tensor of a file are one tensor of diffusers.

    name: of the tensor in the file. parts: its rows are this many equal parts. indices: of the parts that belong to
    diffusers' tensor, in its order.
    """

    name: str
    parts: int = 1
    indices: tuple[int, ...] = (0,)


Dialect = Callable[[str], dict[str, TensorLocation]]  # a name in a file -> the diffusers tensors in it

# Prefixes under which components are found in one file with others. Names with them belong to no component without a
# prefix. A component's own prefix may be any other as well: programs wrap models in modules of their own.
PREFIXES = {
    "transformer": ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module."),
    "vae": ("", "first_stage_model.", "vae."),
    "text_encoder": (
        "",
        "text_encoders.t5xxl.transformer.",
        "cond_stage_model.t5xxl.transformer.",
        "conditioner.embedders.0.transformer.",
        "t5xxl.transformer.",
        "text_encoder.",
        "transformer.",
        "text_model.",
    ),
    "controlnet": ("",),
}


def _renamer(*rules: tuple[str, str]) -> Dialect:
    """A dialect of rules (regular expression, replacement), each applied at most once, in order.

    The order matters: a rule sees the name as the rules before it have left it.
    """
    # For the first name, since ComfyUI waits for the pack's import: the pack's patterns took 6 to 8 ms of it together.
    compiled = functools.cache(lambda: [(re.compile(pattern), replacement) for pattern, replacement in rules])

    def rename(name: str) -> dict[str, TensorLocation]:
        new = name
        for pattern, replacement in compiled():
            new = pattern.sub(replacement, new, count=1)
        return {new: TensorLocation(name)}

    return rename


_comfyui_transformer = _renamer(
    (r"^blocks\.", "transformer_blocks."),
    (r"^(time|ofs)_embedding_linear_", r"\1_embedding.linear_"),
    (r"\.(norm_[qk])\.", r".attn1.\1."),
    (r"\.([qkv])\.(weight|bias)$", r".attn1.to_\1.\2"),
    (r"\.attn_out\.", ".attn1.to_out.0."),
    (r"\.ff_proj\.", ".ff.net.0.proj."),
    (r"\.ff_out\.", ".ff.net.2."),
)
_diffsynth_transformer = _renamer(
    (r"^blocks\.", "transformer_blocks."),
    (r"^patchify\.", "patch_embed."),
    (r"^context_embedder\.", "patch_embed.text_proj."),
    (r"^time_embedder\.timestep_embedder\.0\.", "time_embedding.linear_1."),
    (r"^time_embedder\.timestep_embedder\.2\.", "time_embedding.linear_2."),
    (r"\.(norm_[qk])\.", r".attn1.\1."),
    (r"\.attn1\.to_out\.", ".attn1.to_out.0."),
    (r"\.ff\.0\.", ".ff.net.0.proj."),
    (r"\.ff\.2\.", ".ff.net.2."),
)
_sat_plain = _renamer(
    (r"^transformer\.final_layernorm\.", "norm_final."),
    (r"^transformer\.layers\.", "transformer_blocks."),
    (r"\.mlp\.dense_h_to_4h\.", ".ff.net.0.proj."),
    (r"\.mlp\.dense_4h_to_h\.", ".ff.net.2."),
    (r"\.attention\.dense\.", ".attn1.to_out.0."),
    (r"\.input_layernorm\.", ".norm1.norm."),
    (r"\.post_attention_layernorm\.", ".norm2.norm."),
    (r"\.post_attn1_layernorm\.", ".norm2.norm."),
    (r"^(time|ofs)_embed\.0\.", r"\1_embedding.linear_1."),
    (r"^(time|ofs)_embed\.2\.", r"\1_embedding.linear_2."),
    (r"^mixins\.patch_embed\.", "patch_embed."),
    (r"^mixins\.final_layer\.norm_final\.", "norm_out.norm."),
    (r"^mixins\.final_layer\.linear\.", "proj_out."),
    (r"^mixins\.final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"^mixins\.pos_embed\.pos_embedding$", "patch_embed.pos_embedding"),
)
_SAT_FUSED = r"^transformer\.layers\.(\d+)\.attention\.query_key_value\.(weight|bias)$"
_SAT_NORM = r"^mixins\.adaln_layer\.(query|key)_layernorm_list\.(\d+)\.(weight|bias)$"
_SAT_ADALN = r"^mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1\.(weight|bias)$"
_SAT_COMPUTED = r"(embed_tokens|word_embeddings|freqs_sin|freqs_cos|position_embeddings?)(\.|$)"


def _sat_transformer(name: str) -> dict[str, TensorLocation]:
    """SAT fuses q, k and v, fuses both modulations of a block, and saves tables that this pack computes."""
    if match := re.match(_SAT_FUSED, name):
        stem = f"transformer_blocks.{match[1]}.attn1.to_"
        return {f"{stem}{part}.{match[2]}": TensorLocation(name, 3, (index,)) for index, part in enumerate("qkv")}
    if match := re.match(_SAT_ADALN, name):
        # Twelve parts: shift, scale, gate of attention, then of feed-forward, for the video; the same six for the text.
        # diffusers has a layer before attention and one before feed-forward, each with the video's three parts first
        # (reassign_adaln_norm_inplace in its script). A wrong order loads without an error and makes noise.
        stem = f"transformer_blocks.{match[1]}."
        return {
            f"{stem}norm1.linear.{match[2]}": TensorLocation(name, 12, (0, 1, 2, 6, 7, 8)),
            f"{stem}norm2.linear.{match[2]}": TensorLocation(name, 12, (3, 4, 5, 9, 10, 11)),
        }
    if match := re.match(_SAT_NORM, name):
        return {f"transformer_blocks.{match[2]}.attn1.norm_{match[1][0]}.{match[3]}": TensorLocation(name)}
    # No location: open_component leaves such a tensor in the file.
    return {} if re.search(_SAT_COMPUTED, name) else _sat_plain(name)


_sat_vae_plain = _renamer(
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^encoder\.down\.", "encoder.down_blocks."),
    (r"\.block\.", ".resnets."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
_SAT_UP = r"^decoder\.up\.(\d+)\."


def _sat_vae(name: str) -> dict[str, TensorLocation]:
    """SAT numbers the decoder's blocks in reverse order, and saves the loss in the same file."""
    if name.startswith("loss."):
        return {}
    # The decoder has four blocks: SAT's block 3 comes first and is diffusers' block 0.
    renamed = re.sub(_SAT_UP, lambda match: f"decoder.up_blocks.{3 - int(match[1])}.", name)
    return {next(iter(_sat_vae_plain(renamed))): TensorLocation(name)}


_gguf_t5 = _renamer(
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.", "encoder.block."),
    (r"\.attn_([qkvo])\.", r".layer.0.SelfAttention.\1."),
    (r"\.attn_norm\.", ".layer.0.layer_norm."),
    (r"\.attn_rel_b\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.ffn_gate\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn_up\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn_down\.", ".layer.1.DenseReluDense.wo."),
    (r"\.ffn_norm\.", ".layer.1.layer_norm."),
)
# the decoder of a complete T5, and a tokenizer in the same file: not needed for text embeddings
_T5_UNUSED = r"^(decoder\.|dec\.|lm_head\.|output\.|logit_scale$|spiece_model$|tekken_model$)"


def _t5(rename: Dialect) -> Dialect:
    return lambda name: {} if re.match(_T5_UNUSED, name) else rename(name)


_same = _renamer()


class NamedDialect(NamedTuple):
    """A dialect of one component. signature_key: a name that, of this component, only this dialect has."""

    signature_key: str
    name: str
    rename: Dialect


# component -> its dialects
DIALECTS = {
    "transformer": (
        NamedDialect(
            signature_key="transformer_blocks.0.norm1.linear.weight",
            name="diffusers",
            rename=_same,
        ),
        NamedDialect(
            signature_key="blocks.0.attn_out.weight",
            name="ComfyUI",
            rename=_comfyui_transformer,
        ),
        NamedDialect(
            signature_key="blocks.0.attn1.to_out.weight",
            name="DiffSynth",
            rename=_diffsynth_transformer,
        ),
        NamedDialect(
            signature_key="transformer.layers.0.attention.query_key_value.weight",
            name="SAT",
            rename=_sat_transformer,
        ),
    ),
    "vae": (
        NamedDialect(
            signature_key="decoder.mid_block.resnets.0.norm1.conv_y.conv.weight",
            name="diffusers",
            rename=_same,
        ),
        NamedDialect(
            signature_key="decoder.mid.block_1.norm1.conv_y.conv.weight",
            name="SAT",
            rename=_sat_vae,
        ),
    ),
    "text_encoder": (
        NamedDialect(
            signature_key="encoder.block.0.layer.0.SelfAttention.q.weight",
            name="Hugging Face",
            rename=_t5(_same),
        ),
        NamedDialect(
            signature_key="enc.blk.0.attn_q.weight",
            name="GGUF",
            rename=_t5(_gguf_t5),
        ),
    ),
    "controlnet": (
        NamedDialect(
            signature_key="controlnet_encode_first.0.weight",
            name="diffusers",
            rename=_same,
        ),
    ),
}


class Layout(NamedTuple):
    """The dialect and the prefix of a file's names, and the location of each diffusers tensor in the file."""

    dialect: str
    prefix: str
    locations: Mapping[str, TensorLocation]


_MOST_COPIES = 16  # of one component in a file: a model, its moving average, and whatever a trainer keeps

# What torch.compile, FSDP, activation checkpointing, peft (base_layer) and SAT's LoRA (original) put into names, in the
# middle of them as well.
MODULE_WRAPPERS = r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer|original)\."
# A part of a LoRA behind the name of its layer, as peft, diffusers, ComfyUI and SAT's trainer call it.
LORA_PART = r"\.(?:lora_\w+|lora\.(?:down|up)|matrix_[AB])(?:\.|$)"
_MOST_PIECES = 3  # of the name of an adapter's part: lora_E.default.weight


def split_ends(name: str) -> Iterator[tuple[str, str]]:
    """(layer, part) for every part that may end a name, the shortest first: the last piece, the last two, ..."""
    pieces = name.rsplit(".", _MOST_PIECES)
    for count in range(1, len(pieces)):
        yield ".".join(pieces[:-count]), ".".join(pieces[-count:])


def find_layouts(names: Iterable[str], component: str, required: Iterable[str]) -> list[Layout]:
    """The layouts of `component` among `names`: those of all copies that have the names in `required` (diffusers'), or
    else of one without them; [] where none of its dialects is there.

    More than one is the same component under several prefixes, such as a model and its moving average.

    Raises UserError for more copies than any file has: each takes a walk through all names.
    """
    listed = list(names)
    wrapper = re.compile(MODULE_WRAPPERS)
    bare = {wrapper.sub("", name): name for name in listed}
    if len(bare) < len(listed):
        twice = next(name for name in listed if bare[wrapper.sub("", name)] != name)
        raise UserError(
            f"The file holds {quoted(wrapper.sub('', twice))} twice, once as {quoted(twice)}: two models whose "
            "names differ by what a program has wrapped around one of them. Save the one that you want by itself."
        )
    prefixes = [
        (dialect, prefix) for dialect in DIALECTS[component] for prefix in _prefixes(bare, dialect.signature_key)
    ]
    if len(prefixes) > _MOST_COPIES:
        raise UserError(
            f"The file holds a {component} {len(prefixes)} times, under names that begin differently; at most "
            f"{_MOST_COPIES} are read. Save the one that you want in a file of its own."
        )
    others = _other_prefixes(bare, component)
    layouts = [
        Layout(dialect.name, prefix, _rename(bare, prefix, others, dialect.rename)) for dialect, prefix in prefixes
    ]
    complete = [layout for layout in layouts if layout.locations.keys() >= set(required)]
    return complete or layouts[:1]


def _prefixes(names: Iterable[str], signature_key: str) -> list[str]:
    """The prefixes of `signature_key` among `names`, each empty or with a dot at its end."""
    found = (name.removesuffix(signature_key) for name in names if name.endswith(signature_key))
    return [prefix for prefix in found if not prefix or prefix.endswith(".")]


def _rename(bare: Mapping[str, str], prefix: str, others: set[str], rename: Dialect) -> dict[str, TensorLocation]:
    """The diffusers tensors under `prefix`. bare: name without wrappers -> name in the file. others: prefixes of other
    components."""
    # Names with a longer prefix belong to another component, and would be reported as unknown tensors of this one.
    longer = tuple(other for other in others if other != prefix and other.startswith(prefix))
    found: dict[str, TensorLocation] = {}
    for name, in_file in bare.items():
        if name.startswith(prefix) and not name.startswith(longer):
            for new, location in rename(name.removeprefix(prefix)).items():
                found[new] = TensorLocation(in_file, location.parts, location.indices)
    return found


def _other_prefixes(names: Iterable[str], component: str) -> set[str]:
    """Prefixes of other components: a file may contain `component` without a prefix and the others with one."""
    # "transformer." is a prefix of text encoders, but also the beginning of SAT's names of the transformer
    # ("transformer.layers."), which must not be thrown away.
    own = {"", *{"transformer": ("transformer.",)}.get(component, ())}
    others = {prefix for other, prefixes in PREFIXES.items() if other != component for prefix in prefixes}
    for other, dialects in DIALECTS.items():
        if other != component:
            others |= {prefix for dialect in dialects for prefix in _prefixes(names, dialect.signature_key)}
    return others - own
