"""Which sizes and lengths a video may have, and how large the videos of one run may be altogether.

No import of torch: dev.py looks at what is asked for before anything is installed.
"""

from collections.abc import Sequence

from .errors import UserError

_TRAINED = 8  # the models were trained on videos of a multiple of it and one frame more
TEMPORAL = 4  # frames of the video in a latent frame, but for the first one
# A latent is 8 pixels wide and the transformer makes one token of 2 x 2 latents, so width and height have to divide by
# 16. diffusers checks 8 only, and fails later.
SIZE_STEP = 16

# Each widget's limit is one that somebody uses; all of them together are terabytes. This is the longest video that the
# nodes make, 1025 frames, at 1920 x 1088 (and 64 videos of 49 frames at 720 x 480 are half of it): a LATENT of 0.5 GiB,
# which ComfyUI's context windows sample piece by piece, and an IMAGE of 24 GiB. Without windows it is two million
# tokens, of which the activations of one forward of 5b take 150 GiB: nothing beyond it can run anywhere.
MAX_VIDEO_PIXELS = 1 << 31


def check_size(width: int, height: int, frames: int, batch_size: int = 1) -> None:
    """Raises UserError naming the nearest sizes that fit, where width, height or frames do not, and where all videos
    together are too large."""
    problems = []
    for name, value in (("width", width), ("height", height)):
        if value < SIZE_STEP or value % SIZE_STEP:
            problems.append(f"{name} {value} is not divisible by {SIZE_STEP}: use {_nearest(value, SIZE_STEP, 0)}")
    if frames < 1 or (frames - 1) % TEMPORAL:
        problems.append(_refused_frames(frames))
    if problems:
        raise UserError("; ".join(problems) + ".")
    check_amount(width, height, frames, batch_size)


def _nearest(value: int, step: int, offset: int) -> str:
    below = (value - offset) // step * step + offset
    return f"{below} or {below + step}" if below > 0 else str(step if offset == 0 else offset)


def _refused_frames(frames: int) -> str:
    """Names the lengths that the models were trained on first, then the one between them."""
    below = (frames - 1) // _TRAINED * _TRAINED + 1
    if below < 1:
        return f"frames {frames} is not 4k + 1 (8k + 1 as the models were trained): use 1"
    return (
        f"frames {frames} is not 4k + 1 (8k + 1 as the models were trained): use {below} or {below + _TRAINED}, or "
        f"else {below + TEMPORAL}"
    )


def check_amount(width: int, height: int, frames: int, batch_size: int = 1) -> None:
    """Raises UserError where that many videos of this size, in pixels and frames of the video, cannot be made."""
    pixels = width * height * frames * batch_size
    if pixels > MAX_VIDEO_PIXELS:
        videos = f" x {batch_size} videos" if batch_size > 1 else ""
        raise UserError(
            f"{width} x {height} pixels x {frames} frames{videos} are {pixels / 1e9:.1f} billion pixels. At most "
            f"{MAX_VIDEO_PIXELS / 1e9:.1f} billion fit into one run, which are 1025 frames of 1920 x 1088. Use a "
            "smaller size, fewer frames or fewer videos."
        )


def check_latent_amount(shape: Sequence[int]) -> None:
    """check_amount for latents of `shape` [B, C, T, H, W]: 8 times smaller in space, 4 n - 3 frames for n of them."""
    batch_size, _, frames, height, width = shape
    check_amount(8 * width, 8 * height, max(0, 4 * frames - 3), batch_size)
