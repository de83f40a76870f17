"""Masks that a user painted, converted to masks of latents."""

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..vae.geometry import SPATIAL, TEMPORAL, video_frames
from ..video_limits import check_amount


def latent_mask(mask: torch.Tensor, latent_frames: int, latent_height: int, latent_width: int) -> torch.Tensor:
    """`mask` for a latent: [1, 1, latent_frames, latent_height, latent_width], 1 where the video is regenerated.

    mask: [F, H, W], [H, W] or with further sides of 1, 0 .. 1. F is 1 (held over the clip), the latent's frames, or the
    video's 4 n - 3: a latent is regenerated where any of its frames is. H x W is the latent's size or the video's,
    8 times that: each 8 x 8 pixels become their mean.
    Raises UserError for any other shape.
    """
    frames = _split_frames(mask)
    counts = {1, latent_frames, video_frames(latent_frames)}
    sizes = ((latent_height, latent_width), (latent_height * SPATIAL, latent_width * SPATIAL))
    if frames.shape[0] not in counts or tuple(frames.shape[1:]) not in sizes:
        (h, w), (height, width) = sizes
        raise UserError(
            f"The mask has {frames.shape[0]} frames of {frames.shape[2]} x {frames.shape[1]}; this latent takes "
            f"{_any_of(counts)} frames of {width} x {height} pixels (or {w} x {h}, the latent's own size). Resize the "
            "mask to the video, and give it one frame or as many as the video has."
        )
    if tuple(frames.shape[1:]) != sizes[0]:
        frames = F.avg_pool2d(frames[:, None], SPATIAL)[:, 0]
    if frames.shape[0] == 1:
        frames = frames.expand(latent_frames, -1, -1)
    elif frames.shape[0] != latent_frames:
        # The causal VAE gives the first frame a latent of its own and every four frames after it one. Their maximum,
        # because a latent cannot be regenerated for one of its frames alone. [4 n - 3, h, w] -> [n - 1, 4, h, w]
        groups = frames[1:].unflatten(0, (-1, TEMPORAL))
        frames = torch.cat([frames[:1], groups.amax(dim=1)])
    return frames[None, None]


def fun_mask(mask: torch.Tensor, latent_frames: int, latent_height: int, latent_width: int) -> torch.Tensor:
    """The mask channel of CogVideoX-Fun's InP models: [1, 1, latent_frames, latent_height, latent_width], 1 where the
    video is known; unscaled.

    mask: [F, H, W], 0 .. 1, 1 = to be regenerated; 0.5 and more count as 1. F is 1 (held over the clip) or the
    video's 4 n - 3; H x W is any size.
    Raises UserError. Source: CogVideoX-Fun cogvideox/pipeline/pipeline_cogvideox_inpaint.py, resize_mask.
    """
    frames = _split_frames(mask)
    count = video_frames(latent_frames)
    if frames.shape[0] not in (1, count):
        raise UserError(
            f"The mask has {frames.shape[0]} frames and the video {count}. Give the mask {_any_of({1, count})} frames."
        )
    known = 1 - (hold_last(frames, count) >= 0.5).float()[None, None]  # [F, H, W] -> [1, 1, F, H, W]
    # The first frame is resized by itself, because its latent is its own; interpolated along with the others it would
    # take part of the second frame.
    size = (latent_height, latent_width)
    resized = [F.interpolate(known[:, :, :1], size=(1, *size), mode="trilinear", align_corners=False)]
    if latent_frames > 1:
        others = known[:, :, 1:]
        resized.append(F.interpolate(others, size=(latent_frames - 1, *size), mode="trilinear", align_corners=False))
    return torch.cat(resized, dim=2)


def hold_last(frames: torch.Tensor, count: int) -> torch.Tensor:
    """`frames` [F, H, W, ...] with the last one repeated up to `count`; unchanged where there are as many already.

    Raises UserError where there is no frame to repeat, or so many would not fit into memory.
    """
    if frames.shape[0] == 0:
        raise UserError("There is no frame in the video: check the range of frames that it comes from.")
    missing = max(0, count - frames.shape[0])
    if missing:
        check_amount(frames.shape[2], frames.shape[1], count)
    return torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])]) if missing else frames


def _split_frames(mask: torch.Tensor) -> torch.Tensor:
    """[..., H, W] -> [F, H, W], fp32; of the leading dimensions only one, the frames, may be larger than 1."""
    lead = mask.shape[:-2]
    if mask.ndim < 2 or 0 in mask.shape or sum(side > 1 for side in lead) > 1:
        raise UserError(
            f"The mask has shape {list(mask.shape)}; [frames, height, width] with at least one frame is expected.",
            advice="make a mask",
        )
    return mask.reshape(-1, *mask.shape[-2:]).float()


def _any_of(counts: set[int]) -> str:
    *others, last = (str(count) for count in sorted(counts))
    return f"{', '.join(others)} or {last}" if others else last
