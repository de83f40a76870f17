"""The nodes that a rewritten workflow consists of: their inputs and outputs in the order in which they are saved.

A test compares them with the nodes' schemas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .wrapper_nodes import WIDGETS


@dataclass(frozen=True)
class Target:
    """A node of this pack or of ComfyUI.

    inputs: (name, type, default), required ones first, None where there is no default. outputs: (name, type).
    control: the seed that control_after_generate belongs to, "" where there is none. optional: how many of the inputs.
    """

    inputs: tuple[tuple[str, str, Any], ...]
    outputs: tuple[tuple[str, str], ...]
    optional: int = 0
    control: str = ""

    @property
    def widgets(self) -> list[tuple[str, str, Any]]:
        return [entry for entry in self.inputs if entry[1] in WIDGETS]

    @property
    def sockets(self) -> list[tuple[str, str, Any]]:
        return [entry for entry in self.inputs if entry[1] not in WIDGETS]


def _socket(*names: str, kind: str = "") -> tuple[tuple[str, str, None], ...]:
    return tuple((name, kind or name.upper(), None) for name in names)


_SIZE = (("width", "INT", 720), ("height", "INT", 480), ("frames", "INT", 49), ("batch_size", "INT", 1))
_PROMPTS = _socket("positive", "negative", kind="CONDITIONING")
_PROMPTS_OUT = (("positive", "CONDITIONING"), ("negative", "CONDITIONING"))
_RANGE = (("strength", "FLOAT", 1.0), ("start_percent", "FLOAT", 0.0), ("end_percent", "FLOAT", 1.0))
_DTYPE, _FAMILY, _FIT = ("weight_dtype", "COMBO", "default"), ("family", "COMBO", "detect"), ("fit", "COMBO", "crop")
_HOLD, _SEED, _CFG = ("hold_last_frame", "BOOLEAN", False), ("seed", "INT", 0), ("cfg", "FLOAT", 6.0)
_POSTERIOR = (("sample_posterior", "BOOLEAN", False), _SEED)
_PICTURES = _socket("start_image", "end_image", kind="IMAGE")
_NOISE = ("noise_augmentation", "FLOAT", 0.0)
_LATENT = (("LATENT", "LATENT"),)

TARGETS: Mapping[str, Target] = {
    "CogVideoXLoadModel": Target((("model_name", "COMBO", None), _DTYPE, _FAMILY), (("MODEL", "MODEL"),), 1),
    "CogVideoXLoadVAE": Target((("vae_name", "COMBO", None), _DTYPE), (("VAE", "VAE"),)),
    "CogVideoXLoadTextEncoder": Target((("text_encoder_name", "COMBO", None), _DTYPE), (("CLIP", "CLIP"),)),
    "CogVideoXLoadControlNet": Target((("control_net_name", "COMBO", None), _DTYPE), (("CONTROL_NET", "CONTROL_NET"),)),
    "CogVideoXApplyLora": Target(
        (
            *_socket("model"),
            ("lora_name", "COMBO", None),
            ("strength", "FLOAT", 1.0),
            ("scale", "COMBO", "as trained"),
        ),
        (("MODEL", "MODEL"),),
        1,
    ),
    "CogVideoXEncodeText": Target(
        (*_socket("clip"), ("text", "STRING", ""), ("prompt_weights", "BOOLEAN", False)),
        (("CONDITIONING", "CONDITIONING"),),
        1,
    ),
    "CogVideoXEmptyLatent": Target(_SIZE, _LATENT),
    "CogVideoXEncodeVideo": Target(
        (
            *_socket("vae"),
            *_socket("images", kind="IMAGE"),
            ("width", "INT", 0),
            ("height", "INT", 0),
            _FIT,
            *_socket("mask"),
            *_POSTERIOR,
            ("batch_size", "INT", 1),
        ),
        _LATENT,
        7,
    ),
    "CogVideoXImageToVideo": Target(
        (
            *_PROMPTS,
            *_socket("vae"),
            *_SIZE,
            *_PICTURES,
            _NOISE,
            ("training_noise", "BOOLEAN", False),
            _FIT,
            ("image_scale", "COMBO", "checkpoint"),
            *_POSTERIOR,
        ),
        (*_PROMPTS_OUT, ("latent", "LATENT")),
        8,
    ),
    "CogVideoXFunInpaint": Target(
        (
            *_PROMPTS,
            *_socket("vae"),
            *_SIZE,
            *_socket("video", kind="IMAGE"),
            *_socket("mask"),
            *_PICTURES,
            _NOISE,
            _SEED,
            _FIT,
            _HOLD,
        ),
        (*_PROMPTS_OUT, ("latent", "LATENT")),
        8,
    ),
    "CogVideoXFunControl": Target(
        (*_PROMPTS, *_socket("vae"), *_socket("control_video", kind="IMAGE"), *_SIZE, *_RANGE, _FIT, _HOLD),
        (*_PROMPTS_OUT, ("latent", "LATENT")),
        2,
    ),
    "CogVideoXApplyControlNet": Target(
        (*_PROMPTS, *_socket("control_net"), *_socket("control_video", kind="IMAGE"), *_RANGE, _HOLD), _PROMPTS_OUT, 1
    ),
    "CogVideoXContextWindows": Target(
        (
            *_socket("model"),
            ("context_frames", "INT", 49),
            ("overlap_frames", "INT", 16),
            ("schedule", "COMBO", "standard_static"),
            ("fuse_method", "COMBO", "pyramid"),
            ("freenoise", "BOOLEAN", True),
            ("retain_start_image", "BOOLEAN", False),
            ("split_prompts", "BOOLEAN", False),
        ),
        (("MODEL", "MODEL"),),
        2,
    ),
    "CogVideoXSample": Target(
        (
            *_socket("model"),
            *_PROMPTS,
            *_socket("latent_image", kind="LATENT"),
            _SEED,
            ("steps", "INT", 50),
            _CFG,
            ("sampler", "COMBO", "ddim"),
            ("dynamic_cfg", "BOOLEAN", False),
            ("denoise", "FLOAT", 1.0),
            ("guidance_rescale", "FLOAT", 0.0),
        ),
        _LATENT,
        1,
        control="seed",
    ),
    "CogVideoXDynamicCFG": Target(
        (*_socket("model"), ("steps", "INT", 50), _CFG, ("guidance_rescale", "FLOAT", 0.0)), (("MODEL", "MODEL"),), 1
    ),
    "CogVideoXDecode": Target(
        (
            *_socket("vae"),
            *_socket("samples", kind="LATENT"),
            ("memory", "COMBO", "auto"),
            ("compile", "BOOLEAN", False),
        ),
        (("IMAGE", "IMAGE"),),
        1,
    ),
    # ComfyUI's own
    "KSampler": Target(
        (
            *_socket("model"),
            _SEED,
            ("steps", "INT", 20),
            ("cfg", "FLOAT", 8.0),
            ("sampler_name", "COMBO", None),
            ("scheduler", "COMBO", None),
            *_PROMPTS,
            *_socket("latent_image", kind="LATENT"),
            ("denoise", "FLOAT", 1.0),
        ),
        _LATENT,
        control="seed",
    ),
    "ConditioningAverage": Target(
        (
            *_socket("conditioning_to", "conditioning_from", kind="CONDITIONING"),
            ("conditioning_to_strength", "FLOAT", 1.0),
        ),
        (("CONDITIONING", "CONDITIONING"),),
    ),
    "ConditioningConcat": Target(
        _socket("conditioning_to", "conditioning_from", kind="CONDITIONING"), (("CONDITIONING", "CONDITIONING"),)
    ),
    "ImageFromBatch": Target(
        (*_socket("image"), ("batch_index", "INT", 0), ("length", "INT", 1)), (("IMAGE", "IMAGE"),)
    ),
    "GetImageSize": Target(_socket("image"), (("width", "INT"), ("height", "INT"), ("batch_size", "INT"))),
    "TorchCompileModel": Target((*_socket("model"), ("backend", "COMBO", "inductor")), (("MODEL", "MODEL"),)),
}
