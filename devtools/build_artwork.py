"""Draw the pack's icon and banner for the Comfy Registry, docs/icon.png and docs/banner.png.

    python -m cogvideox.devtools.build_artwork

Both are a film strip of frames that CogVideoX-nano has made, cut out of docs/nano.png: after a change of that picture
they are to be drawn again. Needs neither ComfyUI nor a model.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import COLUMNS, GAP
from .paths import ROOT

SHEET, ICON, BANNER = (ROOT / "docs" / name for name in ("nano.png", "icon.png", "banner.png"))
# The Registry takes an icon of 800 x 400 at most, and shows it square; a banner is 21:9.
ICON_PX, BANNER_PX = 400, (1260, 540)
_FILM, _INK = (24, 24, 28), (238, 238, 238)
_COLOURS = 96  # of the palette
_NAME, _LINE = "CogVideoX", "videos from text, images and videos in ComfyUI"


def read_frames(sheet: Path = SHEET) -> list[list[Image.Image]]:
    """The frames of a contact sheet, row by row."""
    with Image.open(sheet) as opened:
        picture = opened.convert("RGB")
    side = (picture.width + GAP) // COLUMNS - GAP
    tops = range(0, picture.height, side + GAP)
    lefts = range(0, picture.width, side + GAP)
    return [[picture.crop((left, top, left + side, top + side)) for left in lefts] for top in tops]


def draw_icon(rows: list[list[Image.Image]]) -> Image.Image:
    """One frame between the holes of a film."""
    icon = Image.new("RGB", (ICON_PX, ICON_PX), _FILM)
    edge = ICON_PX // 8
    side = ICON_PX - 2 * edge
    icon.paste(rows[0][2].resize((side, side), Image.Resampling.LANCZOS), (edge, edge))
    draw = ImageDraw.Draw(icon)
    for middle in range(edge // 2, ICON_PX, edge):
        for across in (edge // 2, ICON_PX - edge // 2):
            _hole(draw, across, middle, edge)
    return icon


def draw_banner(rows: list[list[Image.Image]]) -> Image.Image:
    """The name above a film with frames of a video from a prompt and of one from a picture."""
    width, height = BANNER_PX
    banner = Image.new("RGB", BANNER_PX, _FILM)
    draw = ImageDraw.Draw(banner)
    draw.text((width // 2, 92), _NAME, _INK, ImageFont.load_default(104), "mm")
    draw.text((width // 2, 172), _LINE, _INK, ImageFont.load_default(32), "mm")
    edge, gap = 36, 12
    chosen = [*rows[0][::2], *rows[1][1::2]]
    side = (width - (len(chosen) + 1) * gap) // len(chosen)
    top = height - edge - side - gap
    for number, frame in enumerate(chosen):
        banner.paste(frame.resize((side, side), Image.Resampling.LANCZOS), (gap + number * (side + gap), top))
    for middle in range(edge // 2, width, edge):
        for across in (top - edge // 2 - gap // 2, height - edge // 2):
            _hole(draw, middle, across, edge)
    return banner


def _hole(draw: ImageDraw.ImageDraw, x: int, y: int, edge: int) -> None:
    half = edge // 5
    draw.rounded_rectangle((x - half, y - half, x + half, y + half), half // 2, _INK)


def main() -> None:
    rows = read_frames()
    for file, picture in ((ICON, draw_icon(rows)), (BANNER, draw_banner(rows))):
        picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
        print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
