"""What other nodes have put into a LATENT: read with a sentence where it is not what it should be."""

import operator
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import UserError, quoted
from ..keys import RNG_OFFSET, Latent, rng_offset
from ..video_limits import MAX_VIDEO_PIXELS

# Of all videos of a run: latents have 16 channels, 8 x 8 times fewer pixels, and the first of them is one frame.
_MAX_RNG_OFFSET = MAX_VIDEO_PIXELS * 16 // 64
_ADVICE = "Connect the node that made the latent directly."


def check_samples(latent: Any, name: str) -> None:
    """Raises UserError unless `latent` is a dictionary with a tensor of samples. name: what the user knows it by."""
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    if not isinstance(samples, torch.Tensor):
        found = (
            f"has samples of type {type(samples).__name__}" if isinstance(latent, Mapping) else "is not a dictionary"
        )
        raise UserError(f"{name} {found}; connect a LATENT with a tensor of samples.", advice="make a latent")
    if samples.ndim not in (4, 5):
        raise UserError(
            f"{name} has samples of shape {list(samples.shape)}; [batch, 16, frames, height / 8, width / 8] "
            "is expected.",
            advice="make a latent",
        )


def read_batch_index(latent: Latent) -> tuple[int, ...] | None:
    """Which members of a larger batch the samples are; None where they are all of it.

    Raises UserError unless there is a whole number, 0 or more, for each of the samples.
    """
    given: Any = latent.get("batch_index")
    if given is None:
        return None
    count = len(latent["samples"])
    try:
        found = tuple(operator.index(number) for number in given)
    except (TypeError, ValueError, RuntimeError):
        found = ()
    if len(found) != count or min(found, default=-1) < 0:
        raise UserError(
            f"The latent's batch_index is {quoted(str(given))}; it should have one whole number, 0 or more, for each "
            f"of its videos: {count}. {_ADVICE}"
        )
    return found


def read_rng_offset(latent: Latent, seed: int) -> int:
    """keys.rng_offset. Raises UserError for an entry that is no seed with a count of numbers of its stream."""
    given: Any = latent.get(RNG_OFFSET)
    match given:
        case None:
            return 0
        case (int(_), int(count)) if 0 <= count <= _MAX_RNG_OFFSET and count % 16 == 0:
            return rng_offset(latent, seed)
    raise UserError(
        f"The latent's {RNG_OFFSET} is {quoted(str(given))}; it should be a seed and how many numbers were drawn "
        f"from it, a multiple of 16 up to {_MAX_RNG_OFFSET}. {_ADVICE}"
    )
