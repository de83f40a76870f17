"""Put frames of videos side by side, one row for each video.

    python -m cogvideox.devtools.contact_sheet PICTURE VIDEO [VIDEO ...]

docs/nano.png and the picture of `dev.py demo` are made with it. Runs inside the venv.
"""

import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

COLUMNS = 6  # frames in a row, evenly spread from the first to the last
ZOOM = 2  # times as large as in the video
GAP = 4  # pixels


def contact_sheet(videos: list[Path]) -> Image.Image:
    """COLUMNS frames of each video on white. All frames are scaled to ZOOM times the first video's size."""
    rows = [_frames(video) for video in videos]
    width, height = (side * ZOOM for side in rows[0][0].size)
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, frames in enumerate(rows):
        for column, frame in enumerate(frames):
            enlarged = frame.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (column * (width + GAP), row * (height + GAP)))
    return sheet


def _frames(video: Path) -> list[Image.Image]:
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[i] for i in np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)]


if __name__ == "__main__":
    picture, *videos = map(Path, sys.argv[1:])
    contact_sheet(videos).save(picture, optimize=True)
