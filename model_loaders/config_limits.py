"""What each entry of a component's config.json may be: the one table against which every config is checked as it is
read, before anything is built from it.

A config is a stranger's file of a few bytes. The classes of diffusers take whatever it says: a count of a billion
layers builds for ever, and a NaN as scaling factor paints black. The limits lie well above every published checkpoint,
so that fine-tunes and larger models of the same kind load.

Source of the entries: diffusers' CogVideoXTransformer3DModel, AutoencoderKLCogVideoX and CogVideoXDDIMScheduler;
TheDenk/cogvideox-controlnet, cogvideo_controlnet.py. What the table does not name is not read by the pack, except for
the scheduler's other entries, which variants.resolve_snr_shift compares with the official ones.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import UserError, quoted

MOST_LAYERS = 128  # transformer blocks; 5b has 42. Each takes some milliseconds to build.
MOST_PATCH = 8  # latents on a side of a patch; official: 2
MOST_TOKENS = 4096  # of text: every prompt is padded to that many; official: 226


class Limit(NamedTuple):
    """expected: in words, for "... is expected". holds: whether a value of the file is that."""

    expected: str
    holds: Callable[[Any], bool]


def integer(least: int, most: int) -> Limit:
    """An integer. JSON's true is none, though Python counts it as 1."""
    expected = str(least) if least == most else f"a whole number from {least} to {most}"
    return Limit(expected, lambda value: type(value) is int and least <= value <= most)


def number(least: float, most: float) -> Limit:
    """An integer or a fraction; NaN, which Python reads in JSON, lies in no range."""
    expected = f"{least:g}" if least == most else f"a number from {least:g} to {most:g}"
    return Limit(expected, lambda value: type(value) in (int, float) and least <= value <= most)


def multiple(step: int, most: int) -> Limit:
    return Limit(
        f"a multiple of {step} from {step} to {most}",
        lambda value: type(value) is int and step <= value <= most and value % step == 0,
    )


def one_of(*values: str) -> Limit:
    return Limit(" or ".join(values), lambda value: isinstance(value, str) and value in values)


def or_null(limit: Limit) -> Limit:
    return Limit(f"{limit.expected}, or null", lambda value: value is None or limit.holds(value))


def list_of(count: int, limit: Limit) -> Limit:
    """A list of exactly `count`, each within `limit`. Python code may give a tuple."""
    return Limit(
        f"a list of {count}, each {limit.expected}",
        lambda value: isinstance(value, list | tuple) and len(value) == count and all(map(limit.holds, value)),
    )


def only(flag: bool) -> Limit:
    """One of JSON's true and false."""
    return Limit(str(flag).lower(), lambda value: value is flag)


FLAG = Limit("true or false", lambda value: type(value) is bool)
_VAE_BLOCKS = 4  # 2 ** 3 times smaller in space, 4 in time
_WIDTH = integer(1, 65536)  # channels of a layer
_SIDE = integer(1, 400)  # latents; official: at most 300
_PIXELS = integer(1, 16384)
_FRAMES = integer(1, 10001)
_SCALE = number(1e-3, 1e3)  # a factor that is multiplied by and divided by
_GELU = one_of("gelu-approximate", "gelu", "geglu", "geglu-approximate", "swiglu", "linear-silu")
_TIME_ACTIVATION = one_of("silu", "swish", "mish", "gelu", "relu")

# The entries that a transformer and a control net share.
_BLOCKS: dict[str, Limit] = {
    "num_attention_heads": integer(1, 1024),
    "attention_head_dim": multiple(16, 1024),  # what RoPE splits into 1/4 for time and 3/8 for each side, in pairs
    "num_layers": integer(1, MOST_LAYERS),
    "time_embed_dim": _WIDTH,
    "text_embed_dim": _WIDTH,
    "flip_sin_to_cos": FLAG,
    "freq_shift": number(0, 1),
    "attention_bias": FLAG,
    "sample_width": _SIDE,
    "sample_height": _SIDE,
    "sample_frames": _FRAMES,
    "patch_size": integer(1, MOST_PATCH),
    "max_text_seq_length": integer(1, MOST_TOKENS),
    "activation_fn": _GELU,
    "timestep_activation_fn": _TIME_ACTIVATION,
    "norm_elementwise_affine": FLAG,
    "norm_eps": number(0, 1),
    "spatial_interpolation_scale": _SCALE,
    "temporal_interpolation_scale": _SCALE,
    "use_rotary_positional_embeddings": FLAG,
    "use_learned_positional_embeddings": FLAG,
}
# component -> entry -> its limit
LIMITS: dict[str, dict[str, Limit]] = {
    "transformer": {
        **_BLOCKS,
        "in_channels": _WIDTH,
        "out_channels": _WIDTH,
        "ofs_embed_dim": or_null(_WIDTH),
        "dropout": number(0, 1),
        "patch_size_t": or_null(integer(2, 2)),
        "temporal_compression_ratio": integer(4, 4),
        "patch_bias": FLAG,
    },
    "controlnet": {
        **_BLOCKS,
        "vae_channels": _WIDTH,
        "in_channels": _WIDTH,
        "downscale_coef": integer(1, 64),
        "out_proj_dim": or_null(_WIDTH),
    },
    "vae": {
        "in_channels": integer(3, 3),
        "out_channels": integer(3, 3),
        "down_block_types": list_of(_VAE_BLOCKS, one_of("CogVideoXDownBlock3D")),
        "up_block_types": list_of(_VAE_BLOCKS, one_of("CogVideoXUpBlock3D")),
        "block_out_channels": list_of(_VAE_BLOCKS, integer(1, 8192)),
        "latent_channels": integer(16, 16),
        "layers_per_block": integer(1, 16),
        "act_fn": one_of("silu", "swish"),
        "norm_eps": number(0, 1),
        "norm_num_groups": integer(1, 8192),
        "temporal_compression_ratio": number(4, 4),
        "sample_height": _PIXELS,
        "sample_width": _PIXELS,
        "scaling_factor": _SCALE,
        "shift_factor": or_null(number(-1e3, 1e3)),
        "latents_mean": or_null(list_of(16, number(-1e3, 1e3))),
        "latents_std": or_null(list_of(16, _SCALE)),
        "force_upcast": FLAG,
        # diffusers makes both of the colours' channels, to which the latents' do not fit: no such VAE can run there.
        "use_quant_conv": only(False),
        "use_post_quant_conv": only(False),
        "invert_scale_latents": FLAG,
    },
    "scheduler": {"snr_shift_scale": number(1e-2, 1e2)},
    # The sizes are read from T5's weights, and load_text_encoder compares them with its config. ComfyUI's T5 computes
    # the rest in one way (comfy/text_encoders/t5.py), which is that of T5 v1.1; dense_act_fn has transformers' name of
    # the activation or ComfyUI's.
    "text_encoder": {
        "num_layers": integer(1, MOST_LAYERS),
        "d_model": _WIDTH,
        "d_kv": _WIDTH,
        "d_ff": _WIDTH,
        "num_heads": integer(1, 1024),
        "vocab_size": integer(1, 1 << 24),
        "feed_forward_proj": one_of("gated-gelu", "gated-gelu_new", "gated-gelu_pytorch_tanh"),
        "dense_act_fn": one_of("gelu_new", "gelu_pytorch_tanh"),
        "is_gated_act": only(True),
        "layer_norm_epsilon": number(1e-6, 1e-6),
        "relative_attention_num_buckets": integer(32, 32),
        "relative_attention_max_distance": integer(128, 128),
    },
}


def checked_config(component: str, config: Any, source: str) -> dict[str, Any]:
    """`config`, where it is an object all of whose entries are within the table's limits.

    component: a key of LIMITS. source: the beginning of the message's sentence, such as the path of the file.

    Raises UserError, which names the first entry that is not, its value and what is expected.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{source} is not a JSON object. Download it again.")
    for name, limit in LIMITS[component].items():
        if name in config and not limit.holds(config[name]):
            raise UserError(
                f"{source} has {quoted(str(config[name]))} as {name}; {limit.expected} is expected. Download the "
                "checkpoint again, or put its own config there."
            )
    return dict(config)
