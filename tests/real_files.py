"""Pictures and videos as users have them: every format, colour type and size, and files that are broken."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 210), (200, 200, 190))  # of the quarters, row by row
LEVEL_STEP = 20  # frame i of a video has this grey level i times


def quarters(width: int, height: int) -> np.ndarray:
    """Four quarters of four colours, which show how a picture was turned, cut or stretched: uint8 [H, W, 3]."""
    right, below = np.arange(width) >= width / 2, np.arange(height) >= height / 2
    return np.array(COLOURS, dtype=np.uint8)[2 * below[:, None] + right[None]]


def write_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Write one picture of every kind; returns name -> what a viewer shows, uint8 [H, W, 3]."""
    shown = {}

    def write(name: str, picture: Image.Image, seen: np.ndarray, **options: Any) -> None:
        picture.save(folder / name, **options)
        shown[name] = seen

    plain = quarters(500, 300)
    grey = np.asarray(Image.fromarray(plain).convert("L"))
    seen_grey = np.repeat(grey[:, :, None], 3, axis=2)
    alpha = np.tile(np.linspace(255, 30, 500, dtype=np.uint8), (300, 1))  # nowhere 0: some tools drop colours there
    write("rgb.png", Image.fromarray(plain), plain)
    write("alpha.png", Image.fromarray(np.dstack([plain, alpha])), plain)
    write("palette.png", Image.fromarray(plain).quantize(16), plain)
    write("grey.png", Image.fromarray(grey), seen_grey)
    write("grey16.png", Image.fromarray(grey.astype(np.uint16) * 257), seen_grey)
    write("grey.jpg", Image.fromarray(grey), seen_grey, quality=95)
    for width, height, name in ((1, 1, "one.png"), (3000, 1, "line.png"), (333, 517, "upright.webp")):
        write(name, Image.fromarray(quarters(width, height)), quarters(width, height))
    write("photo.jpg", Image.fromarray(quarters(4000, 3000)), quarters(4000, 3000), quality=90)
    # EXIF orientation: how the viewer has to turn what is stored -> what is stored, of the same upright picture
    for orientation, stored in ((3, np.rot90(plain, 2)), (6, np.rot90(plain, 1)), (8, np.rot90(plain, -1))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        write(f"turned{orientation}.jpg", Image.fromarray(stored), plain, exif=exif, quality=95)
    return shown


def write_videos(folder: Path) -> dict[str, int]:
    """Write videos of 100 x 70 pixels whose frames get brighter by LEVEL_STEP; returns name -> count of frames."""
    gaps = [1, 3, 1, 2, 5, 1, 1, 4, 2, 1, 1]  # between the frames of a variable rate
    videos = {
        "even.mp4": ("libx264", [1] * 10),
        "variable.mp4": ("libx264", gaps),
        "vp8.webm": ("libvpx", [1] * 7),
        "vp9-variable.webm": ("libvpx-vp9", gaps[:9]),
    }
    for name, (codec, durations) in videos.items():
        write_video(folder / name, codec, durations)
    frames = [Image.fromarray(_level(i)) for i in range(6)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=[100, 40, 200, 40, 40, 90])
    return {name: len(durations) for name, (_, durations) in videos.items()} | {"moving.gif": len(frames)}


def write_video(path: Path, codec: str, durations: list[int]) -> None:
    """One frame for each of `durations`, in eighths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 100, 70, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 8)
        time = 0
        for i, duration in enumerate(durations):
            frame = av.VideoFrame.from_ndarray(_level(i), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 8)
            container.mux(stream.encode(frame))
            time += duration
        container.mux(stream.encode())


def write_broken(folder: Path) -> dict[str, str]:
    """Write files that hold less than their names say; returns name -> what is wrong. Needs the good ones there."""
    image, video = (folder / "photo.jpg").read_bytes(), (folder / "even.mp4").read_bytes()
    frames, index = video.index(b"mdat") + 4, video.index(b"moov") - 4
    broken = {
        "empty.png": (b"", "zero bytes"),
        "cut.jpg": (image[: len(image) // 3], "a download that stopped"),
        "text.png": (b"<html>Not found</html>", "an error page under a picture's name"),
        "empty.mp4": (b"", "zero bytes"),
        "cut.mp4": (video[:index], "a download that stopped before the index"),
        "no-frames.mp4": (video[:frames] + bytes(index - frames) + video[index:], "an index whose frames are lost"),
    }
    for name, (data, _) in broken.items():
        (folder / name).write_bytes(data)
    return {name: wrong for name, (_, wrong) in broken.items()}


def _level(index: int) -> np.ndarray:
    return np.full((70, 100, 3), LEVEL_STEP * (index + 1), dtype=np.uint8)
