"""The published contract: node ids, input names with their defaults, and output order never change."""

import asyncio

import pytest

from cogvideox.nodes import CogVideoXExtension

DTYPES = ["default", "fp32", "bf16", "fp16", "fp8_e4m3fn"]
MORE_DTYPES = [*DTYPES, "fp8_e4m3fn_fast", "int8", "int8_fast"]
DTYPE = ("weight_dtype", "COMBO", "default")
STEPS, CFG, SEED = ("steps", "INT", 50), ("cfg", "FLOAT", 6.0), ("seed", "INT", 0)
SAMPLER, DENOISE = ("sampler", "COMBO", "ddim"), ("denoise", "FLOAT", 1.0)
POSITIVE, NEGATIVE, VAE = ("positive", "CONDITIONING", None), ("negative", "CONDITIONING", None), ("vae", "VAE", None)
SIZE = [("width", "INT", 720), ("height", "INT", 480), ("frames", "INT", 49), ("batch_size", "INT", 1)]
RANGE = [("strength", "FLOAT", 1.0), ("start_percent", "FLOAT", 0.0), ("end_percent", "FLOAT", 1.0)]
CONDITIONED = ["CONDITIONING", "CONDITIONING", "LATENT"]
# id: required inputs as (name, type, default), outputs
CONTRACT = {
    "CogVideoXLoadPipeline": ([("folder", "COMBO", None), DTYPE], ["MODEL", "CLIP", "VAE"]),
    "CogVideoXLoadModel": ([("model_name", "COMBO", None), DTYPE], ["MODEL"]),
    "CogVideoXLoadTextEncoder": ([("text_encoder_name", "COMBO", None), DTYPE], ["CLIP"]),
    "CogVideoXLoadVAE": ([("vae_name", "COMBO", None), DTYPE], ["VAE"]),
    "CogVideoXLoadControlNet": ([("control_net_name", "COMBO", None), DTYPE], ["CONTROL_NET"]),
    "CogVideoXExample": ([("example", "COMBO", "picture")], ["IMAGE", "MASK", "VIDEO"]),
    "CogVideoXOwnImage": ([("otherwise", "IMAGE", None), ("image", "COMBO", None)], ["IMAGE"]),
    "CogVideoXDownload": ([("checkpoint", "COMBO", "CogVideoX-2b")], ["COMBO"]),
    "CogVideoXSaveModel": (
        [("model", "MODEL", None), ("name", "STRING", "CogVideoX/converted"), ("weight_dtype", "COMBO", "as loaded")],
        ["COMBO"],
    ),
    "CogVideoXMemoryForecast": ([("model", "MODEL", None), *SIZE], ["STRING"]),
    "CogVideoXApplyLora": ([("model", "MODEL", None), ("lora_name", "COMBO", None), RANGE[0]], ["MODEL"]),
    "CogVideoXSaveLora": ([("model", "MODEL", None), ("filename_prefix", "STRING", "loras/cogvideox")], []),
    "CogVideoXEncodeText": ([("clip", "CLIP", None), ("text", "STRING", None)], ["CONDITIONING"]),
    "CogVideoXEmptyLatent": (SIZE, ["LATENT"]),
    "CogVideoXImageToVideo": ([POSITIVE, NEGATIVE, VAE, *SIZE], CONDITIONED),
    "CogVideoXEncodeVideo": ([VAE, ("images", "IMAGE", None)], ["LATENT"]),
    "CogVideoXFunInpaint": ([POSITIVE, NEGATIVE, VAE, *SIZE], CONDITIONED),
    "CogVideoXFunControl": ([POSITIVE, NEGATIVE, VAE, ("control_video", "IMAGE", None), *SIZE, *RANGE], CONDITIONED),
    "CogVideoXApplyControlNet": (
        [POSITIVE, NEGATIVE, ("control_net", "CONTROL_NET", None), ("control_video", "IMAGE", None), *RANGE],
        ["CONDITIONING", "CONDITIONING"],
    ),
    "CogVideoXContinueVideo": (
        [VAE, ("images", "IMAGE", None), ("frames", "INT", 49), ("overlap", "INT", 1)],
        ["LATENT", "IMAGE", "INT"],
    ),
    "CogVideoXJoinVideos": (
        [
            ("images_before", "IMAGE", None),
            ("images_after", "IMAGE", None),
            ("overlap", "INT", 1),
            ("blend", "BOOLEAN", False),
        ],
        ["IMAGE"],
    ),
    "CogVideoXSample": (
        [
            ("model", "MODEL", None),
            ("positive", "CONDITIONING", None),
            ("negative", "CONDITIONING", None),
            ("latent_image", "LATENT", None),
            SEED,
            STEPS,
            CFG,
            SAMPLER,
            ("dynamic_cfg", "BOOLEAN", False),
            DENOISE,
        ],
        ["LATENT"],
    ),
    "CogVideoXSampler": ([SAMPLER], ["SAMPLER"]),
    "CogVideoXScheduler": ([("model", "MODEL", None), STEPS, DENOISE], ["SIGMAS"]),
    "CogVideoXTimesteps": (
        [("model", "MODEL", None), ("preset", "COMBO", "TDM 2b 4 steps"), ("timesteps", "STRING", "")],
        ["SIGMAS"],
    ),
    "CogVideoXNoise": ([SEED], ["NOISE"]),
    "CogVideoXDynamicCFG": ([("model", "MODEL", None), STEPS, CFG], ["MODEL"]),
    "CogVideoXStepCache": ([("model", "MODEL", None), ("deviation", "FLOAT", 0.003)], ["MODEL"]),
    "CogVideoXCompile": ([("model", "MODEL", None)], ["MODEL"]),
    "CogVideoXParallel": (
        [
            ("model", "MODEL", None),
            ("cards", "INT", 0),
            ("split", "COMBO", "auto"),
        ],
        ["MODEL", "VAE"],
    ),
    "CogVideoXContextWindows": (
        [
            ("model", "MODEL", None),
            ("context_frames", "INT", 49),
            ("overlap_frames", "INT", 16),
            ("schedule", "COMBO", "standard_static"),
            ("fuse_method", "COMBO", "pyramid"),
            ("freenoise", "BOOLEAN", True),
        ],
        ["MODEL"],
    ),
    "CogVideoXPositions": (
        [("model", "MODEL", None), ("riflex", "BOOLEAN", False), ("resample_table", "BOOLEAN", False)],
        ["MODEL"],
    ),
    "CogVideoXInvert": (
        [
            ("model", "MODEL", None),
            POSITIVE,
            NEGATIVE,
            ("latent_image", "LATENT", None),
            STEPS,
            ("cfg", "FLOAT", 1.0),
        ],
        ["LATENT"],
    ),
    "CogVideoXFollowVideo": ([("model", "MODEL", None), ("inverted", "LATENT", None), *RANGE[1:]], ["MODEL"]),
    "CogVideoXDecode": ([("vae", "VAE", None), ("samples", "LATENT", None), ("memory", "COMBO", "auto")], ["IMAGE"]),
    "CogVideoXDecodeToFile": (
        [
            VAE,
            ("samples", "LATENT", None),
            ("fps", "FLOAT", 8.0),
            ("filename_prefix", "STRING", "video/CogVideoX"),
            ("format", "COMBO", "mp4 (h264)"),
            ("crf", "INT", 18),
            ("memory", "COMBO", "auto"),
        ],
        ["VIDEO"],
    ),
    "CogVideoXDraftDecode": ([("samples", "LATENT", None), ("decoder", "COMBO", None)], ["IMAGE"]),
    "CogVideoXTrainingClips": (
        [
            VAE,
            ("clip", "CLIP", None),
            ("folder", "STRING", ""),
            ("frames", "INT", 49),
            ("width", "INT", 720),
            ("height", "INT", 480),
            ("fps", "FLOAT", 8.0),
            ("buckets", "COMBO", "fixed"),
            ("shorter", "COMBO", "skip"),
            ("image_to_video", "BOOLEAN", False),
            ("image_variants", "INT", 4),
        ],
        ["LATENT", "CONDITIONING", "STRING"],
    ),
    "CogVideoXTrainLora": (
        [
            ("model", "MODEL", None),
            ("latents", "LATENT", None),
            POSITIVE,
            ("steps", "INT", 500),
            ("batch_size", "INT", 1),
            ("learning_rate", "FLOAT", 1e-4),
            ("rank", "INT", 64),
            ("alpha", "FLOAT", 64.0),
            SEED,
        ],
        ["LORA_MODEL", "LOSS_MAP", "INT"],
    ),
    "CogVideoXSaveTrainedLora": (
        [("lora", "LORA_MODEL", None), ("name", "STRING", "CogVideoX/trained")],
        ["COMBO"],
    ),
}
# inputs that need no link, in order: widget values are saved by order, required ones first
OPTIONAL = {
    "CogVideoXLoadPipeline": ["family"],
    "CogVideoXLoadModel": ["family"],
    "CogVideoXDownload": ["source"],
    "CogVideoXSample": ["guidance_rescale"],
    "CogVideoXDynamicCFG": ["guidance_rescale"],
    "CogVideoXEncodeText": ["prompt_weights"],
    "CogVideoXImageToVideo": [
        "start_image",
        "end_image",
        "noise_augmentation",
        "training_noise",
        "fit",
        "image_scale",
        "sample_posterior",
        "seed",
    ],
    "CogVideoXEncodeVideo": ["width", "height", "fit", "mask", "sample_posterior", "seed", "batch_size"],
    "CogVideoXFunInpaint": [
        "video",
        "mask",
        "start_image",
        "end_image",
        "noise_augmentation",
        "seed",
        "fit",
        "hold_last_frame",
    ],
    "CogVideoXFunControl": ["fit", "hold_last_frame"],
    "CogVideoXApplyControlNet": ["hold_last_frame"],
    "CogVideoXContinueVideo": ["width", "height", "fit"],
    "CogVideoXApplyLora": ["scale"],
    "CogVideoXSaveLora": ["rank", "dtype"],
    "CogVideoXContextWindows": ["retain_start_image", "split_prompts"],
    "CogVideoXMemoryForecast": ["vae", "clip", "control_net", "card_gb"],
    "CogVideoXParallel": ["address", "on_failure", "vae"],
    "CogVideoXDecode": ["compile"],
    "CogVideoXDecodeToFile": ["audio"],
    "CogVideoXTrainLora": [
        "targets",
        "timesteps",
        "caption_dropout",
        "image_dropout",
        "warmup_steps",
        "gradient_checkpointing",
        "save_every",
        "checkpoint_name",
        "accumulate",
        "precision",
    ],
}
COMBOS = {
    ("CogVideoXSample", "sampler"): ["ddim", "dpm"],
    ("CogVideoXSampler", "sampler"): ["ddim", "dpm"],
    ("CogVideoXTimesteps", "preset"): ["TDM 2b 4 steps", "BLADE 5b 8 steps", "PSA 5b 4 steps", "custom"],
    ("CogVideoXParallel", "split"): ["auto", "cfg", "sequence", "both"],
    ("CogVideoXDecode", "memory"): ["auto", "fast", "low"],
    ("CogVideoXDecodeToFile", "memory"): ["auto", "fast", "low"],
    ("CogVideoXDecodeToFile", "format"): ["mp4 (h264)", "webm (vp9)", "webm (av1)"],
    ("CogVideoXLoadPipeline", "weight_dtype"): MORE_DTYPES,
    ("CogVideoXLoadModel", "weight_dtype"): MORE_DTYPES,
    ("CogVideoXLoadTextEncoder", "weight_dtype"): [*DTYPES, "int8"],
    ("CogVideoXSaveModel", "weight_dtype"): ["as loaded", *DTYPES[1:], "int8"],
    ("CogVideoXLoadVAE", "weight_dtype"): DTYPES,
}


@pytest.fixture(scope="module")
def nodes() -> dict:
    extension = asyncio.run(CogVideoXExtension().get_node_list())
    return {node.GET_SCHEMA().node_id: node for node in extension}


def test_node_ids(nodes: dict) -> None:
    """A renamed or lost node breaks every saved workflow that has it."""
    assert not nodes.keys() - CONTRACT, "add what is new to CONTRACT"
    assert list(nodes) == list(CONTRACT)
    assert all(name == node.__name__ for name, node in nodes.items())  # wrap_validation goes by it


@pytest.mark.parametrize("node_id", CONTRACT)
def test_inputs_and_outputs(nodes: dict, node_id: str) -> None:
    """Saved workflows hold widget values by order and links by slot: neither may move."""
    info = nodes[node_id].GET_NODE_INFO_V1()
    inputs, outputs = CONTRACT[node_id]
    assert info["input_order"]["required"] == [name for name, _, _ in inputs]
    for name, kind, default in inputs:
        spec = info["input"]["required"][name]
        assert spec[0] == kind
        assert default is None or spec[1]["default"] == default
    assert info["output"] == outputs
    assert info["input_order"].get("optional", []) == OPTIONAL.get(node_id, [])


@pytest.mark.parametrize("node_id, name", COMBOS)
def test_choices(nodes: dict, node_id: str, name: str) -> None:
    """A value that a workflow has chosen must stay a choice."""
    assert nodes[node_id].GET_NODE_INFO_V1()["input"]["required"][name][1]["options"] == COMBOS[(node_id, name)]


def test_categories(nodes: dict) -> None:
    """Users find the nodes under one heading."""
    assert all(node.GET_SCHEMA().category.startswith("CogVideoX/") for node in nodes.values())
