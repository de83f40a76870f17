"""The synthetic world of CogVideoX-nano: coloured shapes that move over plain or shaded backgrounds.

Everything is drawn by code: nobody owns it, there is as much of it as training asks for, and what a clip shows is known
exactly.
"""

import itertools
import zlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import ndimage

FPS = 8
SHAPES = ("circle", "square", "triangle", "star")
# sRGB in 0 .. 255, far from one another.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (245, 225, 50),
    "orange": (245, 135, 30),
    "purple": (145, 50, 190),
    "cyan": (60, 215, 225),
    "white": (245, 245, 245),
}
# Absent from every training clip, so that one can see whether a LoRA has taught it.
TAUGHT = {"pink": (250, 120, 190)}
SIZES = {"small": 12.0, "large": 17.0}  # nominal radius in pixels
MOTIONS = ("left", "right", "up", "down", "bouncing", "rotating", "growing")
# The direction along x (right) and y (down).
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
HELD_OUT_SHARE = 0.125
_MARGIN = 2.0  # pixels between a shape and the picture's edge
_REACH = {"circle": 0.9, "square": 1.14, "triangle": 1.2, "star": 1.1}  # farthest corner in radii
# Pixels between the positions where a path can begin. It is the size of a transformer's patch: with few different
# patches to learn, the transformer got shapes right earlier.
GRID = 16.0
_MIN_CONTRAST = 70.0  # between a shape and any part of its background, a distance in RGB
# The largest step of a frame: the VAE encodes four frames together, and they should differ little.
_MAX_TRAVEL_PX, _MAX_DROP_PX = 2.2, 1.3
_MAX_TURN_STEP, _TURN = np.deg2rad(7.5), np.deg2rad(120)
_BOX_MARGIN_PX = 4
_LEAST_DIFFERENCE = 24  # between a shape and its background, in one colour channel of 0 .. 255
GROWTH = (0.6, 1.35)  # a growing shape's first and last radius, in radii of its size


@dataclass(frozen=True)
class Scene:
    """What a caption says about a clip. background: the name of one colour, or of two from top to bottom."""

    shape: str
    colour: str
    size: str
    motion: str
    background: tuple[str, ...]


def combinations() -> list[tuple[str, str, str, str]]:
    """Every possible (shape, colour, size, motion), except rotating circles, which look the same as resting ones."""
    return [c for c in itertools.product(SHAPES, COLOURS, SIZES, MOTIONS) if (c[0], c[3]) != ("circle", "rotating")]


def is_held_out(combination: tuple[str, str, str, str]) -> bool:
    """Whether no training clip shows this (shape, colour, size, motion): one in eight, by a fixed hash."""
    return zlib.crc32(" ".join(combination).encode()) % 1000 < 1000 * HELD_OUT_SHARE


@cache
def _combinations(held_out: bool) -> list[tuple[str, str, str, str]]:
    return [c for c in combinations() if is_held_out(c) == held_out]


def draw_scene(rng: np.random.Generator, held_out: bool = False, colour: str | None = None) -> Scene:
    """A random scene: its combination from those for training, or from those held out.

    colour: replaces the shape's colour, for example by one of TAUGHT.
    """
    chosen = _combinations(held_out)
    shape, drawn, size, motion = chosen[rng.integers(len(chosen))]
    colour = colour or drawn
    fitting = _backgrounds(colour, 1 if rng.random() < 0.6 else 2)
    return Scene(shape, colour, size, motion, fitting[rng.integers(len(fitting))])


@cache
def _backgrounds(colour: str, count: int) -> list[tuple[str, ...]]:
    """The backgrounds of `count` colours that a shape of `colour` stands out from."""
    shares = np.linspace(0, 1, 65)[:, None]
    shades = ((names, _shade(names, shares)) for names in itertools.permutations(COLOURS, count))
    return [names for names, shade in shades if _contrast(shade, colour) >= _MIN_CONTRAST]


def recolour(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a shape of another colour that stands out from its background."""
    fitting = [name for name in COLOURS if name != scene.colour and scene.background in _backgrounds_of(name)]
    return replace(scene, colour=fitting[rng.integers(len(fitting))])


def _backgrounds_of(colour: str) -> list[tuple[str, ...]]:
    return [*_backgrounds(colour, 1), *_backgrounds(colour, 2)]


def _contrast(shade: np.ndarray, colour: str) -> float:
    return float(np.linalg.norm(shade - np.array(rgb(colour)), axis=-1).min())


def rgb(colour: str) -> tuple[int, int, int]:
    """A colour of COLOURS or TAUGHT, 0 .. 255."""
    return COLOURS[colour] if colour in COLOURS else TAUGHT[colour]


def render(
    scene: Scene, rng: np.random.Generator, frames: int, width: int = 64, height: int = 64, grid: float = GRID
) -> np.ndarray:
    """The scene as pixels: [frames, height, width, 3] in 0 .. 255, uint8. `rng` draws where the path begins.

    A motion takes the whole clip; in a short clip the shape covers only the part of its path that it reaches at its
    largest step a frame.
    grid: pixels between the positions where a path can begin.
    """
    time = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    radius = SIZES[scene.size] * _growth(scene, time)
    x, y = _path(scene, rng, time, radius.max() * _REACH[scene.shape], width, height, grid)
    angle = _angle(scene, time)
    coverage = shape_coverage(scene.shape, x, y, radius, angle, width, height)[..., None]
    colour = np.array(rgb(scene.colour), dtype=np.float32)
    picture = coverage * colour + (1 - coverage) * _background(scene, width, height)
    return np.rint(picture).astype(np.uint8)


def _growth(scene: Scene, time: np.ndarray) -> np.ndarray:
    first, last = GROWTH if scene.motion == "growing" else (1.0, 1.0)
    return first + (last - first) * time


def _path(
    scene: Scene, rng: np.random.Generator, time: np.ndarray, reach: float, width: int, height: int, grid: float
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the shape's centre in every frame, in pixels."""
    room = np.array([width, height]) - 2 * (reach + _MARGIN)
    steps = len(time) - 1
    course = np.zeros((2, len(time)))  # relative to the leftmost and topmost point of the path
    if scene.motion in DIRECTIONS:
        signs = np.array(DIRECTIONS[scene.motion])[:, None]
        course = np.where(signs < 0, 1 - time, time) * abs(signs) * np.minimum(room, _MAX_TRAVEL_PX * steps)[:, None]
    elif scene.motion == "bouncing":
        bounces = max(1, round(steps / 16))
        # From the top down and back up.
        course[1] = min(room[1], _MAX_DROP_PX * steps / bounces) * (0.5 - 0.5 * np.cos(2 * np.pi * bounces * time))
    starts = np.floor((room - course.max(axis=1)) / grid + 1e-6) + 1  # the number of possible ones, along x and y
    first = reach + _MARGIN + grid * np.floor(rng.random(2) * starts)
    x, y = first[:, None] + course
    return x, y


def _angle(scene: Scene, time: np.ndarray) -> np.ndarray:
    """Radians. Shapes are upright; those that rotate begin upright and make a third of a turn in a clip."""
    if scene.motion != "rotating":
        return np.zeros_like(time)
    return min(_TURN, _MAX_TURN_STEP * (len(time) - 1)) * time


def path_box(clip: np.ndarray) -> np.ndarray:
    """[height, width], True in the box around all that a clip's shape passes over, and some pixels around it.

    clip: [frames, height, width, 3] in 0 .. 255. A shape never touches the left edge, so that each row's first pixel is
    its background.
    """
    differs = np.abs(clip.astype(np.int16) - clip[:, :, :1]).max(axis=(0, 3)) > _LEAST_DIFFERENCE
    grown = ndimage.binary_dilation(differs, iterations=_BOX_MARGIN_PX)
    rows, columns = np.flatnonzero(grown.any(axis=1)), np.flatnonzero(grown.any(axis=0))
    box = np.zeros_like(grown)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def shape_coverage(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, angle: np.ndarray, width: int, height: int
) -> np.ndarray:
    """How much of each pixel the shape covers, [frames, height, width] in 0 .. 1, smooth over one pixel."""
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    dx = columns[None, None, :] - x[:, None, None]
    dy = rows[None, :, None] - y[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    distance = _DISTANCES[shape](cos * dx + sin * dy, cos * dy - sin * dx, radius[:, None, None])
    return np.clip(0.5 - distance, 0.0, 1.0)


def _background(scene: Scene, width: int, height: int) -> np.ndarray:
    """[height, width, 3] in 0 .. 255: one colour, or a linear gradient from the first at the top to the second."""
    shares = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None, None]
    return np.broadcast_to(_shade(scene.background, shares), (height, width, 3))


def _shade(names: tuple[str, ...], shares: np.ndarray) -> np.ndarray:
    """The colour at `shares` (0 .. 1, last axis 1) of the way from the first to the last of `names`."""
    top, bottom = (np.array(rgb(name), dtype=np.float32) for name in (names[0], names[-1]))
    return top + (bottom - top) * shares


# Signed distances in pixels to the outline, negative inside; x to the right, y down, r the circumradius.


def _circle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.9 * r


def _square(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8 * r


def _triangle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    sides = [np.cos(a) * x + np.sin(a) * y for a in np.deg2rad([90, 210, 330])]
    return np.maximum(np.maximum(sides[0], sides[1]), sides[2]) - 0.6 * r


def _star(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Five points; the inner corners lie at 0.42 of the circumradius."""
    tenth = np.pi / 5
    turned = np.arctan2(x, -y) % (2 * tenth)  # 0 at a point, tenth at an inner corner
    turned = np.minimum(turned, 2 * tenth - turned)
    distance = np.hypot(x, y)
    px, py = distance * np.cos(turned), distance * np.sin(turned)
    # The distance to the edge from the tip at (1.1 r, 0) to the inner corner.
    tip, inner = 1.1 * r, 0.46 * r
    ex, ey = inner * np.cos(tenth) - tip, inner * np.sin(tenth)
    return ((px - tip) * -ey + py * ex) / np.hypot(ex, ey) * -1


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
