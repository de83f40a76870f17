"""Pictures and videos as they lie on users' disks, through the stock loaders and the nodes that take them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.devtools.run_workflow import Video, inspect_video
from cogvideox.tests.graphs import (
    DECODE,
    FPS,
    HEIGHT,
    IMAGES,
    LATENT,
    PIPELINE,
    SAMPLE,
    VIDEO,
    WIDTH,
    node,
    read_png,
    text_to_video,
    with_inputs,
    without,
)
from cogvideox.tests.real_files import LEVEL_STEP, write_broken, write_pictures, write_videos
from cogvideox.tests.support import relative_error

VAE = [PIPELINE, 2]


@pytest.fixture(scope="module")
def files(comfyui) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, str]]:
    """Pictures, videos and broken files in the server's input folder."""
    folder = comfyui.base / "input"
    return write_pictures(folder), write_videos(folder), write_broken(folder)


def loader(variant: str = "5b") -> dict:
    return {PIPELINE: node("CogVideoXLoadPipeline", folder=folder_name(variant), weight_dtype="fp32")}


def loaded(name: str) -> tuple[dict, list]:
    """The stock nodes that read a file, and the link to its frames."""
    if Path(name).suffix in (".mp4", ".webm"):
        nodes = {
            f"file {name}": node("LoadVideo", file=name),
            f"frames {name}": node("GetVideoComponents", video=[f"file {name}", 0]),
        }
        return nodes, [f"frames {name}", 0]
    return {f"file {name}": node("LoadImage", image=name)}, [f"file {name}", 0]


def continued(name: str, frames: int, overlap: int, **more: object) -> dict:
    """Nodes that read a file, begin a clip with its last frames, and save those frames."""
    nodes, frames_of_file = loaded(name)
    inputs = {"vae": VAE, "images": frames_of_file, "frames": frames, "overlap": overlap, **more}
    return nodes | {
        f"continue {name}": node("CogVideoXContinueVideo", **inputs),
        f"save {name}": node("SaveImage", images=[f"continue {name}", 1], filename_prefix="last"),
    }


def saved_images(comfyui, result, node_id: str) -> np.ndarray:
    """uint8 [F, H, W, 3]."""
    items = result.outputs[node_id]["images"]
    return np.stack([read_png(comfyui.server.output / item["subfolder"] / item["filename"]) for item in items])


def saved_latent(comfyui, result, node_id: str) -> torch.Tensor:
    (item,) = result.outputs[node_id]["latents"]
    return load_file(comfyui.server.output / item["subfolder"] / item["filename"])["latent_tensor"]


def centre_crop(picture: np.ndarray) -> np.ndarray:
    """The picture as it should reach the VAE, by Pillow: the middle of it at WIDTH x HEIGHT."""
    rows, columns, _ = picture.shape
    width = min(columns, max(1, round(rows * WIDTH / HEIGHT)))
    height = min(rows, max(1, round(columns * HEIGHT / WIDTH)))
    left, top = (columns - width) // 2, (rows - height) // 2
    box = (left, top, left + width, top + height)
    return np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box))


def test_pictures_of_every_kind(comfyui, files) -> None:
    """Grey, transparent, turned, tiny and huge: each must arrive upright, in its colours, cut around its middle."""
    pictures, _, _ = files
    graph = loader()
    for name in pictures:
        graph |= continued(name, 5, 1, width=WIDTH, height=HEIGHT, fit="crop")
    result = comfyui.run(graph)
    assert result.error is None, str(result.error)
    for name, picture in pictures.items():
        (got,) = saved_images(comfyui, result, f"save {name}").astype(int)
        if name == "grey16.png" and got.min() > 250:
            continue  # hosts that read with Pillow alone show 16 bits as white
        difference = np.abs(got - centre_crop(picture))
        # colours bleed where quarters meet; a picture turned or stretched is wrong all over
        assert np.median(difference) <= 3, f"{name}: {np.median(difference)}"
        assert difference.mean() < 6, f"{name}: {difference.mean()}"


def test_videos_of_every_kind(comfyui, files) -> None:
    """Odd counts and variable rates: every frame counts once, what fills no latent is left out and told."""
    _, videos, _ = files
    graph = loader()
    for name in videos:
        graph |= continued(name, 9, 5)
        graph |= {
            f"encode {name}": node("CogVideoXEncodeVideo", vae=VAE, images=loaded(name)[1]),
            f"latent {name}": node("SaveLatent", samples=[f"encode {name}", 0], filename_prefix="video"),
        }
    result = comfyui.run(graph)
    assert result.error is None, str(result.error)
    told = {node_id for node_id, _ in result.texts}
    for name, frames in videos.items():
        latent = saved_latent(comfyui, result, f"latent {name}")
        assert latent.shape == (1, 16, (frames - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8), name
        assert torch.isfinite(latent).all()
        assert (f"encode {name}" in told) == (frames % 4 != 1), name
        last = saved_images(comfyui, result, f"save {name}")
        assert last.shape == (5, HEIGHT, WIDTH, 3), name
        levels = LEVEL_STEP * (np.arange(frames - 5, frames) + 1)
        assert np.abs(last.mean(axis=(1, 2, 3)) - levels).max() < LEVEL_STEP / 3, name


def image_to_video(name: str) -> dict:
    """Nodes that make a video of 9 frames from a picture, in one step, and save its latent."""
    nodes, picture = loaded(name)
    text = {"positive": ["prompt", 0], "negative": ["negative", 0]}
    size = {"width": WIDTH, "height": HEIGHT, "frames": 9, "batch_size": 1}
    sampling = {"seed": 1, "steps": 1, "cfg": 6.0, "sampler": "ddim", "dynamic_cfg": False, "denoise": 1.0}
    start, sample = f"start {name}", f"sample {name}"
    links = {"positive": [start, 0], "negative": [start, 1], "latent_image": [start, 2]}
    return nodes | {
        start: node("CogVideoXImageToVideo", **text, vae=VAE, **size, start_image=picture),
        sample: node("CogVideoXSample", model=[PIPELINE, 0], **links, **sampling),
        f"latent {name}": node("SaveLatent", samples=[sample, 0], filename_prefix="i2v"),
    }


def test_image_to_video_from_every_kind(comfyui, files) -> None:
    """A start image straight from disk: none may end in an error of the VAE, and each must count."""
    pictures, _, _ = files
    graph = loader("5b-I2V")
    for id_, text in (("prompt", "A panda"), ("negative", "")):
        graph[id_] = node("CogVideoXEncodeText", clip=[PIPELINE, 1], text=text)
    for name in pictures:
        graph |= image_to_video(name)
    result = comfyui.run(graph)
    assert result.error is None, str(result.error)
    latents = {name: saved_latent(comfyui, result, f"latent {name}") for name in pictures}
    for name, latent in latents.items():
        assert latent.shape == (1, 16, 3, HEIGHT // 8, WIDTH // 8) and torch.isfinite(latent).all(), name
    assert relative_error(latents["alpha.png"], latents["rgb.png"]) < 1e-3
    assert relative_error(latents["turned6.jpg"], latents["turned3.jpg"]) < 0.05
    assert relative_error(latents["grey.png"], latents["rgb.png"]) > 1e-3


def test_broken_files_leave_the_server_working(comfyui, files, untouched) -> None:
    """Downloads stop halfway: the run ends with a message, not with the server, and the next prompt is answered."""
    _, _, broken = files
    for name, wrong in broken.items():
        result = comfyui.run(loader() | continued(name, 5, 1, width=WIDTH, height=HEIGHT))
        if name == "cut.jpg" and result.error is None:
            continue  # some hosts show the part that is there
        assert result.error is not None, f"{name} ({wrong}): the run succeeded"
        assert result.error.message, f"{name} ({wrong}): no message"
    graph = without(text_to_video(), LATENT) | continued("rgb.png", 9, 1, width=WIDTH, height=HEIGHT)
    made = comfyui.make(with_inputs(graph, SAMPLE, latent_image=["continue rgb.png", 0]))
    assert made.frames.shape == (9, HEIGHT, WIDTH, 3)
    assert torch.equal(comfyui.make_again(text_to_video()).latent, untouched)


def test_video_without_a_frame(comfyui, files, refused) -> None:
    """The stock nodes make an empty IMAGE of a video whose frames are lost: ours must say so, not fail over sizes."""
    name = "no-frames.mp4"
    graph = without(text_to_video(), LATENT) | continued(name, 9, 5)
    graph = with_inputs(graph, SAMPLE, latent_image=[f"continue {name}", 0])
    refused(graph, "CogVideoXContinueVideo", "There is no picture in the images", "Check the video")
    nodes, frames = loaded(name)
    graph = text_to_video(denoise=0.5) | nodes | {LATENT: node("CogVideoXEncodeVideo", vae=VAE, images=frames)}
    refused(graph, "CogVideoXEncodeVideo", "There is no picture in the images", "Check the video")


def test_longer_video_from_a_file(comfyui, files) -> None:
    """The whole way of a user's clip: cut to size by a stock node, continued, joined and saved as one video."""
    name = "vp8.webm"
    nodes, frames = loaded(name)
    graph = without(text_to_video(), LATENT) | nodes
    graph["cut"] = node("ImageScale", image=frames, upscale_method="bicubic", width=WIDTH, height=HEIGHT, crop="center")
    graph["continue"] = node("CogVideoXContinueVideo", vae=VAE, images=["cut", 0], frames=9, overlap=5)
    graph["join"] = node(
        "CogVideoXJoinVideos",
        images_before=["cut", 0],
        images_after=[DECODE, 0],
        overlap=["continue", 2],
        blend=False,
    )
    graph = with_inputs(graph, SAMPLE, latent_image=["continue", 0])
    graph = with_inputs(graph, "create", images=["join", 0])
    made = comfyui.make(graph, (IMAGES, VIDEO))
    assert made.frames.shape[0] == 9
    assert inspect_video(made.video) == Video(7 + 9 - 5, WIDTH, HEIGHT, FPS)
