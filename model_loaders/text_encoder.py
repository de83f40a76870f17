"""A T5 encoder as ComfyUI's CLIP."""

from functools import partial
from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.t5
import comfy.utils
import torch

from ..host.errors import CheckpointError
from .checkpoints import Weights, open_component
from .precision import WEIGHT_DTYPES
from .tokenizer import CLIP_NAME, CogVideoXTokenizer

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


class CogVideoXT5(comfy.sd1_clip.SDClipModel):
    """T5 without attention masks: padding is attended to, as in diffusers' pipelines."""

    def __init__(self, config: dict, device: torch.device, dtype: torch.dtype, model_options: dict):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(config),
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            enable_attention_masks=False,
            return_attention_masks=False,
            model_options={**model_options, "model_name": CLIP_NAME},
        )


class CogVideoXTextModel(comfy.sd1_clip.SD1ClipModel):
    """The one-encoder wrapper that comfy.sd.CLIP drives."""

    def __init__(self, config: dict, device: torch.device = None, dtype: torch.dtype = None, model_options: dict = {}):
        super().__init__(
            device=device,
            dtype=dtype,
            name=CLIP_NAME,
            clip_model=partial(CogVideoXT5, config),
            model_options=model_options,
        )


class _Target:
    """comfy.sd.CLIP's recipe: how to build the model and its tokenizer."""

    params: dict = {}

    def __init__(self, config: dict, tokenizer: CogVideoXTokenizer):
        self.clip = partial(CogVideoXTextModel, config)
        self.tokenizer = lambda **_: tokenizer


def load_text_encoder(path: Path, weight_dtype: str = "default", disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load the T5 encoder at `path` (see checkpoints.open_component), all shards as one.

    weight_dtype: the type weights are stored in; ComfyUI computes T5 in fp32.

    Raises CheckpointError where the weights are not a T5 encoder, not of the width that the checkpoint's own
    transformer reads, or too few for the tokenizer.
    """
    weights = open_component(path, "text_encoder")
    state_dict = weights.state_dict
    config = t5_config(weights)
    tokenizer = CogVideoXTokenizer(_tokenizer_folder(weights))
    if tokenizer.vocab_size > config["vocab_size"]:
        raise CheckpointError(
            f"The text encoder in {weights.path} knows {config['vocab_size']} tokens, its tokenizer has "
            f"{tokenizer.vocab_size}. Put the checkpoint's own tokenizer folder beside its text_encoder."
        )
    # the shared embedding stands under one or both of two names
    state_dict.setdefault("shared.weight", state_dict.pop("encoder.embed_tokens.weight", None))
    dtype = WEIGHT_DTYPES[weight_dtype] or comfy.utils.weight_dtype(state_dict)
    clip = comfy.sd.CLIP(
        _Target(config, tokenizer),
        parameters=comfy.utils.calculate_parameters(state_dict),
        state_dict=[state_dict],
        model_options={"dtype": dtype},
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (_load_text_encoder_patcher, (path, weight_dtype))
    return clip


def _load_text_encoder_patcher(path: Path, weight_dtype: str, disable_dynamic: bool = False) -> object:
    return load_text_encoder(path, weight_dtype, disable_dynamic).patcher


def t5_config(weights: Weights) -> dict:
    """ComfyUI's T5 config for these weights, from their shapes and the config.json beside them.

    Raises CheckpointError where the width is not what the pipeline's transformer reads, or, without a config, not
    T5-XXL's.
    """
    sd = weights.state_dict
    embedding = sd["shared.weight"] if "shared.weight" in sd else sd["encoder.embed_tokens.weight"]
    vocab_size, width = embedding.shape
    wanted = weights.siblings.get("transformer", {}).get("text_embed_dim")
    if wanted is None and weights.config is None:
        wanted = T5_XXL["d_model"]
    if wanted is not None and width != wanted:
        raise CheckpointError(
            f"The text encoder in {weights.path} is {width} wide; the transformer reads {wanted}. CogVideoX uses the "
            "T5-XXL v1.1 encoder (width 4096): fetch the checkpoint's own text_encoder."
        )
    heads = sd["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
    layers = 1 + max(int(k.split(".")[2]) for k in sd if k.startswith("encoder.block."))
    return T5_XXL | {
        "d_model": width,
        "vocab_size": vocab_size,
        "num_heads": heads,
        "num_layers": layers,
        "d_kv": sd["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": sd["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
    }


def _tokenizer_folder(weights: Weights) -> Path | None:
    folder = weights.path.parent / "tokenizer"
    return folder if folder.is_dir() else None
