"""Workflows in API format for what begins with pictures: image to video, video to video and the Fun models; from the
published contract alone, with stock nodes around it. They save the latent and decode nothing."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image

from cogvideox.tests.graphs import (
    HEIGHT,
    LATENT,
    LATENTS,
    NEGATIVE,
    PIPELINE,
    PROMPT,
    SAMPLE,
    WIDTH,
    node,
    replaced,
    text_to_video,
    with_inputs,
)
from cogvideox.tests.tasks import pictures

PICTURE, FILE, CLIP, MASK, VAE = "picture", "file", "clip", "mask", [PIPELINE, 2]
THE_PICTURE, THE_CLIP, THE_MASK = "start.png", "clip.mov", "right-half.png"
DPM, DPM_LATENTS = "dpm", "dpm latents"
SIZE = {"width": WIDTH, "height": HEIGHT, "frames": 9}


def saved_latent_only(folder: str, **sample: Any) -> dict:
    """Text to video in fp32 that saves its latent and does not decode it. sample: inputs of CogVideoXSample."""
    graph = text_to_video(folder, weight_dtype="fp32", **sample)
    return {name: graph[name] for name in (PIPELINE, PROMPT, NEGATIVE, LATENT, SAMPLE, LATENTS)}


def conditioned(graph: dict, class_type: str, **inputs: object) -> dict:
    """`graph` with a conditioning node, which makes the latent too, between the prompts and the sampler."""
    links = {"positive": [PROMPT, 0], "negative": [NEGATIVE, 0], "vae": VAE}
    graph = replaced(graph, LATENT, class_type, **links | SIZE | {"batch_size": 1} | inputs)
    return with_inputs(graph, SAMPLE, positive=[LATENT, 0], negative=[LATENT, 1], latent_image=[LATENT, 2])


def image_to_video(folder: str, picture: str = THE_PICTURE, size: dict = SIZE, **sample: object) -> dict:
    """A video of `size` that begins with a picture of the server's input folder."""
    graph = conditioned(saved_latent_only(folder, **sample), "CogVideoXImageToVideo", start_image=[PICTURE, 0], **size)
    return graph | {PICTURE: node("LoadImage", image=picture)}


def video_to_video(folder: str, video: str = THE_CLIP, **sample: object) -> dict:
    """A video of the server's input folder, changed."""
    graph = saved_latent_only(folder, **{"denoise": 0.6} | sample)
    return replaced(graph, LATENT, "CogVideoXEncodeVideo", vae=VAE, images=[CLIP, 0]) | clip(video)


def fun_inpaint(folder: str, video: str = THE_CLIP, mask: str = THE_MASK, size: dict = SIZE, **sample: object) -> dict:
    """A video of the server's input folder, regenerated where the mask is white."""
    links = {"video": [CLIP, 0], "mask": [MASK, 0]}
    graph = conditioned(saved_latent_only(folder, **sample), "CogVideoXFunInpaint", **links, **size)
    return graph | clip(video) | {MASK: node("LoadImageMask", image=mask, channel="red")}


def fun_control(folder: str, video: str = THE_CLIP, size: dict = SIZE, **sample: object) -> dict:
    """A video led by one of the server's input folder."""
    inputs = {"control_video": [CLIP, 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    graph = conditioned(saved_latent_only(folder, **sample), "CogVideoXFunControl", **inputs, **size)
    return graph | clip(video)


def clip(video: str) -> dict:
    """The stock nodes that read a video: its frames are at [CLIP, 0]."""
    return {FILE: node("LoadVideo", file=video), CLIP: node("GetVideoComponents", video=[FILE, 0])}


def with_dpm_too(graph: dict) -> dict:
    """`graph`, which samples with ddim, and, as well, the same with dpm, saved by DPM_LATENTS."""
    return graph | {
        DPM: with_inputs(graph, SAMPLE, sampler="dpm")[SAMPLE],
        DPM_LATENTS: node("SaveLatent", samples=[DPM, 0], filename_prefix="latent"),
    }


def masked(graph: dict, mask: str = THE_MASK) -> dict:
    """`graph` with a mask of the server's input folder on its latent."""
    latent = graph[SAMPLE]["inputs"]["latent_image"]
    return with_inputs(graph, SAMPLE, latent_image=["masked", 0]) | {
        MASK: node("LoadImageMask", image=mask, channel="red"),
        "masked": node("SetLatentNoiseMask", samples=latent, mask=[MASK, 0]),
    }


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    """0 .. 1, rounded to what a PNG holds, as the floats that ComfyUI reads from it."""
    return (images * 255).round().to(torch.uint8).float() / 255


def write_media(folder: Path) -> None:
    """Write what the tests begin with: THE_PICTURE, THE_CLIP of 13 frames, and THE_MASK, white on its right half."""
    write_picture(folder / THE_PICTURE, pictures(1))
    write_lossless(folder / THE_CLIP, pictures(13, seed=4))
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[:, WIDTH // 2 :] = 1.0
    write_picture(folder / THE_MASK, mask)


def write_picture(path: Path, image: torch.Tensor) -> str:
    """Write [1, H, W, 3] or [H, W] in 0 .. 1 as a PNG; returns its name."""
    Image.fromarray((image.squeeze(0) * 255).round().to(torch.uint8).numpy()).save(path)
    return path.name


def write_lossless(path: Path, images: torch.Tensor) -> str:
    """Write [F, H, W, 3] in 0 .. 1 as a video (.mov) of PNGs, 8 frames a second; returns its name."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=8)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "rgb24"
        for i, image in enumerate((images * 255).round().to(torch.uint8).numpy()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.name
