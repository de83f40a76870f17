"""Put frames of videos side by side, one row for each video.

    python -m cogvideox.devtools.contact_sheet PICTURE VIDEO [VIDEO ...]

docs/nano.png and the picture of `dev.py demo` are made with it. Runs inside the venv.
"""

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from cogvideox.media.file_formats import VIDEO_OPTIONS

COLUMNS = 6  # frames in a row, evenly spread from the first to the last
ZOOM, MOST_PX = 2, 320  # times as large as in the video, but no wider
GAP = 4  # pixels


def contact_sheet(videos: list[Path]) -> Image.Image:
    """COLUMNS frames of each video on white. All frames are scaled to ZOOM times the first video's size, and to no more
    than MOST_PX in width."""
    rows = [_frames(video) for video in videos]
    first = rows[0][0]
    width = min(ZOOM * first.width, MOST_PX)
    height = round(width * first.height / first.width)
    # A toy's pixels stay squares.
    scaling = Image.Resampling.NEAREST if width == ZOOM * first.width else Image.Resampling.LANCZOS
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, frames in enumerate(rows):
        for column, frame in enumerate(frames):
            enlarged = frame.resize((width, height), scaling)
            sheet.paste(enlarged, (column * (width + GAP), row * (height + GAP)))
    return sheet


def _frames(video: Path) -> list[Image.Image]:
    with av.open(str(video), options=VIDEO_OPTIONS) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[i] for i in np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)]


if __name__ == "__main__":
    picture, *videos = map(Path, sys.argv[1:])
    contact_sheet(videos).save(picture, optimize=True)
