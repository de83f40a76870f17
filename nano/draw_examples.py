"""Draw the example inputs that come with the pack: python -m cogvideox.nano.draw_examples.

Pictures, a video and masks for the node CogVideoX Example Input, and a dataset: clips of a colour that no model of
CogVideoX-nano was trained on, with their captions. host/toy.py names them. Everything is drawn from fixed seeds, and
pictures are lossless, so that drawing them again gives the same pixels.
"""

import shutil
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageFilter

from cogvideox.host.toy import CLIPS_FOLDER, EXAMPLES, INPUT_FRAMES, INPUTS, MASK_SUFFIX
from cogvideox.system.published_files import SUMS, published_below, sums_of

from .captions import caption
from .world import FPS, Scene, draw_scene, render, rgb

PICTURE_SCENE = Scene("square", "red", "large", "up", ("white",))
VIDEO_SCENE = Scene("circle", "orange", "large", "right", ("blue",))
CLIP_COUNT, FRAMES, SIDE_PX, SEED = 16, INPUT_FRAMES, 64, 11
_MARGIN_PX = 5  # of a mask around its shape, odd


def write_examples(folder: Path) -> None:
    """Write all of them to `folder`, whose earlier contents are deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    moving = render(PICTURE_SCENE, np.random.default_rng(SEED), FRAMES)
    video = render(VIDEO_SCENE, np.random.default_rng(SEED), FRAMES)
    shown = {"picture": (moving[:1], "red"), "last picture": (moving[-1:], "red"), "video": (video, "orange")}
    for name, (frames, colour) in shown.items():
        file = folder / INPUTS[name]
        _write_png(file, frames)
        _mask(frames, colour).save(file.with_name(file.stem + MASK_SUFFIX), optimize=True)
    _write_clips(folder / CLIPS_FOLDER.relative_to(EXAMPLES))
    files = filter(Path.is_file, published_below(folder, ""))
    (folder / SUMS).write_text(sums_of(folder, files), "utf-8", newline="\n")


def _write_png(file: Path, frames: np.ndarray) -> None:
    """frames: [F, H, W, 3] in 0 .. 255; several become an animated PNG."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    if others:
        first.save(file, save_all=True, append_images=others, duration=round(1000 / FPS), loop=0)
    else:
        first.save(file, optimize=True)


def _mask(frames: np.ndarray, colour: str) -> Image.Image:
    """White around the shape in every frame, black elsewhere."""
    near = np.abs(frames.astype(int) - np.array(rgb(colour))).max(axis=-1).min(axis=0) < 40
    return Image.fromarray(near.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * _MARGIN_PX + 1))


def _write_clips(folder: Path) -> None:
    folder.mkdir()
    for number in range(CLIP_COUNT):
        rng = np.random.default_rng([SEED, number])
        scene = draw_scene(rng, colour="pink")
        text = caption(scene, rng)
        _write_mp4(folder / f"clip_{number:02d}.mp4", render(scene, rng, FRAMES))
        (folder / f"clip_{number:02d}.txt").write_text(text, "utf-8")


def _write_mp4(file: Path, frames: np.ndarray) -> None:
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = SIDE_PX, SIDE_PX, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    write_examples(EXAMPLES)
