"""What a run of CogVideoX-nano says of a size that it was not made for."""

from collections.abc import Callable
from typing import Any

import torch

from ..host.protocols import GuiderExecutor
from ..host.toy import FRAMES, INPUT_FRAMES, NAME, SIDES_PX

_FAR = 2  # times what it was trained on: windows and stretched positions reach twice its length
_LONGEST_SHAPE = SIDES_PX[1] / SIDES_PX[0]  # in longer ones the shapes are cut off and doubled


def tell_toy_size(
    notify: Callable[[str], object],
    executor: GuiderExecutor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper of the toy's models: say which model this is where its size is far from the world it knows.

    It goes around samplers.outer_sample.sample_checked, so that it is said of a size that is refused as well.

    notify: shows a sentence on the running node. latent_image: [B, 16, T, H, W]. The other arguments are those of
    comfy.samplers.CFGGuider.outer_sample.
    """
    if latent_image.ndim == 5 and (message := toy_size_message(latent_image.shape[2:])):
        notify(message)
    return executor(noise, latent_image, *args, **kwargs)


def toy_size_message(latent_size: tuple[int, ...]) -> str:
    """The sentences for latents of this (T, H, W); "" for a size in or near the toy's world."""
    frames, (height, width) = 4 * latent_size[0] - 3, (8 * side for side in latent_size[1:])
    (shortest, longest), (least, most) = SIDES_PX, FRAMES
    small, large = sorted((width, height))
    is_near = _FAR * small >= shortest and large <= _FAR * longest and large <= _LONGEST_SHAPE * small
    if is_near and frames <= _FAR * most:
        return ""
    return (
        f"This is {NAME}, the toy that comes with the pack. It has seen sides of {shortest} and {longest} pixels and "
        f"{least} to {most} frames; {width} × {height} with {frames} frames is far from that, and shows little that is "
        f"recognisable. Set {shortest} × {shortest} with {INPUT_FRAMES} frames. For real videos, load an official "
        "checkpoint."
    )
