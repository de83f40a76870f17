"""A clip as a workflow in API format, from the published contract of the pack's nodes and stock ones."""

from typing import Any

from .run_clips import Clip

SAVE = "save"
_MODEL, _CLIP, _VAE = ["model", 0], ["model", 1], ["model", 2]


def build_graph(clip: Clip, uploaded: str, prefix: str) -> dict:
    """uploaded: the picture or video in the server's input folder. prefix: of the file in its output folder."""
    s = clip.settings
    graph, vae, text_encoder = _loaders(clip)
    model = _MODEL
    for number, lora in enumerate(clip.loras):
        graph[f"lora {number}"] = _node("CogVideoXApplyLora", model=model, lora_name=lora.name, strength=lora.strength)
        model = [f"lora {number}", 0]
    for name in ("prompt", "negative"):
        graph[name] = _node("CogVideoXEncodeText", clip=text_encoder, text=s[name])
    nodes, conditioned = _latent(clip, uploaded, vae)
    sample = {name: s[name] for name in ("seed", "steps", "cfg", "sampler", "dynamic_cfg", "denoise")}
    return graph | {
        **nodes,
        "sample": _node("CogVideoXSample", model=model, **conditioned, **sample),
        "decode": _node("CogVideoXDecode", vae=vae, samples=["sample", 0], memory="auto"),
        "create": _node("CreateVideo", images=["decode", 0], fps=s["fps"]),
        SAVE: _node("SaveVideo", video=["create", 0], filename_prefix=prefix, format="auto", codec="auto"),
    }


def _node(class_type: str, **inputs: Any) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def _loaders(clip: Clip) -> tuple[dict, list, list]:
    """The loaders, and where VAE and text encoder come from."""
    s = clip.settings
    family = {"family": clip.family} if clip.family else {}
    if "vae" not in s:
        loader = _node("CogVideoXLoadPipeline", folder=s["model"], weight_dtype=s["weight_dtype"], **family)
        return {"model": loader}, _VAE, _CLIP
    graph = {
        "model": _node("CogVideoXLoadModel", model_name=s["model"], weight_dtype=s["weight_dtype"], **family),
        "clip": _node("CogVideoXLoadTextEncoder", text_encoder_name=s["text_encoder"], weight_dtype="default"),
        "vae": _node("CogVideoXLoadVAE", vae_name=s["vae"], weight_dtype="default"),
    }
    return graph, ["vae", 0], ["clip", 0]


def _latent(clip: Clip, uploaded: str, vae: list) -> tuple[dict, dict]:
    """The nodes of a task, and the sampler's inputs that come from them."""
    s = clip.settings
    size = {"width": s["width"], "height": s["height"]}
    whole_size = {**size, "frames": s["frames"], "batch_size": 1}
    prompts = {"positive": ["prompt", 0], "negative": ["negative", 0]}
    picture = {"picture": _node("LoadImage", image=uploaded)} if clip.image is not None else {}
    video = {
        "file": _node("LoadVideo", file=uploaded),
        "frames": _node("GetVideoComponents", video=["file", 0]),
        "first": _node("ImageFromBatch", image=["frames", 0], batch_index=0, length=s["frames"]),
    }
    if clip.task == "text" and clip.video is None:
        return {"latent": _node("CogVideoXEmptyLatent", **whole_size)}, {**prompts, "latent_image": ["latent", 0]}
    if clip.task == "text":
        encode = _node("CogVideoXEncodeVideo", vae=vae, images=["first", 0], **size)
        return {**video, "latent": encode}, {**prompts, "latent_image": ["latent", 0]}
    inputs = {**prompts, "vae": vae, **whole_size}
    if clip.task == "control":
        nodes = {
            **video,
            "latent": _node("CogVideoXFunControl", **inputs, control_video=["first", 0], **_WHOLE_CONTROL),
        }
    else:
        kind = "CogVideoXImageToVideo" if clip.task == "image" else "CogVideoXFunInpaint"
        start = {"start_image": ["picture", 0]} if picture else {}
        nodes = {**picture, "latent": _node(kind, **inputs, **start)}
    return nodes, {"positive": ["latent", 0], "negative": ["latent", 1], "latent_image": ["latent", 2]}


_WHOLE_CONTROL = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
