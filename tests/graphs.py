"""Workflows in API format, written from the nodes' published contract alone, and what they leave behind."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import load_file

from cogvideox.devtools.client import RunResult

PIPELINE, PROMPT, NEGATIVE, LATENT, SAMPLE, DECODE = "pipeline", "prompt", "negative", "latent", "sample", "decode"
IMAGES, LATENTS, VIDEO = "images", "latents", "video"
WIDTH, HEIGHT, FPS = 96, 64, 8


def node(class_type: str, **inputs: object) -> dict:
    """One node. An input that is a list [node id, output slot] is a link."""
    return {"class_type": class_type, "inputs": inputs}


def text_to_video(
    folder: str = "CogVideoX-tiny-5b",
    frames: int = 9,
    batch_size: int = 1,
    weight_dtype: str = "default",
    **sample: Any,
) -> dict:
    """The text to video graph; it saves the frames (PNG), the latent and an mp4. sample: inputs of CogVideoXSample."""
    inputs = {"seed": 1, "steps": 3, "cfg": 6.0, "sampler": "ddim", "dynamic_cfg": False, "denoise": 1.0} | sample
    return {
        PIPELINE: node("CogVideoXLoadPipeline", folder=folder, weight_dtype=weight_dtype),
        PROMPT: node("CogVideoXEncodeText", clip=[PIPELINE, 1], text="A panda (red:1.2) walks"),
        NEGATIVE: node("CogVideoXEncodeText", clip=[PIPELINE, 1], text=""),
        LATENT: node("CogVideoXEmptyLatent", width=WIDTH, height=HEIGHT, frames=frames, batch_size=batch_size),
        SAMPLE: node(
            "CogVideoXSample",
            model=[PIPELINE, 0],
            positive=[PROMPT, 0],
            negative=[NEGATIVE, 0],
            latent_image=[LATENT, 0],
            **inputs,
        ),
        DECODE: node("CogVideoXDecode", vae=[PIPELINE, 2], samples=[SAMPLE, 0], memory="auto"),
        IMAGES: node("SaveImage", images=[DECODE, 0], filename_prefix="frame"),
        LATENTS: node("SaveLatent", samples=[SAMPLE, 0], filename_prefix="latent"),
        "create": node("CreateVideo", images=[DECODE, 0], fps=float(FPS)),
        VIDEO: node("SaveVideo", video=["create", 0], filename_prefix="video", format="auto", codec="auto"),
    }


def replaced(graph: dict, node_id: str, class_type: str, **inputs: object) -> dict:
    """`graph` with another node in the place of one."""
    return graph | {node_id: node(class_type, **inputs)}


def with_inputs(graph: dict, node_id: str, **inputs: object) -> dict:
    """`graph` with some inputs of one node changed."""
    return graph | {node_id: {**graph[node_id], "inputs": graph[node_id]["inputs"] | inputs}}


def without(graph: dict, node_id: str) -> dict:
    """`graph` less one node that nothing is linked to. (ComfyUI runs what it can: an output that does not need a
    refused node is made.)"""
    return {name: value for name, value in graph.items() if name != node_id}


def patched(graph: dict, class_type: str, **inputs: object) -> dict:
    """`graph` with a model patch between the loader and the sampler."""
    patch = node(class_type, model=[PIPELINE, 0], **inputs)
    return with_inputs(graph, SAMPLE, model=["patch", 0]) | {"patch": patch}


def with_ksampler(graph: dict, sampler_name: str = "euler", scheduler: str = "simple") -> dict:
    """`graph` sampled by the stock KSampler."""
    inputs = graph[SAMPLE]["inputs"]
    kept = {k: inputs[k] for k in ("model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "denoise")}
    return replaced(graph, SAMPLE, "KSampler", **kept, sampler_name=sampler_name, scheduler=scheduler)


def custom_sampling(graph: dict) -> dict:
    """`graph` sampled by SamplerCustomAdvanced with the pack's noise, sampler and schedule."""
    i = graph[SAMPLE]["inputs"]
    return graph | {
        "noise": node("CogVideoXNoise", seed=i["seed"]),
        "guider": node("CFGGuider", model=i["model"], positive=i["positive"], negative=i["negative"], cfg=i["cfg"]),
        "sampler": node("CogVideoXSampler", sampler=i["sampler"]),
        "sigmas": node("CogVideoXScheduler", model=i["model"], steps=i["steps"], denoise=i["denoise"]),
        SAMPLE: node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=i["latent_image"],
        ),
    }


@dataclass(frozen=True)
class Made:
    """What a run saved. frames: uint8 [frames, H, W, 3]; latent: [B, 16, T, H/8, W/8] or None; video: the mp4."""

    frames: np.ndarray
    latent: torch.Tensor | None
    video: Path | None


def collect(result: RunResult, output: Path) -> Made:
    """Read back what a run saved; fails with the run's own message where it did not succeed."""
    assert result.error is None, str(result.error)
    images, videos = (list(_saved(result, node_id, output)) for node_id in (IMAGES, VIDEO))
    frames = np.stack([read_png(path) for path in images])
    return Made(frames, saved_latent(result, output), videos[0] if videos else None)


def saved_latent(result: RunResult, output: Path, node_id: str = LATENTS) -> torch.Tensor | None:
    """What a SaveLatent node of the run saved: [B, 16, T, H/8, W/8], or None."""
    latents = list(_saved(result, node_id, output))
    return load_file(latents[0])["latent_tensor"] if latents else None


def read_png(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def _saved(result: RunResult, node_id: str, output: Path) -> Iterable[Path]:
    for items in result.outputs.get(node_id, {}).values():
        for item in items:
            if isinstance(item, dict):
                yield output / item["subfolder"] / item["filename"]
