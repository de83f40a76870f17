"""From a T5 encoder on disk to a CLIP."""

from pathlib import Path

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import torch

from ..errors import UserError
from ..host.quantized import is_quantized
from ..host.quantized_patcher import adopt_patcher
from ..sockets.clip import TextEncoderTarget
from ..sockets.tokenizer import MAX_TOKENS, CogVideoXTokenizer
from .checkpoints import Weights, open_component, require_fit
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

_T5_BUCKETS = 32  # of distances between tokens, in every T5
T5_PRECISIONS = tuple(name for name in PRECISIONS if name not in FAST_MODES)
# T5-XXL v1.1, which every official checkpoint carries (its text_encoder/config.json)
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

    weight_dtype: the type weights are stored in (see choose_t5_precision); ComfyUI computes T5 in fp32.

    Raises UserError where the weights are not a T5 encoder, not of the width that the checkpoint's own
    transformer reads, or too few for the tokenizer.
    """
    check_t5_precision(weight_dtype)
    weights = open_component(path, "text_encoder")
    state_dict = weights.state_dict
    config = t5_config(weights)
    max_tokens = weights.siblings.get("transformer", {}).get("max_text_seq_length", MAX_TOKENS)
    tokenizer = CogVideoXTokenizer(_tokenizer_folder(weights), max_tokens)
    if tokenizer.vocab_size > config["vocab_size"]:
        raise UserError(
            f"The text encoder in {weights.path} knows {config['vocab_size']} tokens, its tokenizer has "
            f"{tokenizer.vocab_size}. Put the checkpoint's own tokenizer folder beside its text_encoder."
        )
    precision = choose_t5_precision(weight_dtype, state_dict)
    parameters = comfy.utils.calculate_parameters(state_dict)
    gguf = precision.keeps and any_gguf(state_dict)
    options = {"dtype": precision.storage}
    if precision.operations:
        options["custom_operations"] = precision.operations
    clip = comfy.sd.CLIP(
        TextEncoderTarget(config, tokenizer),
        parameters=parameters,
        state_dict=[convert_t5_weights(state_dict, precision)],
        model_options=options,
        disable_dynamic=disable_dynamic or gguf,
    )
    if precision.operations:
        adopt_patcher(clip.patcher)
    clip.patcher.cached_patcher_init = (_load_text_encoder_patcher, (path, weight_dtype))
    return clip


def check_t5_precision(weight_dtype: str) -> None:
    """Raises UserError for a precision that T5 cannot have."""
    if weight_dtype in FAST_MODES:
        raise UserError(
            f"T5 cannot run in {weight_dtype}: ComfyUI computes text encoders in fp32. Choose "
            f"{quantized_mode(weight_dtype)}, which takes as little memory."
        )
    check_precision(weight_dtype, mm.text_encoder_device())


def choose_t5_precision(weight_dtype: str, state_dict: dict[str, torch.Tensor]) -> Precision:
    """How to store T5: the file's own type for "default"; fp8 and int8 hold its attention and feed-forward matrices,
    the rest stays in the type that the file has for them."""
    mode, keeps = quantized_mode(weight_dtype), weight_dtype == "default" and holds_quantized(state_dict)
    if not mode and not keeps:
        return Precision(WEIGHT_DTYPES[weight_dtype] or comfy.utils.weight_dtype(state_dict), torch.float32)
    plain = {
        name: value
        for name, value in state_dict.items()
        if value.ndim == 2 and not is_quantized(value) and value.dtype.is_floating_point and value.dtype.itemsize > 1
    }
    # a file whose every matrix is quantised has less than fp16's eleven bits
    return Precision(comfy.utils.weight_dtype(plain) or torch.float16, torch.float32, mode, keeps)


def _load_text_encoder_patcher(path: Path, weight_dtype: str, disable_dynamic: bool = False) -> object:
    return load_text_encoder(path, weight_dtype, disable_dynamic).patcher


def t5_config(weights: Weights) -> dict:
    """ComfyUI's T5 config for these weights, from their shapes and the config.json beside them.

    Raises UserError where the width is not what the pipeline's transformer reads, or, without a config, not
    T5-XXL's.
    """
    sd = weights.state_dict
    # the shared embedding stands under one or both of two names
    sd.setdefault("shared.weight", sd.pop("encoder.embed_tokens.weight", torch.empty(0, 0)))
    vocab_size, width = sd["shared.weight"].shape
    wanted = weights.siblings.get("transformer", {}).get("text_embed_dim")
    if wanted is None and weights.config is None:
        wanted = T5_XXL["d_model"]
    if wanted is not None and 0 < width != wanted:  # 0: there is no embedding, as require_fit will say
        raise UserError(
            f"The text encoder in {weights.path} is {width} wide; the transformer reads {wanted}. CogVideoX uses the "
            "T5-XXL v1.1 encoder (width 4096): fetch the checkpoint's own text_encoder."
        )
    heads = sd["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
    config = T5_XXL | {
        "d_model": width,
        "vocab_size": vocab_size,
        "num_heads": heads,
        "num_layers": len({name.split(".")[2] for name in sd if name.startswith("encoder.block.")}),
        "d_kv": sd["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // max(heads, 1),
        "d_ff": sd["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
    }
    require_fit(t5_shapes(config), sd, str(weights.path))
    return config


def t5_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of a T5 v1.1 encoder; ComfyUI would leave what is missing at random values.

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
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (_T5_BUCKETS, config["num_heads"]),
        "encoder.final_layer_norm.weight": (width,),
    }


def _tokenizer_folder(weights: Weights) -> Path | None:
    folder = weights.path.parent / "tokenizer"
    return folder if folder.is_dir() else None
