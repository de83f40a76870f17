"""The example inputs that come with the pack: clips of CogVideoX-nano's world, drawn by nano/draw_examples.py."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence

from ..errors import UserError
from ..host.toy import EXAMPLES, INPUTS, MASK_SUFFIX


def read_example(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames of one of toy.INPUTS, [F, H, W, 3] in 0 .. 1, and its mask, [1, H, W], 1 where the shape is or passes.

    Raises UserError where its files are missing or damaged.
    """
    file = EXAMPLES / INPUTS[name]
    frames, mask = _read_frames(file, "RGB"), _read_frames(file.with_name(file.stem + MASK_SUFFIX), "L")
    return frames, mask[:1]


def _read_frames(file: Path, mode: str) -> torch.Tensor:
    try:
        with Image.open(file) as picture:
            frames = [np.asarray(frame.convert(mode)) for frame in ImageSequence.Iterator(picture)]
    # SyntaxError: Pillow's, for a damaged PNG.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). Install the pack again, or run `git checkout -- nano/examples` in its "
            "folder."
        ) from error
    return torch.from_numpy(np.stack(frames)).float() / 255
