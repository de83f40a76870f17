"""The wrapper's nodes: their inputs in the order in which a workflow saves them, and its checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
REQUIRED: Any = object()  # in the place of a default: ComfyUI runs no node that lacks this input


@dataclass(frozen=True)
class WrapperInput:
    """One input. kind: a socket's type, or one of WIDGETS. default: REQUIRED, or what an older file lacks it for."""

    name: str
    kind: str
    default: Any = None
    choices: tuple[str, ...] = ()

    @property
    def is_widget(self) -> bool:
        return self.kind in WIDGETS


SCHEDULERS = (
    *("DPM++", "Euler", "Euler A", "PNDM", "DDIM", "CogVideoXDDIM", "CogVideoXDPMScheduler", "SASolverScheduler"),
    *("UniPCMultistepScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler", "LCMScheduler"),
)
_PRECISIONS = ("fp16", "fp32", "bf16")
_TORCHAO = ("torchao_fp8dq", "torchao_fp8dqrow", "torchao_int8dq", "torchao_fp6")
_LOADED = (
    WrapperInput("block_edit", "TRANSFORMERBLOCKS"),
    WrapperInput("lora", "COGLORA"),
    WrapperInput("compile_args", "COMPILEARGS"),
    WrapperInput("attention_mode", "COMBO", "sdpa"),
)
_DEVICE = WrapperInput("load_device", "COMBO", "main_device")
_OFFLOAD = WrapperInput("enable_sequential_cpu_offload", "BOOLEAN", False)
_VAE = WrapperInput("vae", "VAE", REQUIRED)
_LORA = (
    WrapperInput("lora", "COMBO", REQUIRED),
    WrapperInput("strength", "FLOAT", REQUIRED),
    WrapperInput("prev_lora", "COGLORA"),
    WrapperInput("fuse_lora", "BOOLEAN", False),
)
_ENCODED = (
    WrapperInput("end_image", "IMAGE"),
    WrapperInput("enable_tiling", "BOOLEAN", False),
    WrapperInput("noise_aug_strength", "FLOAT", 0.0),
)

# The nodes that the rewriting reads. An input that is followed by control_after_generate is called seed.
WRAPPER: Mapping[str, tuple[WrapperInput, ...]] = {
    "DownloadAndLoadCogVideoModel": (
        WrapperInput("model", "COMBO", REQUIRED),
        WrapperInput("precision", "COMBO", "bf16", _PRECISIONS),
        WrapperInput("quantization", "COMBO", "disabled", ("disabled", "fp8_e4m3fn", "fp8_e4m3fn_fastmode", *_TORCHAO)),
        _OFFLOAD,
        *_LOADED,
        _DEVICE,
    ),
    "DownloadAndLoadCogVideoGGUFModel": (
        WrapperInput("model", "COMBO", REQUIRED),
        WrapperInput("vae_precision", "COMBO", "bf16", _PRECISIONS),
        WrapperInput("fp8_fastmode", "BOOLEAN", False),
        _DEVICE,
        _OFFLOAD,
        WrapperInput("block_edit", "TRANSFORMERBLOCKS"),
        WrapperInput("attention_mode", "COMBO", "sdpa"),
    ),
    "CogVideoXModelLoader": (
        WrapperInput("model", "COMBO", REQUIRED),
        WrapperInput("base_precision", "COMBO", "bf16", _PRECISIONS),
        WrapperInput("quantization", "COMBO", "disabled", ("disabled", "fp8_e4m3fn", "fp8_e4m3fn_fast", *_TORCHAO)),
        _DEVICE,
        _OFFLOAD,
        *_LOADED,
    ),
    "CogVideoXVAELoader": (
        WrapperInput("model_name", "COMBO", REQUIRED),
        WrapperInput("precision", "COMBO", "bf16", _PRECISIONS),
        WrapperInput("compile_args", "COMPILEARGS"),
    ),
    "CogVideoLoraSelect": _LORA,
    "CogVideoLoraSelectComfy": _LORA,
    "CogVideoXTorchCompileSettings": (
        WrapperInput("backend", "COMBO", REQUIRED, ("inductor", "cudagraphs")),
        WrapperInput("fullgraph", "BOOLEAN", False),
        WrapperInput("mode", "COMBO", "default"),
        WrapperInput("dynamic", "BOOLEAN", False),
        WrapperInput("dynamo_cache_size_limit", "INT", 64),
    ),
    "CogVideoTransformerEdit": (WrapperInput("remove_blocks", "STRING", REQUIRED),),
    "CogVideoTextEncode": (
        WrapperInput("clip", "CLIP", REQUIRED),
        WrapperInput("prompt", "STRING", REQUIRED),
        WrapperInput("strength", "FLOAT", 1.0),
        WrapperInput("force_offload", "BOOLEAN", True),
    ),
    "CogVideoTextEncodeCombine": (
        WrapperInput("conditioning_1", "CONDITIONING", REQUIRED),
        WrapperInput("conditioning_2", "CONDITIONING", REQUIRED),
        WrapperInput("combination_mode", "COMBO", REQUIRED, ("average", "weighted_average", "concatenate")),
        WrapperInput("weighted_average_ratio", "FLOAT", REQUIRED),
    ),
    "CogVideoImageEncode": (
        _VAE,
        WrapperInput("start_image", "IMAGE", REQUIRED),
        *_ENCODED,
        WrapperInput("strength", "FLOAT", 1.0),
        WrapperInput("start_percent", "FLOAT", 0.0),
        WrapperInput("end_percent", "FLOAT", 1.0),
    ),
    "CogVideoImageEncodeFunInP": (
        _VAE,
        WrapperInput("start_image", "IMAGE", REQUIRED),
        WrapperInput("num_frames", "INT", REQUIRED),
        *_ENCODED,
    ),
    "CogVideoContextOptions": (
        WrapperInput("context_schedule", "COMBO", REQUIRED, ("uniform_standard", "uniform_looped", "static_standard")),
        WrapperInput("context_frames", "INT", REQUIRED),
        WrapperInput("context_stride", "INT", REQUIRED),
        WrapperInput("context_overlap", "INT", REQUIRED),
        WrapperInput("freenoise", "BOOLEAN", REQUIRED),
    ),
    "DownloadAndLoadCogVideoControlNet": (WrapperInput("model", "COMBO", REQUIRED),),
    "CogVideoControlNet": (
        WrapperInput("controlnet", "COGVIDECONTROLNETMODEL", REQUIRED),
        WrapperInput("images", "IMAGE", REQUIRED),
        WrapperInput("control_strength", "FLOAT", REQUIRED),
        WrapperInput("control_start_percent", "FLOAT", REQUIRED),
        WrapperInput("control_end_percent", "FLOAT", REQUIRED),
    ),
    "CogVideoSampler": (
        WrapperInput("model", "COGVIDEOMODEL", REQUIRED),
        WrapperInput("positive", "CONDITIONING", REQUIRED),
        WrapperInput("negative", "CONDITIONING", REQUIRED),
        WrapperInput("num_frames", "INT", REQUIRED),
        WrapperInput("steps", "INT", REQUIRED),
        WrapperInput("cfg", "FLOAT", REQUIRED),
        WrapperInput("seed", "INT", REQUIRED),
        WrapperInput("scheduler", "COMBO", REQUIRED, SCHEDULERS),
        WrapperInput("samples", "LATENT"),
        WrapperInput("image_cond_latents", "LATENT"),
        WrapperInput("denoise_strength", "FLOAT", 1.0),
        WrapperInput("context_options", "COGCONTEXT"),
        WrapperInput("controlnet", "COGVIDECONTROLNET"),
        WrapperInput("tora_trajectory", "TORAFEATURES"),
        WrapperInput("fastercache", "FASTERCACHEARGS"),
        WrapperInput("feta_args", "FETAARGS"),
        WrapperInput("teacache_args", "TEACACHEARGS"),
    ),
    # Only what this pack's decoder takes as well is read: what it says of tiles has no effect on the result here.
    "CogVideoDecode": (_VAE, WrapperInput("samples", "LATENT", REQUIRED)),
}
# What has no counterpart at all -> why, and what to do.
UNSUPPORTED: Mapping[str, str] = {
    "ToraEncodeTrajectory": "Tora's trajectories are not supported by this pack.",
    "ToraEncodeOpticalFlow": "Tora's trajectories are not supported by this pack.",
    "DownloadAndLoadToraModel": "Tora's trajectories are not supported by this pack.",
    "CogVideoXFunResizeToClosestBucket": "this pack has no node that resizes to the nearest bucket. Put Upscale Image "
    "with the bucket's width and height in its place and migrate again.",
    "CogVideoLatentPreview": "this pack shows previews by itself. Delete the node and migrate again.",
}
# What only changes how fast or how a video looks -> what to use in its place.
EXTRAS: Mapping[str, str] = {
    "fastercache": "FasterCache has no counterpart; ComfyUI's EasyCache, between the model and the sampler, also saves "
    "steps, by another method.",
    "teacache_args": "TeaCache has no counterpart; ComfyUI's EasyCache, between the model and the sampler, also saves "
    "steps, and its reuse_threshold is on another scale.",
    "feta_args": "Enhance-A-Video has no counterpart: the video will have less of its detail and contrast.",
}
_EXTRA_NODES = ("CogVideoXFasterCache", "CogVideoXTeaCache", "CogVideoEnhanceAVideo")
NAMES = frozenset({*WRAPPER, *UNSUPPORTED, *_EXTRA_NODES})


@dataclass(frozen=True)
class Checkpoint:
    """What a name in the wrapper's list of models stands for.

    official: the folder that CogVideoX Download makes, "" where it has none. folder: of the transformer below the
    wrapper's own models/CogVideo; vae: of the VAE, "" for the same. family: what the loader has to be told.
    """

    official: str
    folder: str
    vae: str = ""
    family: str = "detect"


def _same(name: str, official: bool = True) -> Checkpoint:
    return Checkpoint(name if official else "", name)


CHECKPOINTS: Mapping[str, Checkpoint] = {
    "THUDM/CogVideoX-2b": Checkpoint("CogVideoX-2b", "CogVideo2B"),
    "THUDM/CogVideoX-5b": _same("CogVideoX-5b"),
    "THUDM/CogVideoX-5b-I2V": _same("CogVideoX-5b-I2V"),
    "kijai/CogVideoX-5b-1.5-T2V": Checkpoint("CogVideoX1.5-5B", "CogVideoX-5b-1.5/transformer_T2V", "CogVideoX-5b-1.5"),
    "kijai/CogVideoX-5b-1.5-I2V": Checkpoint(
        "CogVideoX1.5-5B-I2V", "CogVideoX-5b-1.5/transformer_I2V", "CogVideoX-5b-1.5"
    ),
    "bertjiazheng/KoolCogVideoX-5b": _same("KoolCogVideoX-5b", official=False),
    "kijai/CogVideoX-Fun-2b": _same("CogVideoX-Fun-2b-InP"),
    "kijai/CogVideoX-Fun-5b": _same("CogVideoX-Fun-5b-InP"),
    "alibaba-pai/CogVideoX-Fun-V1.1-2b-InP": _same("CogVideoX-Fun-V1.1-2b-InP"),
    "alibaba-pai/CogVideoX-Fun-V1.1-5b-InP": _same("CogVideoX-Fun-V1.1-5b-InP"),
    "alibaba-pai/CogVideoX-Fun-V1.1-2b-Pose": _same("CogVideoX-Fun-V1.1-2b-Pose"),
    "alibaba-pai/CogVideoX-Fun-V1.1-5b-Pose": _same("CogVideoX-Fun-V1.1-5b-Pose"),
    "alibaba-pai/CogVideoX-Fun-V1.1-5b-Control": _same("CogVideoX-Fun-V1.1-5b-Control"),
    "alibaba-pai/CogVideoX-Fun-V1.5-5b-InP": _same("CogVideoX-Fun-V1.5-5b-InP"),
    "feizhengcong/CogvideoX-Interpolation": _same("CogvideoX-Interpolation", official=False),
    "NimVideo/cogvideox-2b-img2vid": Checkpoint("", "cogvideox-2b-img2vid", family="CogVideoX-2b-img2vid"),
}
TORA_CHECKPOINT = "kijai/CogVideoX-5b-Tora"
GGUF_VAE = "cogvideox_vae.safetensors"  # what the wrapper's GGUF loader takes, below models/CogVideo/VAE

# Its schedulers -> ComfyUI's samplers, with the scheduler "simple". CogVideoX's own two are this pack's, and DDIM is
# treated apart; PNDM has no counterpart.
STOCK_SAMPLERS: Mapping[str, str] = {
    "DPM++": "dpmpp_2m",
    "Euler": "euler",
    "Euler A": "euler_ancestral",
    "SASolverScheduler": "sa_solver",
    "UniPCMultistepScheduler": "uni_pc",
    "HeunDiscreteScheduler": "heun",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
}
QUANTIZATION: Mapping[str, str] = {
    "fp8_e4m3fn": "fp8_e4m3fn",
    "fp8_e4m3fn_fastmode": "fp8_e4m3fn_fast",
    "fp8_e4m3fn_fast": "fp8_e4m3fn_fast",
    "torchao_int8dq": "int8_fast",
    "torchao_fp8dq": "fp8_e4m3fn_fast",
    "torchao_fp8dqrow": "fp8_e4m3fn_fast",
}
SCHEDULES: Mapping[str, str] = {
    "uniform_standard": "standard_uniform",
    "uniform_looped": "looped_uniform",
    "static_standard": "standard_static",
}


@dataclass(frozen=True)
class Traits:
    """What the wrapper takes a model for. It goes by the name, and so does a rewriting without the weights."""

    takes_image: bool
    is_inpaint: bool
    is_control: bool
    unscaled_image: bool
    is_2b: bool


def traits_of(name: str) -> Traits:
    """The traits of a model that the wrapper calls `name`. Source: CogVideoSampler.process in its nodes.py."""
    lower = name.lower()
    is_fun = "fun" in lower
    is_control = is_fun and ("pose" in lower or "control" in lower)
    takes_image = "I2V" in name or is_fun or "interpolation" in lower or "img2vid" in lower
    unscaled = ("1.5" in name or "1_5" in name) and not is_fun
    return Traits(takes_image, is_fun and not is_control, is_control, unscaled, "2b" in lower)
