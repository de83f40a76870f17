"""The example inputs that come with the pack: clips of CogVideoX-nano's world, drawn by nano/draw_examples.py."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence

from ..host.toy import EXAMPLES, INPUTS, MASK_SUFFIX
from ..system.published_files import check_published, read_sums


def read_example(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames of one of toy.INPUTS, [F, H, W, 3] in 0 .. 1, and its mask, [1, H, W], 1 where the shape is or passes.

    Raises UserError where its files are not those that were published.
    """
    file = EXAMPLES / INPUTS[name]
    mask_file = file.with_name(file.stem + MASK_SUFFIX)
    check_published(EXAMPLES, (file, mask_file), read_sums(EXAMPLES))
    return _read_frames(file, "RGB"), _read_frames(mask_file, "L")[:1]


def _read_frames(file: Path, mode: str) -> torch.Tensor:
    with Image.open(file) as picture:
        frames = [np.asarray(frame.convert(mode)) for frame in ImageSequence.Iterator(picture)]
    return torch.from_numpy(np.stack(frames)).float() / 255
