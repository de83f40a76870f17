"""Load a T5 encoder from disk as a CLIP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch

from ..errors import UserError
from ..host.quantized import is_quantized
from ..host.toy import is_toy
from ..host.weight_patcher import adopt_patcher
from ..sockets.clip import CogVideoXClip, TextEncoderTarget
from ..sockets.tokenizer import MAX_TOKENS, CogVideoXTokenizer, vocab_size_of
from .checkpoints import Weights, describe_component, open_component, require_fit
from .config_conflicts import config_conflict
from .config_limits import checked_config
from .file_stamps import if_unchanged
from .precision import (
    FAST_MODES,
    PRECISIONS,
    WEIGHT_DTYPES,
    Precision,
    check_precision,
    holds_quantized,
    quantized_mode,
)
from .quantization import any_gguf, convert_t5_weights
from .variants import sides

_T5_BUCKETS = 32  # buckets of the relative position bias, in every T5 (relative_attention_num_buckets)
T5_PRECISIONS = tuple(name for name in PRECISIONS if name not in FAST_MODES)
# T5-XXL v1.1, which every official checkpoint carries (its text_encoder/config.json), in the entries that ComfyUI's T5
# reads or has in its own comfy/text_encoders/t5_config_xxl.json.
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
    "output_past": True,
    "layer_norm_epsilon": 1e-6,
}


def load_text_encoder(path: Path, weight_dtype: str = "default", disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load the T5 encoder at `path` (see checkpoints.open_component), all shards as one.

    weight_dtype: how weights are stored, see choose_t5_precision; ComfyUI computes T5 in fp32.

    Raises UserError where the weights are not a T5 encoder, have another width than the checkpoint's own transformer
    reads, or a vocabulary smaller than the tokenizer's.
    """
    check_t5_precision(weight_dtype)
    load_again = if_unchanged(_load_text_encoder_patcher, path, "text_encoder")  # before the files are opened
    weights = open_component(path, "text_encoder")
    state_dict = weights.state_dict
    config = t5_config(state_dict, weights)
    max_tokens = weights.siblings.get("transformer", {}).get("max_text_seq_length", MAX_TOKENS)
    tokenizer = CogVideoXTokenizer(_tokenizer_folder(weights), max_tokens, is_toy(path))
    _check_vocabulary(tokenizer.vocab_size, config, weights)
    precision = choose_t5_precision(weight_dtype, state_dict)
    # Counted before the conversion below empties state_dict; by it ComfyUI chooses the device on which T5 is created.
    parameters = comfy.utils.calculate_parameters(state_dict)
    has_gguf = precision.keeps_quantized and any_gguf(state_dict)
    options: dict[str, Any] = {"dtype": precision.storage}
    if operations := precision.operations_on(mm.text_encoder_device()):
        options["custom_operations"] = operations
    clip = CogVideoXClip(
        TextEncoderTarget(config, tokenizer),
        parameters=parameters,
        # In a list, which makes CLIP pass it to the encoder under the encoder's own names. It takes a dict for the
        # state dict of its wrapper, whose names have another prefix: every weight would count as missing.
        state_dict=[convert_t5_weights(state_dict, precision)],
        model_options=options,
        disable_dynamic=disable_dynamic or has_gguf,
    )
    adopt_patcher(clip.patcher)
    # The factory has to return a patcher, not a CLIP; see load_model.
    clip.patcher.cached_patcher_init = (load_again, (path, weight_dtype))
    return clip


def check_text_encoder(path: Path) -> None:
    """Raises UserError for what load_text_encoder would refuse; path as there.

    Only headers and configs are read, and the tokenizer where it has changed.
    """
    found, described = describe_component(path, "text_encoder")
    config = t5_config(dict(found.entries), described)
    _check_vocabulary(vocab_size_of(_tokenizer_folder(described)), config, described)


def _check_vocabulary(tokens: int, config: Mapping[str, Any], weights: Weights) -> None:
    """Raises UserError for a tokenizer with more tokens than the embedding has rows. config: of t5_config."""
    if tokens > config["vocab_size"]:
        raise UserError(
            f"The text encoder in {weights.path} knows {config['vocab_size']} tokens, its tokenizer has {tokens}. Put "
            "the checkpoint's own tokenizer folder next to its text_encoder folder."
        )


def check_t5_precision(weight_dtype: str) -> None:
    """Raises UserError for a precision that T5 does not support."""
    if weight_dtype in FAST_MODES:
        raise UserError(
            f"T5 cannot run in {weight_dtype}: ComfyUI computes text encoders in fp32. Choose "
            f"{quantized_mode(weight_dtype)}, which takes as little memory."
        )
    check_precision(weight_dtype, mm.text_encoder_device())


def choose_t5_precision(weight_dtype: str, state_dict: Mapping[str, torch.Tensor]) -> Precision:
    """How to store and compute T5.

    "default" keeps the dtype of the file. fp8 and int8 quantise the attention and feed-forward matrices; all other
    weights keep the dtype that the file has for them.
    """
    mode, keeps = quantized_mode(weight_dtype), weight_dtype == "default" and holds_quantized(state_dict)
    if not mode and not keeps:
        storage = WEIGHT_DTYPES[weight_dtype] or comfy.utils.weight_dtype(state_dict) or torch.float32
        return Precision(storage, torch.float32)
    # The matrices that are neither quantised nor fp8; most of their values decide what the other weights are stored in.
    plain = {
        name: value
        for name, value in state_dict.items()
        if value.ndim == 2 and not is_quantized(value) and value.dtype.is_floating_point and value.dtype.itemsize > 1
    }
    # Where every matrix of the file is quantised, none of its values has more than the 11 bits of fp16.
    return Precision(comfy.utils.weight_dtype(plain) or torch.float16, torch.float32, mode, keeps_quantized=keeps)


def _load_text_encoder_patcher(
    path: Path, weight_dtype: str, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    return load_text_encoder(path, weight_dtype, disable_dynamic).patcher


def t5_config(tensors: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """ComfyUI's T5 config for these weights, from their shapes.

    tensors: the state dict, or the entries of the headers by diffusers' names; the embedding's name becomes
    shared.weight. weights: where they are, and the configs found with them.

    Raises UserError where the width is not the one that the pipeline's transformer reads, or, for weights without a
    config.json, not T5-XXL's.
    """
    source = str(weights.path)
    # The embedding is stored under one or both of two names. Left in, the second would be an unknown tensor.
    embedding = tensors.pop("encoder.embed_tokens.weight", None)
    if embedding is not None:
        tensors.setdefault("shared.weight", embedding)
    if "shared.weight" not in tensors:
        raise UserError(
            f"The T5 text encoder in {source} has no embedding of the tokens (shared.weight): the file is damaged or "
            "incomplete. Download it again."
        )
    vocab_size, width = sides(tensors, "shared.weight", (2,), source)
    wanted = weights.siblings.get("transformer", {}).get("text_embed_dim")
    if wanted is None and weights.config is None:
        wanted = T5_XXL["d_model"]
    if wanted is not None and width != wanted:
        raise UserError(
            f"The text encoder in {weights.path} has width {width}; the transformer reads width {wanted}. CogVideoX "
            "uses the T5-XXL v1.1 encoder (width 4096). Download the checkpoint's own text_encoder."
        )
    attention, feed_forward = "encoder.block.0.layer.0.SelfAttention.", "encoder.block.0.layer.1.DenseReluDense."
    heads = sides(tensors, attention + "relative_attention_bias.weight", (2,), source)[1]
    config = T5_XXL | {
        "d_model": width,
        "vocab_size": vocab_size,
        "num_heads": heads,
        "num_layers": len({name.split(".")[2] for name in tensors if name.startswith("encoder.block.")}),
        "d_kv": sides(tensors, attention + "q.weight", (2,), source)[0] // max(heads, 1),
        "d_ff": sides(tensors, feed_forward + "wo.weight", (2,), source)[1],
    }
    checked_config("text_encoder", config, f"The T5 that the weights in {source} describe")
    claimed = weights.config or {}
    names = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")
    if found := [f"{n} {claimed[n]} against {config[n]}" for n in names if claimed.get(n, config[n]) != config[n]]:
        raise config_conflict(found, source, "text encoder", weights.is_config_in_header)
    require_fit(t5_shapes(config), tensors, source)
    return config


def t5_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a T5 v1.1 encoder.

    ComfyUI only logs tensors that are missing in a file and leaves them uninitialised, so that prompts would be noise.

    Source: transformers modeling_t5.py.
    """
    width, inner, ff = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    block = {
        "layer.0.layer_norm.weight": (width,),
        "layer.0.SelfAttention.q.weight": (inner, width),
        "layer.0.SelfAttention.k.weight": (inner, width),
        "layer.0.SelfAttention.v.weight": (inner, width),
        "layer.0.SelfAttention.o.weight": (width, inner),
        "layer.1.layer_norm.weight": (width,),
        "layer.1.DenseReluDense.wi_0.weight": (ff, width),
        "layer.1.DenseReluDense.wi_1.weight": (ff, width),
        "layer.1.DenseReluDense.wo.weight": (width, ff),
    }
    shapes = {f"encoder.block.{i}.{name}": shape for i in range(config["num_layers"]) for name, shape in block.items()}
    return shapes | {
        "shared.weight": (config["vocab_size"], width),
        # Only the first block has one; the others use its result.
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (_T5_BUCKETS, config["num_heads"]),
        "encoder.final_layer_norm.weight": (width,),
    }


def _tokenizer_folder(weights: Weights) -> Path | None:
    """The pipeline's tokenizer; None where it has none."""
    # Beside the text encoder's folder, which a chosen file is in.
    places = weights.path.parents[: 2 if weights.path.is_file() else 1]
    return next((place / "tokenizer" for place in places if (place / "tokenizer").is_dir()), None)
