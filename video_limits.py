"""How large the videos of one run may be altogether."""

from collections.abc import Sequence

from .errors import UserError

# Each widget's limit is one that somebody uses; all of them together are terabytes. This is the longest video that the
# nodes make, 1025 frames, at 1920 x 1088 (and 64 videos of 49 frames at 720 x 480 are half of it): a LATENT of 0.5 GiB,
# which ComfyUI's context windows sample piece by piece, and an IMAGE of 24 GiB. Without windows it is two million
# tokens, of which the activations of one forward of 5b take 150 GiB: nothing beyond it can run anywhere.
MAX_VIDEO_PIXELS = 1 << 31


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
