"""Which official checkpoint some weights belong to, and their complete config."""

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from ..errors import UserError, quoted
from ..host.messages import Notify
from ..sockets.families import FAMILIES, LOOKALIKES, Family
from .config_conflicts import config_conflict
from .config_limits import MOST_PATCH, checked_config
from .files.key_maps import LORA_PART


class HasShape(Protocol):
    """A tensor, or the entry of one in a header: detection looks at shapes only."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class ComponentSignature(NamedTuple):
    """How a component of CogVideoX is recognised.

    description: in words for messages. required_keys: names that together only CogVideoX's component has; the first
    two tell it from every other kind in _SIGNATURE_KEYS, so that weights that have these are an incomplete component.
    """

    description: str
    required_keys: tuple[str, ...]


SIGNATURES = {
    "transformer": ComponentSignature(
        description="a CogVideoX transformer",
        required_keys=(
            "patch_embed.proj.weight",
            "patch_embed.text_proj.weight",
            "proj_out.weight",
            "time_embedding.linear_1.weight",
            "transformer_blocks.0.norm1.linear.weight",
        ),
    ),
    "vae": ComponentSignature(
        description="a CogVideoX VAE",
        required_keys=(
            "decoder.conv_in.conv.weight",
            "decoder.mid_block.resnets.0.norm1.conv_y.conv.weight",
        ),
    ),
    "text_encoder": ComponentSignature(
        description="a T5 text encoder",
        required_keys=(
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "encoder.block.0.layer.1.DenseReluDense.wo.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
    ),
    "controlnet": ComponentSignature(
        description="a CogVideoX control net",
        required_keys=(
            "controlnet_encode_first.0.weight",
            "patch_embed.text_proj.weight",
            "time_embedding.linear_1.weight",
            "transformer_blocks.0.norm1.linear.weight",
        ),
    ),
}
# A key that only this kind of model has, and what to call it in a message about a wrong file. The first match wins, so
# that the more specific kind stands first: a control net has a transformer's blocks, and a CogVideoX VAE has the key of
# the other video VAEs, "decoder.conv_in.conv.weight", too.
_SIGNATURE_KEYS = (
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
    ("model.diffusion_model.input_blocks.0.0.weight", "a complete Stable Diffusion checkpoint"),
    ("input_blocks.0.0.weight", "a Stable Diffusion UNet"),
    ("text_model.embeddings.token_embedding.weight", "a CLIP text encoder"),
    ("model.embed_tokens.weight", "a language model"),
)


def describe_weights(keys: Collection[str]) -> str:
    """The kind of model that weights with these keys are, in words for a message."""
    # Files with all components have this prefix before the names of the diffusion model.
    names = {key.removeprefix("model.diffusion_model.") for key in keys} | set(keys)
    for key, looks_like in _SIGNATURE_KEYS:
        if key in names:
            return looks_like
    # The same names behind any other prefix, but only now: a file with several components has names of several kinds.
    for key, looks_like in _SIGNATURE_KEYS:
        if any(name.endswith("." + key) for name in keys):
            return looks_like
    if any(re.search(LORA_PART, key) or key.startswith("lora_") for key in keys):
        return "a LoRA"
    first = next(iter(keys), None)
    return f"an unknown model (its first key is {quoted(first)!r})" if first else "an empty file"


def require_component(keys: Collection[str], component: str, source: str) -> None:
    """Raises UserError unless weights with these keys, in diffusers' names, are a CogVideoX `component`.

    component: "transformer", "vae", "text_encoder" or "controlnet". source: path for the message.
    """
    expected = SIGNATURES[component]
    missing = [key for key in expected.required_keys if key not in keys]
    if not missing:
        return
    found = describe_weights(keys)
    # A damaged file of the right kind needs another message than a file of another model. "CogVideoX-like": other
    # transformers share names with CogVideoX's. One counts as CogVideoX's only with the first two required keys.
    is_alike = found.replace("-like", "") == expected.description
    if found == expected.description or (is_alike and all(key in keys for key in expected.required_keys[:2])):
        raise UserError(
            f"{source} is {expected.description} without {', '.join(missing)}: the file is damaged or incomplete. "
            "Download it again."
        )
    raise UserError(f"{source} looks like {found}, not {expected.description}. Choose the checkpoint's {component}.")


def has_computed_positions(tensors: Mapping[str, HasShape]) -> bool:
    """Whether a transformer's position table is the computed one of 2b, which SAT saves with the weights.

    Only 5b-I2V has a learned table, and it has 32 input channels. A table next to 16 channels and a convolution (4
    dimensions) as patch embedding is therefore a computed one; taken for learned, it would fit no family.
    """
    proj = tensors["patch_embed.proj.weight"]
    return "patch_embed.pos_embedding" in tensors and len(proj.shape) == 4 and proj.shape[1] == 16


def sides(tensors: Mapping[str, HasShape], name: str, dimensions: tuple[int, ...], source: str) -> tuple[int, ...]:
    """The shape of a tensor by which a model is recognised. source: path for the message.

    Raises UserError where it has another number of dimensions than one of `dimensions`.
    """
    shape = tuple(tensors[name].shape)
    if len(shape) not in dimensions:
        raise UserError(
            f"{name} in {source} has shape {list(shape)}. {' or '.join(map(str, dimensions))} dimensions are expected: "
            "download the file again."
        )
    return shape


def transformer_shape(
    state_dict: Mapping[str, HasShape], source: str, config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The part of diffusers' transformer config that follows from the shapes of the weights, and "dim", their width.

    config: of CogVideoX 1.5, whose linear patch embedding shows only a product, it tells the size of a patch.

    Raises UserError as sides does.
    """
    proj = sides(state_dict, "patch_embed.proj.weight", (2, 4), source)
    dim, text_embed_dim = sides(state_dict, "patch_embed.text_proj.weight", (2,), source)
    layers = len({k.split(".")[1] for k in state_dict if k.startswith("transformer_blocks.")})
    # CogVideoX 1.0 embeds patches of 2 x 2 latents by a convolution, weight [dim, channels, 2, 2]; 1.5 patches of
    # 2 x 2 x 2 by a linear layer, weight [dim, channels * 8]. The number of dimensions thus tells patch_size_t.
    patch_size_t = None if len(proj) == 4 else 2
    patch_size = (config or {}).get("patch_size", 2) if patch_size_t else convolved_patch(proj, source)
    ofs = "ofs_embedding.linear_1.weight"
    return {
        "dim": dim,
        "num_layers": layers,
        "in_channels": proj[1] if patch_size_t is None else proj[1] // (patch_size**2 * patch_size_t),
        "out_channels": sides(state_dict, "proj_out.weight", (2,), source)[0] // (patch_size**2 * (patch_size_t or 1)),
        "time_embed_dim": sides(state_dict, "time_embedding.linear_1.weight", (2,), source)[0],
        "text_embed_dim": text_embed_dim,
        "patch_size": patch_size,
        "patch_size_t": patch_size_t,
        "ofs_embed_dim": sides(state_dict, ofs, (2,), source)[0] if ofs in state_dict else None,
        "use_learned_positional_embeddings": "patch_embed.pos_embedding" in state_dict,
    }


def convolved_patch(proj: tuple[int, ...], source: str) -> int:
    """The side of a patch from the shape of the convolution that embeds it, [dim, channels, side, side].

    Raises UserError where the patch is no square of a size that the transformer takes.
    """
    if proj[2] != proj[3] or proj[2] not in range(1, MOST_PATCH + 1):
        raise UserError(
            f"The weights in {source} embed patches of {proj[2]} x {proj[3]} latents. Squares of 1 x 1 to "
            f"{MOST_PATCH} x {MOST_PATCH} are expected: download the file again."
        )
    return proj[2]


DETECT = "detect"
FAMILY_NAMES = (DETECT, *(family.name for family in (*FAMILIES, *LOOKALIKES)))


class WrongFamilyError(UserError):
    """The weights are fine, and not what the user has called them."""

    input_name = "family"


def check_family_name(family: str) -> None:
    """Raises UserError for a name that is not in FAMILY_NAMES."""
    if family not in FAMILY_NAMES:
        raise WrongFamilyError(f"There is no CogVideoX model {quoted(family)!r}. Choose {' or '.join(FAMILY_NAMES)}.")


def detect_family(config: Mapping[str, Any], chosen_family: str = DETECT, hint: str = "") -> Family:
    """The official family with this architecture (a transformer config of any size).

    chosen_family: the name of the family, where the user chooses one. hint: what the checkpoint itself calls it, a
    family's name or the class of its pipeline; it counts where several families have this architecture.

    Raises UserError for an architecture that belongs to no family, or not to the one that was chosen.
    """
    rotary = bool(config.get("use_rotary_positional_embeddings"))
    learned = bool(config.get("use_learned_positional_embeddings"))
    patch_size_t, ofs = config.get("patch_size_t"), bool(config.get("ofs_embed_dim"))
    # Layers and heads are left out, so that a smaller model of the same architecture belongs to the family as well.
    found = config["in_channels"], patch_size_t, rotary, learned, ofs
    fits = [f for f in (*FAMILIES, *LOOKALIKES) if found == _architecture(f)]
    if not fits:
        raise UserError(
            f"No CogVideoX model has {config['in_channels']} input channels with patch_size_t {patch_size_t}, "
            f"{'rotary' if rotary else 'sincos'} and {'learned' if learned else 'no learned'} positions, "
            f"{'with' if ofs else 'without'} an ofs embedding. This version runs "
            f"{', '.join(f.name for f in FAMILIES)}. "
            "Choose a checkpoint of one of these."
        )
    if chosen_family != DETECT:
        check_family_name(chosen_family)
        chosen = next((f for f in fits if f.name == chosen_family), None)
        if chosen is None:
            raise WrongFamilyError(
                f"These weights are not {chosen_family}: they have the architecture of "
                f"{' and '.join(f.name for f in fits)}. Choose {DETECT}, or the checkpoint of {chosen_family}."
            )
        return chosen
    return next((f for f in fits if hint in (f.name, _PIPELINE_OF_TASK.get(f.task))), fits[0])


# task -> the class of diffusers' pipeline for it, in model_index.json
_PIPELINE_OF_TASK = {"image": "CogVideoXImageToVideoPipeline", "control": "CogVideoXFunControlPipeline"}


def _architecture(f: Family) -> tuple:
    return f.in_channels, f.patch_size_t, f.rotary, f.learned_positions, bool(f.ofs_embed_dim)


def resolve_config(
    state_dict: Mapping[str, HasShape],
    config: Mapping[str, Any] | None,
    source: str,
    chosen_family: str = DETECT,
    is_in_header: bool = False,
) -> dict[str, Any]:
    """A complete diffusers transformer config, checked against the weights.

    config: the config.json of the weights; None takes the config of the official checkpoint of exactly this size, or of
    the family that was chosen, of whatever size. source: path for messages. chosen_family: as for detect_family.
    is_in_header: whether the config stands in the header of the weights' file.

    Raises UserError where config and weights contradict each other, no official checkpoint has this size, or an entry
    is beyond the limits of config_limits.py.
    """
    if config is not None:
        config = checked_config("transformer", config, source)
    shape = transformer_shape(state_dict, source, config)
    dim = shape.pop("dim")
    # Names and shapes are as cheap to invent as a config.
    checked_config("transformer", shape, f"The model that the weights in {source} describe")
    if config is None:
        return _official_config(shape, dim, source, chosen_family)
    merged = {k: v for k, v in config.items() if not k.startswith("_")}
    found = transformer_differences(merged, shape, dim)
    if found:
        raise config_conflict(found, source, "transformer", is_in_header)
    # A config may lack an entry that has a default in diffusers; the shapes complete it.
    merged |= shape
    if merged["ofs_embed_dim"] not in (None, merged["time_embed_dim"]):
        raise UserError(
            f"The weights in {source} embed ofs with {merged['ofs_embed_dim']} numbers and the time with "
            f"{merged['time_embed_dim']}. Both need the same width, for they are added: download the file again."
        )
    return merged


def transformer_differences(config: Mapping[str, Any], shape: Mapping[str, Any], dim: int) -> list[str]:
    """What a config says and the weights contradict, in words. shape, dim: of transformer_shape."""
    # The weights show the width only, not how it is split into heads: a wrong head size would make noise without an
    # error. The defaults are those of diffusers' CogVideoXTransformer3DModel.
    claimed = config.get("num_attention_heads", 30) * config.get("attention_head_dim", 64)
    found = [f"width {claimed} against {dim}"] if claimed != dim else []
    return found + [f"{k} {config[k]} against {v}" for k, v in shape.items() if k in config and config[k] != v]


# What leaves no trace in the weights (rotary positions, the size of a head) is taken from the family of exactly this
# size. For any other size it would be a guess, and with a wrong guess the model loads and makes noise.
def _official_config(shape: Mapping[str, Any], dim: int, source: str, chosen_family: str) -> dict[str, Any]:
    for f in (*FAMILIES, *LOOKALIKES):
        architecture = {
            "in_channels": f.in_channels,
            "patch_size": 2,
            "patch_size_t": f.patch_size_t,
            "use_learned_positional_embeddings": f.learned_positions,
        }
        size = {"num_layers": f.layers, "ofs_embed_dim": f.ofs_embed_dim}
        has_size = dim == f.heads * 64 and all(shape[name] == value for name, value in size.items())
        is_meant = f.name == chosen_family and dim % 64 == 0 and bool(shape["ofs_embed_dim"]) == bool(f.ofs_embed_dim)
        fits = all(shape[name] == value for name, value in architecture.items())
        if fits and (is_meant or (has_size and chosen_family == DETECT)):
            # the size that position tables are made for: latent width and height, video frames
            sample_width, sample_height, sample_frames = (300, 300, 81) if f.patch_size_t else (90, 60, 49)
            return {
                **shape,
                "num_attention_heads": dim // 64,
                "attention_head_dim": 64,
                "use_rotary_positional_embeddings": f.rotary,
                "patch_bias": f.patch_size_t is None,
                "sample_width": sample_width,
                "sample_height": sample_height,
                "sample_frames": sample_frames,
            }
    if chosen_family != DETECT:
        raise WrongFamilyError(
            f"The weights in {source} are not {chosen_family}: they have {shape['num_layers']} layers of width {dim} "
            f"with {shape['in_channels']} input channels. Choose {DETECT}, or the checkpoint of {chosen_family}."
        )
    raise UserError(
        f"{source} has no config.json and not the size of an official checkpoint: it has {shape['num_layers']} layers "
        f"of width {dim} with {shape['in_channels']} input channels. Put the checkpoint's config.json into the folder "
        "of its weights."
    )


_SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
# The entries of every official scheduler_config.json on which the samplers rely.
_OFFICIAL_SCHEDULE = {
    "prediction_type": "v_prediction",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
    "trained_betas": None,
}


def resolve_snr_shift(
    scheduler_config: Mapping[str, Any] | None,
    family: Family,
    source: str,
    notify: Notify = logging.warning,
) -> float:
    """The SNR shift of a checkpoint's noise levels: its scheduler's, or the family's where it has no scheduler config.

    source: path for messages. notify: gets a sentence where any other entry differs from the official ones, which is
    not followed: the samplers compute CogVideoX's schedule and take no other. A missing entry counts as the official
    one, and the scheduler's class counts where it is not one of CogVideoX's.

    Raises UserError for a model that does not predict v.
    """
    if scheduler_config is None:
        return family.snr_shift_scale
    checked_config("scheduler", scheduler_config, f"The scheduler config of {source}")
    other = {k: scheduler_config[k] for k, v in _OFFICIAL_SCHEDULE.items() if scheduler_config.get(k, v) != v}
    kind = str(scheduler_config.get("_class_name", _SCHEDULERS[0]))
    if kind not in _SCHEDULERS:
        other["_class_name"] = kind
    if "prediction_type" in other:
        raise UserError(
            f"The scheduler config of {source} says prediction_type {quoted(str(other['prediction_type']))}; CogVideoX "
            "models have v_prediction. Put the checkpoint's own scheduler_config.json there."
        )
    if other:
        official = {**_OFFICIAL_SCHEDULE, "_class_name": " or ".join(_SCHEDULERS)}
        found = ", ".join(f"{k} {quoted(str(v))} (official: {official[k]})" for k, v in other.items())
        notify(
            f"The scheduler config of {source} differs from CogVideoX's: {found}. CogVideoX's own schedule is used, so "
            "the videos are not those of that scheduler. If they look wrong, put the official config there."
        )
    return scheduler_config.get("snr_shift_scale", family.snr_shift_scale)
