"""Write the pictures, videos and the mask that the example workflows load.

    python -m cogvideox.devtools.example_media FOLDER

FOLDER: a ComfyUI's input folder. A drawing of a balloon over hills, small and quick to make, and from the world of
CogVideoX-nano a first frame and clips to train with. Runs inside the venv.
"""

import os
import shutil
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from cogvideox.nano.captions import caption
from cogvideox.nano.world import Scene, draw_scene, render

PICTURE = "example.png"  # ComfyUI's own input folder has another file of this name
VIDEO = "cogvideox_example.mp4"
MASK = "cogvideox_example_mask.png"
TOY_PICTURE = "cogvideox_toy.png"
CLIPS = "cogvideox_example_clips"  # pink shapes, a colour that CogVideoX-nano was not trained on, and their captions
TOY_SCENE = Scene("square", "red", "large", "up", ("white",))
_CLIP_COUNT, _CLIP_FRAMES, _TOY_SEED = 16, 17, 11
WIDTH, HEIGHT, FRAMES, FPS = 384, 256, 17, 8

_SMOOTH = 3  # drawn this many times as large and scaled down, for smooth edges
_SKY, _HILLS, _CLOUD = (112, 178, 240), ((70, 160, 90), (104, 196, 96)), (250, 250, 250)
_BALLOON, _STRIPE, _BASKET = (216, 56, 48), (250, 214, 90), (120, 78, 44)
_BALLOON_FROM, _BALLOON_TO, _RADIUS = (0.26, 0.44), (0.68, 0.30), 0.20  # centre in widths and heights; in heights


def write_media(folder: Path) -> list[Path]:
    """Write the files that do not exist yet; each appears complete or not at all. Returns all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        PICTURE: _write_picture,
        VIDEO: _write_video,
        MASK: _write_mask,
        TOY_PICTURE: _write_toy_picture,
        CLIPS: _write_clips,
    }
    for name, write in writers.items():
        if not (folder / name).exists():
            unfinished = folder / f".part-{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            write(unfinished)
            os.replace(unfinished, folder / name)
    return [folder / name for name in writers]


def draw_balloon(time: float) -> Image.Image:
    """The drawing at `time`, 0 .. 1: clouds drift to the left, the balloon rises to the right."""
    canvas = Image.new("RGB", (WIDTH * _SMOOTH, HEIGHT * _SMOOTH), _SKY)
    draw = ImageDraw.Draw(canvas)
    for left, top, size in ((0.30, 0.14, 0.10), (0.92, 0.24, 0.08)):
        for step in range(3):
            _disc(draw, (left - 0.12 * time + 0.055 * step, top - 0.03 * (step % 2)), size, _CLOUD)
    for (x, y, radius), colour in zip(((0.15, 1.55, 0.85), (0.80, 1.75, 1.00)), _HILLS):
        _disc(draw, (x, y), radius, colour)
    x, y = _balloon_centre(time)
    draw.rectangle(_box((x, y + 1.42 * _RADIUS), 0.045), _BASKET)
    for side in (-1, 1):
        rope = [_point((x + 0.6 * side * _RADIUS * HEIGHT / WIDTH, y + 0.7 * _RADIUS))]
        draw.line([*rope, _point((x + 0.02 * side, y + 1.3 * _RADIUS))], _BASKET, 2 * _SMOOTH)
    _disc(draw, (x, y), _RADIUS, _BALLOON)
    left, top, right, bottom = _box((x, y), _RADIUS)
    inset = (right - left) / 3
    draw.ellipse((left + inset, top, right - inset, bottom), _STRIPE)
    return canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _write_picture(path: Path) -> None:
    draw_balloon(0.0).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.LANCZOS).save(path, "PNG")


def _write_mask(path: Path) -> None:
    """White around the balloon's whole path, black elsewhere; of the video's size."""
    mask = Image.new("L", (WIDTH * _SMOOTH, HEIGHT * _SMOOTH), 0)
    for time in np.linspace(0.0, 1.0, FRAMES):
        x, y = _balloon_centre(time)
        ImageDraw.Draw(mask).rounded_rectangle(_box((x, y + 0.3 * _RADIUS), 1.5 * _RADIUS), 20 * _SMOOTH, 255)
    mask.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(path, "PNG")


def _write_video(path: Path) -> None:
    _write_mp4(path, [draw_balloon(time) for time in np.linspace(0.0, 1.0, FRAMES)], crf=18)


def _write_toy_picture(path: Path) -> None:
    first = render(TOY_SCENE, np.random.default_rng(_TOY_SEED), _CLIP_FRAMES)[0]
    Image.fromarray(first).resize((256, 256), Image.Resampling.NEAREST).save(path, "PNG")


def _write_clips(folder: Path) -> None:
    folder.mkdir()
    for number in range(_CLIP_COUNT):
        rng = np.random.default_rng([_TOY_SEED, number])
        scene = draw_scene(rng, colour="pink")
        text = caption(scene, rng)
        frames = [Image.fromarray(frame) for frame in render(scene, rng, _CLIP_FRAMES)]
        _write_mp4(folder / f"clip_{number:02d}.mp4", frames, crf=4)
        (folder / f"clip_{number:02d}.txt").write_text(text, "utf-8")


def _write_mp4(path: Path, frames: list[Image.Image], crf: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        (stream.width, stream.height), stream.pix_fmt = frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _balloon_centre(time: float) -> tuple[float, float]:
    (x0, y0), (x1, y1) = _BALLOON_FROM, _BALLOON_TO
    return x0 + (x1 - x0) * time, y0 + (y1 - y0) * time


def _point(position: tuple[float, float]) -> tuple[float, float]:
    """A position in widths and heights of the picture -> canvas pixels."""
    return position[0] * WIDTH * _SMOOTH, position[1] * HEIGHT * _SMOOTH


def _box(centre: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    """The square around a circle, radius in heights of the picture: left, top, right, bottom in canvas pixels."""
    (x, y), r = _point(centre), radius * HEIGHT * _SMOOTH
    return x - r, y - r, x + r, y + r


def _disc(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour: tuple) -> None:
    draw.ellipse(_box(centre, radius), colour)


if __name__ == "__main__":
    write_media(Path(sys.argv[1]))
