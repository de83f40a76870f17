"""CogVideoX 1.5's frame in front: the frame of noise that makes an odd number of latent frames even.

CogVideoX 1.5 makes one token of two latent frames. As in diffusers' pipelines an odd count gets one more frame of noise
in front, which takes part in sampling and is dropped at the end. The simpler way, to repeat a frame inside the model,
was tried: the last latent frame comes out wrong (0.82, RMS of the difference over that of diffusers').

A run that is cut into parts needs it again in its
next part, but a latent between two parts is handed on by nodes that know its samples alone: KSamplerAdvanced gives out
nothing else, and a file of SaveLatent holds nothing else. The frame therefore travels within the samples: as the
first frame, followed by its negative, which makes the count odd again and is no video's second frame. Dtypes, files,
devices, crops and every multiplication keep the sign, so that the mark survives them.
"""

import hashlib

import torch

from ..errors import UserError
from .noise import NoiseStream, adds_noise

PAIR = 2  # the patch_size_t of CogVideoX 1.5


def lacks_frame(frames: int, patch_size_t: int | None) -> bool:
    """Whether a model with `patch_size_t` needs a frame in front of this many latent frames."""
    return patch_size_t == PAIR and frames % PAIR == 1


def join_front(front: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The latent [B, C, 2 + T, H, W] that carries `front` [B, C, 1, H, W] with x [B, C, T, H, W] to the next part."""
    return torch.cat([front, -front, x], dim=2)


def split_front(x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The frame that join_front has put in front of x [B, C, 2 + T, H, W], and x without both; (None, x) without one.

    A latent of zeros has none: an empty latent's first two frames are each other's negative as well.

    Raises UserError where the mark stands anywhere else: two such latents were joined, or a part of one was cut out.
    """
    if x.ndim != 5 or x.shape[2] < 2 or x.dtype == torch.bool:
        return None, x
    frames = x.movedim(2, 1).flatten(2)  # [B, C, T, H, W] -> [B, T, C * H * W]
    marks = (frames[:, :-1] == -frames[:, 1:]).all(dim=2) & frames[:, :-1].any(dim=2)
    if not marks.any():
        return None, x
    # The second mark: a video that begins with the frame in front, as one to which it had to be repeated.
    if marks[:, 0].all() and not marks[:, 2:].any() and x.shape[2] > 2 and x.shape[2] % 2:
        return x[:, :, :1], x[:, :, 2:]
    found = (marks.any(dim=0).nonzero().flatten() + 1).tolist()
    raise UserError(
        f"The latent holds a frame of noise that a run of CogVideoX 1.5 has left in front of an unfinished video, and "
        f"it was joined with others or cut since: latent frame {', '.join(map(str, found[:4]))} of {x.shape[2]}. Join "
        "and cut videos after their last step, or before their first one."
    )


def prepend(x: torch.Tensor, front: torch.Tensor | None = None) -> torch.Tensor:
    """[B, C, T, H, W] -> [B, C, 1 + T, H, W], with `front` [B, C, 1, H, W] or else with the first frame repeated."""
    return torch.cat([x[:, :, :1] if front is None else front, x], dim=2)


def prepend_noise(noise: torch.Tensor, stream: NoiseStream | None) -> torch.Tensor:
    """`noise` [B, C, T, H, W] of a run, drawn from `stream` if that is known -> [B, C, 1 + T, H, W].

    Noise of this pack knows its stream and is drawn again for the longer video as diffusers draws it: frame by frame,
    so that the frame in front gets the numbers that were the first frame's. Zeros, the noise of a run that adds none,
    get zeros. Any other noise stays as it is, and each member of the batch gets a frame that follows from its own
    noise alone: whoever adds the noise (the sampler, or AddNoise before it), and whether the member is sampled alone
    or in its batch (batch_index), the frame is the same.
    """
    batch, channels, frames, *size = noise.shape
    longer = (batch, channels, 1 + frames, *size)
    if stream is not None:
        return stream.draw(longer).to(noise)
    if not adds_noise(noise):
        return noise.new_zeros(longer)
    return torch.cat([torch.cat([_derived_frame(member) for member in noise.split(1)]), noise], dim=2)


def _derived_frame(noise: torch.Tensor) -> torch.Tensor:
    """A frame of unit normal noise [1, C, 1, H, W] from a stream that the values of `noise` [1, C, T, H, W] seed."""
    digest = hashlib.sha256(noise.cpu().float().contiguous().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.randn((*noise.shape[:2], 1, *noise.shape[3:]), generator=generator).to(noise)
