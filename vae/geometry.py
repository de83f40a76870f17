"""Arithmetic between pixels and latents.

A latent frame stands for four frames of the video, the first one for a single frame; a latent pixel for 8 x 8 pixels.
"""

import torch

from ..errors import UserError
from ..video_limits import SIZE_STEP as SIZE_STEP  # taken from here by those who take the rest from here
from ..video_limits import TEMPORAL, check_latent_amount, check_size

SPATIAL, CHANNELS = 8, 16


def latent_frames(frames: int) -> int:
    """Latent frames of a video of `frames`: 1 -> 1, 5 -> 2, 9 -> 3, 49 -> 13; frames that fill no latent are lost."""
    return (frames - 1) // TEMPORAL + 1


def video_frames(latent_frames: int) -> int:
    """Frames that `latent_frames` decode to: 4 n - 3, and none for 0."""
    return max(0, TEMPORAL * (latent_frames - 1) + 1)


def empty_latent(width: int, height: int, frames: int, batch_size: int) -> torch.Tensor:
    """Zeros [batch_size, 16, (frames - 1) / 4 + 1, height / 8, width / 8].

    Raises UserError.
    """
    check_size(width, height, frames, batch_size)
    return torch.zeros([batch_size, CHANNELS, latent_frames(frames), height // SPATIAL, width // SPATIAL])


def check_latents(samples: torch.Tensor) -> None:
    """Raises UserError unless `samples` is a CogVideoX latent [B, 16, T, H, W] with something in it, and
    where it contains NaN or Inf."""
    check_latent_channels(samples)
    if 0 in samples.shape:
        raise UserError(
            f"The latent has shape {list(samples.shape)}: there is nothing in it to decode. Check the node it comes "
            "from; a video has at least one latent frame."
        )
    finite = torch.isfinite(samples).all(dim=4).all(dim=3).all(dim=1)  # [B, T]
    if not finite.all():
        broken = [t for t in range(samples.shape[2]) if not finite[:, t].all()]
        # Latent t stands for frames 4 t - 3 to 4 t, latent 0 for frame 0.
        first, last = (max(0, TEMPORAL * broken[0] - 3), TEMPORAL * broken[-1])
        raise UserError(
            f"The latent contains NaN or Inf in latent frame{'s' if len(broken) > 1 else ''} "
            f"{', '.join(map(str, broken[:8]))}{' ...' if len(broken) > 8 else ''} of {samples.shape[2]} (video frames "
            f"{first} to {last}). Something went wrong before the VAE: check the sampler's settings and the model's "
            "weight_dtype."
        )


def check_latent_channels(samples: torch.Tensor) -> None:
    """Raises UserError unless `samples` is a CogVideoX latent [B, 16, T, H, W] of which the videos can be made."""
    if samples.ndim != 5 or samples.shape[1] != CHANNELS:
        raise UserError(
            f"The latent has shape {list(samples.shape)}; a CogVideoX VAE decodes [batch, {CHANNELS}, frames, "
            "height / 8, width / 8]. Use the VAE that belongs to the model that made this latent."
        )
    check_latent_amount(samples.shape)
