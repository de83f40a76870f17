"""Longer videos from clips: what a new clip takes over from the one before, and how the two are joined."""

import torch

from ..errors import UserError
from ..vae.geometry import SPATIAL, TEMPORAL, latent_frames
from ..video_limits import check_amount
from .pictures import check_pictures


def check_overlap(overlap: int, frames: int) -> None:
    """Raises UserError unless a clip of `frames` can begin with `overlap` frames of another."""
    # Latents hold one frame and then four each: only 4 k + 1 frames are the start of a clip in whole latents.
    if overlap < 1 or (overlap - 1) % TEMPORAL:
        below = max(1, (overlap - 1) // TEMPORAL * TEMPORAL + 1)
        nearest = f"{below} or {below + TEMPORAL}" if overlap > 1 else "1"
        raise UserError(f"overlap {overlap} is not 4k + 1 (1, 5, 9, ...): use {nearest}.")
    if overlap >= frames:
        raise UserError(
            f"overlap {overlap} leaves nothing new in a clip of {frames} frames: use a smaller overlap or more frames."
        )


def last_frames(images: torch.Tensor, overlap: int) -> torch.Tensor:
    """The last `overlap` of `images` [F, H, W, C]. Raises UserError where there are fewer."""
    check_pictures(images)
    if images.shape[0] < overlap:
        raise UserError(
            f"The clip so far has {images.shape[0]} frames; overlap {overlap} takes more. Use an overlap of "
            f"{(images.shape[0] - 1) // TEMPORAL * TEMPORAL + 1} or less."
        )
    return images[-overlap:]


def continuation_latent(known: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    """A LATENT of `frames` video frames that begins with the latents `known` [1, 16, k, h, w].

    Returns samples [1, 16, T, h, w], zeros after `known`, and noise_mask [1, 1, T, h, w], 0 where known and 1 after:
    a sampler keeps the known latents and paints the others. Raises UserError where that is too large.
    """
    batch, channels, count, height, width = known.shape
    check_amount(width * SPATIAL, height * SPATIAL, frames, batch)
    samples = known.new_zeros(batch, channels, latent_frames(frames), height, width)
    samples[:, :, :count] = known
    noise_mask = torch.ones_like(samples[:1, :1])
    noise_mask[:, :, :count] = 0
    return {"samples": samples, "noise_mask": noise_mask}


def join_videos(before: torch.Tensor, after: torch.Tensor, overlap: int, blend: bool = False) -> torch.Tensor:
    """One video of two, [A, H, W, C] and [B, H, W, C] -> [A + B - overlap, H, W, C].

    overlap: how many frames at the beginning of `after` show what the last ones of `before` show. They are left out;
    with `blend` the last ones of `before` fade over into them instead.
    Raises UserError where the sizes differ or a video is shorter than the overlap.
    """
    for images in (before, after):
        check_pictures(images)
    if before.shape[1:] != after.shape[1:]:
        found = " and ".join(f"{v.shape[2]} x {v.shape[1]} pixels with {v.shape[3]} channels" for v in (before, after))
        raise UserError(f"The videos have {found}. Resize one of them: joined videos have one size.")
    if not 0 <= overlap <= min(len(before), len(after)):
        raise UserError(
            f"overlap is {overlap}, the videos have {len(before)} and {len(after)} frames: use 0 to "
            f"{min(len(before), len(after))}, the overlap that the second video was made with."
        )
    after = after.to(before)
    if blend and overlap:
        # Without 0 and 1: at these ends the fade would show a frame of one video alone. [overlap, 1, 1, 1]
        weight = torch.linspace(0, 1, overlap + 2, device=before.device)[1:-1].to(before.dtype).view(-1, 1, 1, 1)
        faded = torch.lerp(before[-overlap:], after[:overlap], weight)
        before = torch.cat([before[:-overlap], faded])
    return torch.cat([before, after[overlap:]])
