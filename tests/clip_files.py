"""Video files for the tests of training."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def write_video(
    path: Path,
    pictures: np.ndarray,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 8,
    container: str | None = None,
    prepare: Callable[[Any], object] = lambda stream: None,
) -> Path:
    """Write `pictures` [F, H, W, 3], 0 .. 255. container: its format, by default the suffix's; prepare(stream) comes
    before the first frame. Lossless: codec "ffv1", pix_fmt "bgr0"."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        prepare(stream)
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path
