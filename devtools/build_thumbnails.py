"""Make the pictures of the templates, example_workflows/*.jpg, of what they take and make.

    python -m cogvideox.devtools.build_thumbnails [NAME ...]

Each template of the toy runs on a real server as it is. Above is what goes in: the example's pictures, the first frames
of the clips to train with, or the prompt; below, frames of the video. The picture of a template for a real checkpoint
says what it needs, because nothing that such a checkpoint has made is here to be shown. Needs COMFYUI_PATH; after a
change of the toy or of a template.
"""

import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cogvideox.host.toy import CLIPS, CLIPS_FOLDER, EXAMPLES, INPUTS, MASK_SUFFIX

from . import client
from .comfyui import prepare_base
from .errors import DevError
from .example_workflows import EXAMPLES as WORKFLOWS
from .example_workflows import file_name
from .named import chosen_by_name
from .paths import PACK_NAME, ROOT, TEMPLATES
from .run_workflow import client_format
from .server import Server, running_server

SIDE_PX, _GAP_PX = 512, 8  # of a card, between its tiles
_TILES, _TILES_OF_LONG, _LONG_FRAMES = 3, 5, 18  # tiles in a row; of a video of so many frames or more
_BACKGROUND, _INK, _ARROW = (24, 24, 24), (235, 235, 235), (120, 120, 120)
_LETTERS, _FONT_PX = 34, 26  # of a line of a prompt


def build(name: str, server: Server) -> Image.Image:
    """The card of a template. Raises: DevError where it does not run to its end."""
    api = client_format(TEMPLATES / f"{name}.json", server.url)
    result = client.run_workflow(server.url, api)
    if result.error is not None:
        raise DevError(f"The template {name} did not run to its end: {result.error}")
    (video,) = (file for file in result.files(server.output) if file.suffix == ".mp4")
    frames = _read_video(video)
    return card(list(_inputs(api)), _spread(frames, _TILES_OF_LONG if len(frames) >= _LONG_FRAMES else _TILES))


def card(given: Sequence[Image.Image | str], made: Sequence[Image.Image]) -> Image.Image:
    """A square picture: a row of what goes in, pictures or prompts, above a row of frames of what comes out."""
    canvas = Image.new("RGB", (SIDE_PX, SIDE_PX), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    middle = SIDE_PX // 2
    texts = [textwrap.fill(text, _LETTERS) for text in given if isinstance(text, str)]
    pictures = [picture for picture in given if isinstance(picture, Image.Image)][:_TILES]
    if texts:
        place = (middle, middle // 2)
        draw.multiline_text(
            place, "\n\n".join(texts), _INK, ImageFont.load_default(_FONT_PX), "mm", spacing=6, align="center"
        )
    _paste_row(canvas, pictures, middle - 24 - _tile_px(_TILES))
    draw.polygon([(middle - 16, middle - 10), (middle + 16, middle - 10), (middle, middle + 10)], _ARROW)
    _paste_row(canvas, made, middle + 24)
    return canvas


def download_card(needs: str) -> Image.Image:
    """A square picture of a template that runs after a download. needs: the model, then a line for each other thing."""
    canvas = Image.new("RGB", (SIDE_PX, SIDE_PX), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    middle, top = SIDE_PX // 2, 96
    draw.rectangle([middle - 12, top, middle + 12, top + 44], _ARROW)
    draw.polygon([(middle - 36, top + 44), (middle + 36, top + 44), (middle, top + 84)], _ARROW)
    draw.rectangle([middle - 60, top + 100, middle + 60, top + 110], _ARROW)
    model, *rest = needs.splitlines()
    for text, size_px, height in ((textwrap.fill(model, 24), 36, 286), ("\n".join(rest), _FONT_PX, 392)):
        font = ImageFont.load_default(size_px)
        draw.multiline_text((middle, height), text, _INK, font, "mm", spacing=10, align="center")
    return canvas


def _tile_px(count: int) -> int:
    return (SIDE_PX - (count - 1) * _GAP_PX) // count


def _paste_row(canvas: Image.Image, pictures: Sequence[Image.Image], top: int) -> None:
    side = _tile_px(max(_TILES, len(pictures)))
    left = (SIDE_PX - len(pictures) * (side + _GAP_PX) + _GAP_PX) // 2
    for number, picture in enumerate(pictures):
        tile = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(tile, (left + number * (side + _GAP_PX), top))


def _inputs(api: dict) -> Iterator[Image.Image | str]:
    """What a person gives a template: pictures, frames of a video, its mask or its edges, clips; else the prompts."""
    nodes = list(api.values())
    links = [value for node in nodes for value in node["inputs"].values() if isinstance(value, list)]
    shown = False
    for id_, node in api.items():
        if node["class_type"] == "CogVideoXExample":
            shown = True
            file = EXAMPLES / INPUTS[node["inputs"]["example"]]
            frames = _read_frames(file)
            if any(other["class_type"] == "Canny" for other in nodes):
                frames = [_edges(frame) for frame in frames]
            is_masked = [id_, 1] in links
            yield from _spread(frames, _TILES - is_masked) if len(frames) > 1 else frames
            if is_masked:
                yield Image.open(file.with_name(file.stem + MASK_SUFFIX))
        elif node["class_type"] == "LoadImage":
            shown = True
            yield Image.open(Path(os.environ["COMFYUI_PATH"]) / "input" / node["inputs"]["image"])
        elif node["class_type"] == "CogVideoXTrainingClips" and node["inputs"]["folder"] == CLIPS:
            shown = True
            yield from (_read_video(clip)[0] for clip in sorted(CLIPS_FOLDER.glob("clip_*.mp4"))[:_TILES])
    if not shown:
        texts = [node["inputs"]["text"] for node in nodes if node["class_type"] == "CogVideoXEncodeText"]
        yield from dict.fromkeys(text for text in texts if text)


def _edges(frame: Image.Image) -> Image.Image:
    """About what Canny finds of a picture of plain colours."""
    pixels = np.asarray(frame.convert("RGB")).astype(int)
    steps = [np.abs(np.diff(pixels, axis=axis, append=pixels.take([-1], axis))).max(-1) for axis in (0, 1)]
    return Image.fromarray(np.where(np.maximum(*steps) > 60, 255, 0).astype(np.uint8))


def _read_frames(file: Path) -> list[Image.Image]:
    with Image.open(file) as picture:
        frames = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            frames.append(picture.convert("RGB"))
    return frames


def _read_video(file: Path) -> list[Image.Image]:
    with av.open(str(file)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def _spread(frames: list[Image.Image], count: int) -> list[Image.Image]:
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def main(names: Sequence[str]) -> None:
    """Write the pictures of the templates called `names`, of all if there are none. Raises: DevError."""
    chosen = chosen_by_name(WORKFLOWS, names, "template")
    for template in chosen:
        if template.needs:
            _save(download_card(template.needs), file_name(template))
    toys = [file_name(template) for template in chosen if not template.needs]
    if not toys:
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        prepare_base(base, ROOT, PACK_NAME)
        host = Path(os.environ["COMFYUI_PATH"])
        shutil.copy(host / "input" / "example.png", base / "input")  # as in every ComfyUI
        with running_server(host, base, log=base / "server.log", cpu=True) as server:
            for name in toys:
                _save(build(name, server), name)


def _save(picture: Image.Image, name: str) -> None:
    picture.save(TEMPLATES / f"{name}.jpg", quality=90, optimize=True)
    print(f"{name}.jpg", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DevError as error:
        sys.exit(f"error: {error}")
