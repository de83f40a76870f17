"""What CogVideoX-nano is scored for beside text to video: what a task's nodes are given for a request, and how what
they make is judged.

Call host.standalone.use_comfyui first: the functions import ComfyUI's modules. Pictures given to nodes are
[F, H, W, 3] in 0 .. 1; clips that are judged are the same, as arrays.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from cogvideox.host.toy import WEIGHTS

from . import conditions, control_net, toy_settings
from .paint import Inputs, Pipeline, Prepare, Request, Settings, from_text
from .score import psnr_db, score_clip
from .world import path_box

OVERLAP, EXTENDED_BY = 5, 17  # frames that a continuation takes over, and that it has in all
WINDOW, WINDOW_OVERLAP = 49, 16
# Differences of frames that are as far apart as a latent frame is long: how far that at a join may exceed the median
# before it is called a jump.
_JUMP, _STILL, _SPAN = 1.5, 1.0 / 255, 4
_GIVEN, _EDITED = {"cfg": toy_settings.GIVEN.cfg}, {"cfg": toy_settings.TEXT.changing_cfg}


@dataclass(frozen=True)
class Task:
    """variant: of the checkpoint. judge(clip, request) gives shares (True or False) and figures by name.

    changes: the settings that differ from the defaults. batched: whether clips may be sampled together.
    """

    variant: str
    prepare: Prepare
    judge: Callable[[np.ndarray, Request], Mapping[str, float]]
    changes: Mapping[str, object]
    batched: bool = True


def pictures(clip: np.ndarray) -> torch.Tensor:
    """[F, H, W, 3] in 0 .. 255 -> in 0 .. 1, as IMAGE."""
    return torch.from_numpy(clip).float() / 255


def _size(settings: Settings) -> tuple[int, int, int, int]:
    return settings.width, settings.height, settings.frames, 1


def from_image(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """Image to video from the clip's first frame."""
    from cogvideox.nodes.image import CogVideoXImageToVideo

    text = from_text(pipeline, request, settings)
    first = pictures(request.truth[:1])
    node = CogVideoXImageToVideo.execute(
        text.positive, text.negative, pipeline.vae, *_size(settings), start_image=first
    )
    positive, negative, latent = node.args
    return Inputs(pipeline.model, positive, negative, latent)


def judge_image(clip: np.ndarray, request: Request) -> dict[str, float]:
    return {**score_clip(clip, request.scene), "first frame dB": psnr_db(clip[0], request.truth[0] / 255)}


def _inpainted(pipeline: Pipeline, request: Request, settings: Settings, **given: Any) -> Inputs:
    """given: what CogVideoXFunInpaint gets of the clip."""
    from cogvideox.nodes.fun import CogVideoXFunInpaint

    text = from_text(pipeline, request, settings)
    node = CogVideoXFunInpaint.execute(text.positive, text.negative, pipeline.vae, *_size(settings), **given)
    positive, negative, latent = node.args
    return Inputs(pipeline.model, positive, negative, latent)


def from_start_and_end(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """Fun InP between the clip's first and last frame."""
    ends = pictures(request.truth[[0, -1]])
    return _inpainted(pipeline, request, settings, start_image=ends[:1], end_image=ends[1:])


def judge_end(clip: np.ndarray, request: Request) -> dict[str, float]:
    return {**judge_image(clip, request), "last frame dB": psnr_db(clip[-1], request.truth[-1] / 255)}


def in_region(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """Fun InP repaints the box that the other clip's shape moves in; the prompt asks for another colour."""
    mask = torch.from_numpy(path_box(request.other)).float()[None]
    return _inpainted(pipeline, request, settings, video=pictures(request.other), mask=mask)


def judge_region(clip: np.ndarray, request: Request) -> dict[str, float]:
    rest = ~path_box(request.other)
    kept = psnr_db(clip[:, rest], request.other[:, rest] / 255)
    return {**score_clip(clip, request.scene), "rest dB": kept}


def from_edges(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """Fun Control along the clip's edges."""
    from cogvideox.nodes.fun import CogVideoXFunControl

    text = from_text(pipeline, request, settings)
    node = CogVideoXFunControl.execute(
        text.positive, text.negative, pipeline.vae, edge_pictures(request.truth), *_size(settings), 1.0, 0.0, 1.0
    )
    positive, negative, latent = node.args
    return Inputs(pipeline.model, positive, negative, latent)


def with_control_net(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """Text to video with the published control net along the clip's edges."""
    from cogvideox.nodes.controlnet import CogVideoXApplyControlNet

    text = from_text(pipeline, request, settings)
    guide = edge_pictures(request.truth)
    node = CogVideoXApplyControlNet.execute(text.positive, text.negative, _control_net(), guide, 1.0, 0.0, 1.0)
    return replace(text, positive=node.args[0], negative=node.args[1])


@cache
def _control_net() -> Any:
    from cogvideox.model_loaders.load_controlnet import load_controlnet

    return load_controlnet(WEIGHTS / control_net.NAME, "fp32")


def edge_pictures(clip: np.ndarray) -> torch.Tensor:
    """The clip's edges as ComfyUI's Canny node paints them. clip: in 0 .. 255."""
    pixels = pictures(clip).permute(3, 0, 1, 2)[None] * 2 - 1
    return (conditions.edge_pixels(pixels)[0].permute(1, 2, 3, 0) + 1) / 2


def judge_edges(clip: np.ndarray, request: Request) -> dict[str, float]:
    """edges IoU: of both clips' edges, each a pixel wider on every side; NaN where the given clip has none, since its
    shape is as bright as its background."""
    painted = edge_pictures((clip.clip(0, 1) * 255).astype(np.float32))[..., 0].numpy() > 0.5
    given = edge_pictures(request.truth)[..., 0].numpy() > 0.5
    wider = [ndimage.binary_dilation(found, np.ones((1, 3, 3), bool)) for found in (painted, given)]
    both, either = np.logical_and(*wider).sum(), np.logical_or(*wider).sum()
    return {**score_clip(clip, request.scene), "edges IoU": both / either if given.sum() > 8 * len(given) else np.nan}


def from_video(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """Video to video from the clip of the other colour."""
    from cogvideox.nodes.video import CogVideoXEncodeVideo

    text = from_text(pipeline, request, settings)
    latent = CogVideoXEncodeVideo.execute(pipeline.vae, pictures(request.other)).args[0]
    return replace(text, latent=latent)


def from_inverted(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """The clip of the other colour, inverted and followed."""
    from cogvideox.nodes.invert import CogVideoXFollowVideo, CogVideoXInvert

    inputs = from_video(pipeline, request, settings)
    empty = inputs.negative
    inverted = CogVideoXInvert.execute(pipeline.model, empty, empty, inputs.latent, settings.steps, 1.0).args[0]
    followed = CogVideoXFollowVideo.execute(pipeline.model, inverted, 0.0, 1.0).args[0]
    return replace(inputs, model=followed)


def judge_text(clip: np.ndarray, request: Request) -> dict[str, float]:
    return dict(score_clip(clip, request.scene))


def continued(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """The clip's first part, continued by text to video: settings.frames of it are new but for the overlap."""
    from cogvideox.nodes.extend import CogVideoXContinueVideo

    text = from_text(pipeline, request, replace(settings, frames=EXTENDED_BY))
    before = pictures(request.truth[: settings.frames - EXTENDED_BY + OVERLAP])
    latent = CogVideoXContinueVideo.execute(pipeline.vae, before, EXTENDED_BY, OVERLAP).args[0]
    return replace(text, latent=latent)


def judge_continued(clip: np.ndarray, request: Request) -> dict[str, float]:
    """Of the whole video, the given part and its continuation, which CogVideoX Join Videos fades into each other."""
    from cogvideox.media.continuation import join_videos

    given = pictures(request.truth[: len(request.truth) - EXTENDED_BY + OVERLAP])
    whole = join_videos(given, torch.from_numpy(clip).float(), OVERLAP, blend=True).numpy()
    join = slice(len(given) - OVERLAP - _SPAN, len(given))
    return {**score_clip(whole, request.scene), "no jump": is_smooth(whole, join)}


def is_smooth(clip: np.ndarray, where: slice = slice(None)) -> bool:
    """Whether no two frames a latent frame apart, the first one in `where`, differ by more than 1.5 times the median.

    Of neighbouring ones the VAE makes the first of every four differ by up to twice the median, even where it decodes
    a drawn clip.
    """
    steps = np.abs(clip[_SPAN:].astype(np.float64) - clip[:-_SPAN]).mean(axis=(1, 2, 3))
    return bool((steps[where] <= max(_JUMP * np.median(steps), _STILL)).all())


def in_windows(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """A clip longer than the model's, sampled in windows."""
    from cogvideox.nodes.long import CogVideoXContextWindows

    text = from_text(pipeline, request, settings)
    node = CogVideoXContextWindows.execute(pipeline.model, WINDOW, WINDOW_OVERLAP, "standard_static", "pyramid", True)
    return replace(text, model=node.args[0])


def judge_long(clip: np.ndarray, request: Request) -> dict[str, float]:
    return {**score_clip(clip, request.scene), "no jump": is_smooth(clip)}


def with_riflex(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """A clip twice as long as the model's, with RIFLEx."""
    from cogvideox.nodes.long import CogVideoXPositions

    text = from_text(pipeline, request, settings)
    return replace(text, model=CogVideoXPositions.execute(pipeline.model, True, False).args[0])


TASKS: dict[str, Task] = {
    "image to video": Task("5b-I2V", from_image, judge_image, _GIVEN),
    "1.5, image to video": Task("1.5-5B-I2V", from_image, judge_image, _GIVEN),
    "start and end image": Task("Fun-5b-InP", from_start_and_end, judge_end, _GIVEN),
    "region": Task("Fun-5b-InP", in_region, judge_region, _GIVEN),
    "edges, Fun Control": Task("Fun-5b-Control", from_edges, judge_edges, _GIVEN),
    "edges, control net": Task("5b", with_control_net, judge_edges, _GIVEN, batched=False),
    f"video to video, denoise {toy_settings.TEXT.denoise:g}": Task(
        "5b", from_video, judge_text, {"denoise": toy_settings.TEXT.denoise, **_EDITED}
    ),
    "inversion edit": Task("5b", from_inverted, judge_text, _EDITED, batched=False),
    "extend": Task("5b", continued, judge_continued, {"frames": 29, **_GIVEN}),
    "windows, 97 frames": Task("5b", in_windows, judge_long, {"frames": 97, **_GIVEN}, batched=False),
    "RIFLEx, 97 frames": Task("5b", with_riflex, judge_long, {"frames": 97}, batched=False),
}
