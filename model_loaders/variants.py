"""Which official checkpoint some weights belong to, and the config that they have."""

import logging
from collections.abc import Collection, Mapping

import torch

from ..errors import UserError
from ..sockets.families import FAMILIES, Family

# component -> what it is, and keys that together only CogVideoX's has
COMPONENTS = {
    "transformer": (
        "a CogVideoX transformer",
        (
            "patch_embed.proj.weight",
            "patch_embed.text_proj.weight",
            "proj_out.weight",
            "time_embedding.linear_1.weight",
            "transformer_blocks.0.norm1.linear.weight",
        ),
    ),
    "vae": (
        "a CogVideoX VAE",
        ("decoder.conv_in.conv.weight", "decoder.mid_block.resnets.0.norm1.conv_y.conv.weight"),
    ),
    "text_encoder": (
        "a T5 text encoder",
        (
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "encoder.block.0.layer.1.DenseReluDense.wo.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
    ),
}
# as COMPONENTS, for what a pipeline does not need to have
ADDITIONS = {
    "controlnet": (
        "a CogVideoX control net",
        (
            "controlnet_encode_first.0.weight",
            "patch_embed.text_proj.weight",
            "time_embedding.linear_1.weight",
            "transformer_blocks.0.norm1.linear.weight",
        ),
    ),
}
# A key that only this kind of model has, so that a wrong file can be called by its name. First match wins.
_TELLTALE_KEYS = (
    ("controlnet_encode_first.0.weight", "a CogVideoX control net"),
    ("transformer_blocks.0.norm1.linear.weight", "a CogVideoX-like transformer"),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder"),
    ("decoder.mid_block.resnets.0.norm1.conv_y.conv.weight", "a CogVideoX VAE"),
    ("decoder.conv_in.conv.weight", "a HunyuanVideo or other video VAE"),
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


def describe_weights(keys: Collection[str]) -> str:
    """What weights with these keys look like, in words for a message."""
    names = {key.removeprefix("model.diffusion_model.") for key in keys} | set(keys)
    for key, looks_like in _TELLTALE_KEYS:
        if key in names:
            return looks_like
    if any(".lora_" in key or key.startswith("lora_") for key in keys):
        return "a LoRA"
    first = next(iter(keys), None)
    return f"an unknown model (its first key is {first!r})" if first else "an empty file"


def require_component(keys: Collection[str], component: str, source: str) -> None:
    """Raises UserError unless weights with these keys, in diffusers' names, are a CogVideoX `component`.

    component: "transformer", "vae", "text_encoder" or "controlnet". source: path for the message.
    """
    name, needed = (COMPONENTS | ADDITIONS)[component]
    missing = [key for key in needed if key not in keys]
    # Flux and others share names with a transformer of CogVideoX: only what has its own as well is one
    is_most = describe_weights(keys).replace("-like", "") == name and all(key in keys for key in needed[:2])
    if missing and is_most:
        raise UserError(
            f"{source} is {name} without {', '.join(missing)}: the file is damaged or not whole. Fetch it again."
        )
    if missing:
        raise UserError(
            f"{source} looks like {describe_weights(keys)}, not {name}. Choose the checkpoint's {component}."
        )


def is_fixed_table(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a transformer's position table is 2b's computed one, which some files carry along.

    No text to video model has learned positions (16 input channels; tensors are asked for their shapes alone).
    """
    proj = tensors["patch_embed.proj.weight"]
    return "patch_embed.pos_embedding" in tensors and len(proj.shape) == 4 and proj.shape[1] == 16


def transformer_shape(state_dict: Mapping[str, torch.Tensor]) -> dict:
    """The part of diffusers' transformer config that weights tell by their shapes alone."""
    proj = state_dict["patch_embed.proj.weight"]
    dim, text_embed_dim = state_dict["patch_embed.text_proj.weight"].shape
    layers = len({k.split(".")[1] for k in state_dict if k.startswith("transformer_blocks.")})
    patch_size, patch_size_t = 2, None if len(proj.shape) == 4 else 2
    ofs = state_dict.get("ofs_embedding.linear_1.weight")
    return {
        "dim": dim,
        "num_layers": layers,
        "in_channels": proj.shape[1] if len(proj.shape) == 4 else proj.shape[1] // (patch_size**2 * patch_size_t),
        "out_channels": state_dict["proj_out.weight"].shape[0] // (patch_size**2 * (patch_size_t or 1)),
        "time_embed_dim": state_dict["time_embedding.linear_1.weight"].shape[0],
        "text_embed_dim": text_embed_dim,
        "patch_size_t": patch_size_t,
        "ofs_embed_dim": ofs.shape[0] if ofs is not None else None,
        "use_learned_positional_embeddings": "patch_embed.pos_embedding" in state_dict,
    }


def detect_family(config: Mapping) -> Family:
    """The official family with this architecture (a transformer config of any size).

    Raises UserError for an architecture that no family has.
    """
    rotary = bool(config.get("use_rotary_positional_embeddings"))
    learned = bool(config.get("use_learned_positional_embeddings"))
    patch_size_t, ofs = config.get("patch_size_t"), bool(config.get("ofs_embed_dim"))
    found = config["in_channels"], patch_size_t, rotary, learned, ofs
    for f in FAMILIES:
        if found == (f.in_channels, f.patch_size_t, f.rotary, f.learned_positions, bool(f.ofs_embed_dim)):
            return f
    raise UserError(
        f"No CogVideoX model has {config['in_channels']} input channels with patch_size_t {patch_size_t}, "
        f"{'rotary' if rotary else 'sincos'} and {'learned' if learned else 'no learned'} positions, "
        f"{'with' if ofs else 'without'} an ofs embedding. This version runs {', '.join(f.name for f in FAMILIES)}."
    )


def resolve_config(state_dict: Mapping[str, torch.Tensor], config: Mapping | None, source: str) -> dict:
    """A complete diffusers transformer config, checked against the weights.

    config: the config.json beside the weights; None takes the official family of exactly this size.
    source: path for messages.

    Raises UserError where config and weights contradict each other or nothing official has this size.
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
        raise UserError(
            f"config.json and the weights in {source} do not belong together: {'; '.join(found)} (config against "
            "weights). Put the config.json of this very checkpoint beside its weights."
        )
    return merged | shape


def _official_config(shape: dict, dim: int, source: str) -> dict:
    for f in FAMILIES:
        if (dim, shape["num_layers"], shape["in_channels"], shape["patch_size_t"], shape["ofs_embed_dim"]) == (
            f.heads * 64,
            f.layers,
            f.in_channels,
            f.patch_size_t,
            f.ofs_embed_dim,
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
    raise UserError(
        f"{source} has no config.json and is no official size: {shape['num_layers']} layers of width {dim} with "
        f"{shape['in_channels']} input channels. Put the checkpoint's config.json beside its weights."
    )


# What every official scheduler_config.json says, and the samplers take for granted.
_OFFICIAL_SCHEDULE = {
    "prediction_type": "v_prediction",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}


def resolve_snr_shift(scheduler_config: Mapping | None, family: Family, source: str) -> float:
    """The SNR shift of a checkpoint's noise levels: its scheduler's, or the family's where it brings no scheduler.

    source: path for messages. Anything else in the config that differs from the official ones is warned of, for it is
    not followed.

    Raises UserError for a model that does not predict v.
    """
    if scheduler_config is None:
        return family.snr_shift_scale
    other = {k: scheduler_config[k] for k, v in _OFFICIAL_SCHEDULE.items() if scheduler_config.get(k, v) != v}
    if "prediction_type" in other:
        raise UserError(
            f"The scheduler beside {source} says prediction_type {other['prediction_type']}; CogVideoX models predict "
            "v_prediction. Put the checkpoint's own scheduler_config.json there."
        )
    if other:
        found = ", ".join(f"{k} {v} (official: {_OFFICIAL_SCHEDULE[k]})" for k, v in other.items())
        logging.warning(
            f"The scheduler beside {source} differs from CogVideoX's: {found}. CogVideoX's own schedule is used."
        )
    return scheduler_config.get("snr_shift_scale", family.snr_shift_scale)
