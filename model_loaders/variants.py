"""What is known of each official checkpoint family, and which one some weights belong to.

Source of the numbers: the config.json files of the official repositories (THUDM, now zai-org).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..host.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """One official checkpoint; a fine-tune or a smaller model of the same architecture belongs to it as well."""

    name: str
    layers: int
    heads: int
    in_channels: int
    rotary: bool
    learned_positions: bool
    patch_size_t: int | None
    ofs_embed_dim: int | None
    trained_dtype: torch.dtype
    vae_scaling_factor: float
    snr_shift_scale: float


FAMILIES = (
    Family("CogVideoX-2b", 30, 30, 16, False, False, None, None, torch.float16, 1.15258426, 3.0),
    Family("CogVideoX-5b", 42, 48, 16, True, False, None, None, torch.bfloat16, 0.7, 1.0),
    Family("CogVideoX-5b-I2V", 42, 48, 32, True, True, None, None, torch.bfloat16, 0.7, 1.0),
    Family("CogVideoX1.5-5B", 42, 48, 16, True, False, 2, None, torch.bfloat16, 0.7, 1.0),
    Family("CogVideoX1.5-5B-I2V", 42, 48, 32, True, False, 2, 512, torch.bfloat16, 0.7, 1.0),
)

# A key that only this kind of model has, so that a wrong file can be called by its name. First match wins.
_TELLTALE_KEYS = (
    ("transformer_blocks.0.norm1.linear.weight", "a CogVideoX-like transformer"),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder"),
    ("decoder.conv_in.conv.weight", "a CogVideoX VAE"),
    ("encoder.down_blocks.0.resnets.0.norm1.weight", "an image VAE in diffusers layout"),
    ("decoder.up.0.block.0.norm1.weight", "an image VAE"),
    ("encoder.downsamples.0.residual.0.gamma", "a Wan VAE"),
    ("double_blocks.0.img_attn.norm.key_norm.scale", "a Flux or HunyuanVideo model"),
    ("double_blocks.0.img_attn.qkv.weight", "a Flux or HunyuanVideo model"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "a Stable Diffusion 3 model"),
    ("blocks.0.self_attn.q.weight", "a Wan model"),
    ("transformer_blocks.0.attn1.k_norm.weight", "an LTX-Video model"),
    ("transformer_blocks.0.scale_shift_table", "an LTX-Video or PixArt model"),
    ("transformer_blocks.0.attn.norm_added_k.weight", "a Flux, Qwen-Image or HunyuanVideo model in diffusers layout"),
    ("blocks.0.attn.qkv_x.weight", "a Mochi model"),
    ("down_blocks.0.resnets.0.norm1.weight", "a Stable Diffusion UNet in diffusers layout"),
    ("model.diffusion_model.input_blocks.0.0.weight", "a whole Stable Diffusion checkpoint"),
    ("input_blocks.0.0.weight", "a Stable Diffusion UNet"),
    ("text_model.embeddings.token_embedding.weight", "a CLIP text encoder"),
    ("model.embed_tokens.weight", "a language model"),
)


def describe_weights(state_dict: Mapping[str, torch.Tensor]) -> str:
    """What some weights look like, in words for a message."""
    for key, looks_like in _TELLTALE_KEYS:
        if key in state_dict:
            return looks_like
    if any(".lora_" in key or key.startswith("lora_") for key in state_dict):
        return "a LoRA"
    first = next(iter(state_dict), None)
    return f"an unknown model (its first key is {first!r})" if first else "an empty file"


def is_transformer(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are a CogVideoX transformer's weights in diffusers layout."""
    needed = ("patch_embed.proj.weight", "patch_embed.text_proj.weight", "transformer_blocks.0.norm1.linear.weight")
    return all(key in state_dict for key in needed)


def transformer_shape(state_dict: Mapping[str, torch.Tensor]) -> dict:
    """The part of diffusers' transformer config that weights tell by their shapes alone."""
    proj = state_dict["patch_embed.proj.weight"]
    dim, text_embed_dim = state_dict["patch_embed.text_proj.weight"].shape
    layers = 1 + max(int(k.split(".")[1]) for k in state_dict if k.startswith("transformer_blocks."))
    patch_size, patch_size_t = 2, None if proj.ndim == 4 else 2
    ofs = state_dict.get("ofs_embedding.linear_1.weight")
    return {
        "dim": dim,
        "num_layers": layers,
        "in_channels": proj.shape[1] if proj.ndim == 4 else proj.shape[1] // (patch_size**2 * patch_size_t),
        "out_channels": state_dict["proj_out.weight"].shape[0] // (patch_size**2 * (patch_size_t or 1)),
        "time_embed_dim": state_dict["time_embedding.linear_1.weight"].shape[0],
        "text_embed_dim": text_embed_dim,
        "patch_size_t": patch_size_t,
        "ofs_embed_dim": ofs.shape[0] if ofs is not None else None,
        "use_learned_positional_embeddings": "patch_embed.pos_embedding" in state_dict,
    }


def detect_family(config: Mapping) -> Family:
    """The official family with this architecture (a transformer config of any size).

    Raises CheckpointError for an architecture that no family has.
    """
    rotary = bool(config.get("use_rotary_positional_embeddings"))
    learned = bool(config.get("use_learned_positional_embeddings"))
    patch_size_t = config.get("patch_size_t")
    candidates = [
        f
        for f in FAMILIES
        if f.patch_size_t == patch_size_t and f.rotary == rotary and f.learned_positions == learned
    ]
    for family in candidates:
        if family.in_channels == config["in_channels"]:
            return family
    raise CheckpointError(
        f"No CogVideoX model has {config['in_channels']} input channels with patch_size_t {patch_size_t}, "
        f"{'rotary' if rotary else 'sincos'} and {'learned' if learned else 'no learned'} positions. "
        f"This version runs {', '.join(f.name for f in FAMILIES)}."
    )


def resolve_config(state_dict: Mapping[str, torch.Tensor], config: Mapping | None, source: str) -> dict:
    """A complete diffusers transformer config, checked against the weights.

    config: the config.json beside the weights; None takes the official family of exactly this size.
    source: path for messages.

    Raises CheckpointError where config and weights contradict each other or nothing official has this size.
    """
    shape = transformer_shape(state_dict)
    dim = shape.pop("dim")
    if config is None:
        return _official_config(shape, dim, source)
    merged = {k: v for k, v in config.items() if not k.startswith("_")}
    claimed = merged.get("num_attention_heads", 30) * merged.get("attention_head_dim", 64)
    found = [f"width {claimed} against {dim}"] if claimed != dim else []
    found += [f"{k} {merged[k]} against {v}" for k, v in shape.items() if k in merged and merged[k] != v]
    if found:
        raise CheckpointError(
            f"config.json and the weights in {source} do not belong together: {'; '.join(found)} (config against "
            "weights). Put the config.json of this very checkpoint beside its weights."
        )
    return merged | shape


def _official_config(shape: dict, dim: int, source: str) -> dict:
    for f in FAMILIES:
        if (dim, shape["num_layers"], shape["in_channels"], shape["patch_size_t"]) == (
            f.heads * 64,
            f.layers,
            f.in_channels,
            f.patch_size_t,
        ) and shape["use_learned_positional_embeddings"] == f.learned_positions:
            sample = (300, 300, 81) if f.patch_size_t else (90, 60, 49)
            return shape | {
                "num_attention_heads": f.heads,
                "attention_head_dim": 64,
                "use_rotary_positional_embeddings": f.rotary,
                "patch_bias": f.patch_size_t is None,
                "sample_width": sample[0],
                "sample_height": sample[1],
                "sample_frames": sample[2],
            }
    raise CheckpointError(
        f"{source} has no config.json and is no official size: {shape['num_layers']} layers of width {dim} with "
        f"{shape['in_channels']} input channels. Put the checkpoint's config.json beside its weights."
    )
