"""What a clip of the nano world shows, read off its pixels by fixed rules: nothing here is learned.

The rules tolerate what a small diffusion model does to a picture: soft edges, colours a little off, flicker, faint
ghosts. An attribute that they cannot find is None.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage, stats

from . import world

# Colours are compared in sRGB, 0 .. 255; the closest two of the world's are 92 apart.
_MAX_COLOUR_DISTANCE = 90.0  # to the nearest name; a colour farther from all of them has no name
_MIN_CONTRAST = 30.0  # between a shape and the background
_MIN_AREA = 16  # pixels, half of the smallest shape that the world draws
_MIN_OVERLAP = 0.6  # with a shape's ideal outline, intersection over union
_MIN_PATH = 0.12  # of the picture's shorter side; the world's shortest path is 0.28
_MAX_DEVIATION = 0.2  # from a steady motion, RMS over the path's length; random positions deviate by more than 1
_MIN_GROWTH = 1.4  # last radius over first; the world's is 2.25
_MIN_TURN = 45.0  # degrees in a clip; the world's is 120
_FITTED_FRAMES = 13  # outlines are compared in this many frames, evenly spread
# Degrees after which a shape looks the same.
_PERIODS = {"circle": 0.0, "square": 90.0, "triangle": 120.0, "star": 72.0}
_SOFTNESS = (0.0, 0.8, 1.6)  # pixels, the blur of the outlines tried
_TILT, _ANGLE_STEP = 6.0, 6.0  # degrees: how far an upright shape may lean; between the angles tried


@dataclass(frozen=True)
class Reading:
    """What was read. background: one colour's name, or two from top to bottom."""

    shape: str | None
    colour: str | None
    size: str | None
    motion: str | None
    background: tuple[str, ...] | None


@dataclass(frozen=True)
class _Track:
    """The shape in the frames that show one. frames: their numbers; x, y: centres in pixels; area in pixels."""

    frames: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray
    coverage: np.ndarray  # [len(frames), H, W] in 0 .. 1, 0 away from the shape


def read_clip(frames: np.ndarray) -> Reading:
    """Read a clip, [F, H, W, 3], uint8 in 0 .. 255 or float in 0 .. 1.

    Raises ValueError for another shape of array.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.shape[0]:
        raise ValueError(f"A clip is [frames, height, width, 3]; this one is {list(frames.shape)}.")
    pixels = frames.astype(np.float32)
    if frames.dtype != np.uint8:
        pixels = np.nan_to_num(pixels).clip(0, 1) * 255
    backdrop = _background(pixels)
    background = _names(backdrop[0, 0], backdrop[-1, 0])
    colour = _shape_colour(pixels, backdrop)
    track = None if colour is None else _track(pixels, backdrop, colour)
    if colour is None or track is None:
        return Reading(None, None, None, None, background)
    motion = _path_motion(track, pixels.shape)
    shape, turn = _shape(track, upright=motion is not None)
    if motion is None and shape is not None and turn >= _MIN_TURN:
        motion = "rotating"
    size = None if shape is None else _size(track, shape, motion)
    return Reading(shape, _name(colour), size, motion, background)


def _name(colour: np.ndarray) -> str | None:
    """The name of the nearest of the world's colours, which include the one for LoRAs; None if all are far."""
    named = {**world.COLOURS, **world.TAUGHT}
    distances = {name: float(np.linalg.norm(colour - value)) for name, value in named.items()}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] < _MAX_COLOUR_DISTANCE else None


def _names(top: np.ndarray, bottom: np.ndarray) -> tuple[str, ...] | None:
    first, last = _name(top), _name(bottom)
    if first is None or last is None:
        return None
    return (first,) if first == last else (first, last)


def _background(pixels: np.ndarray) -> np.ndarray:
    """[H, 1, 3]: a linear fit through the colours of the outermost columns, where shapes seldom are."""
    height, width = pixels.shape[1:3]
    edge = max(1, width // 32)
    columns = np.concatenate([pixels[:, :, :edge], pixels[:, :, -edge:]], axis=2)
    rows = np.median(columns, axis=(0, 2))
    if height == 1:
        return rows[:, None]
    # The Theil-Sen estimator, since a shape may hide a quarter of the rows: least squares would follow the shape.
    lines = []
    for channel in range(3):
        fit: Any = stats.theilslopes(rows[:, channel])
        lines.append(fit.intercept + fit.slope * np.arange(height))
    return np.stack(lines, axis=-1)[:, None].astype(np.float32)


def _shape_colour(pixels: np.ndarray, backdrop: np.ndarray) -> np.ndarray | None:
    """The median colour of what stands out most, away from its edges."""
    distance = np.linalg.norm(pixels - backdrop, axis=-1)
    # Frame by frame: on a shaded background the contrast of a moving shape changes.
    strongest = np.sort(distance.reshape(len(distance), -1), axis=1)[:, -2 * _MIN_AREA :].mean(axis=1)
    bold: np.ndarray = distance > np.maximum(0.8 * strongest, _MIN_CONTRAST)[:, None, None]
    across = np.ones((1, 3, 3), bool)
    inner: np.ndarray = ndimage.binary_erosion(bold, across)
    chosen = inner if inner.sum() >= _MIN_AREA else bold
    return np.median(pixels[chosen], axis=0) if chosen.sum() >= _MIN_AREA else None


def _track(pixels: np.ndarray, backdrop: np.ndarray, colour: np.ndarray) -> _Track | None:
    """Find the shape frame by frame: the largest patch nearer to its colour than to the background's."""
    ahead = colour - backdrop
    contrast = np.maximum((ahead**2).sum(-1), _MIN_CONTRAST**2)
    coverage = (((pixels - backdrop) * ahead).sum(-1) / contrast).clip(0, 1)
    found = []
    for number, frame in enumerate(coverage):
        patches = np.empty(frame.shape, np.int32)
        count = ndimage.label(frame > 0.5, output=patches)
        areas = np.bincount(patches.ravel(), minlength=2)[1:]
        if count and areas.max() >= _MIN_AREA:
            # Three more pixels on every side include the soft edge, and a star's points that have faded into it.
            shape = frame * ndimage.binary_dilation(patches == 1 + areas.argmax(), iterations=3)
            y, x = np.asarray(ndimage.center_of_mass(shape)) + 0.5
            found.append((number, x, y, shape.sum(), shape))
    if 2 * len(found) < len(pixels):
        return None
    numbers, x, y, area, shapes = map(np.array, zip(*found))
    return _Track(numbers, x, y, area.astype(float), shapes)


def _path_motion(track: _Track, clip: tuple[int, ...]) -> str | None:
    """The motion that the centres and areas show; None for a shape that neither moves nor grows."""
    if len(track.frames) < 2:
        return None
    least = _MIN_PATH * min(clip[1:3])
    x_range, y_range = np.ptp(track.x), np.ptp(track.y)
    lowest = track.y.argmax()
    fall, rise = (track.y[lowest] - part.min() for part in (track.y[: lowest + 1], track.y[lowest:]))
    if y_range > max(least, 2 * x_range) and min(fall, rise) > 0.5 * y_range:
        return "bouncing"
    fits = [np.polyfit(track.frames, centre, 1) for centre in (track.x, track.y)]
    net = np.array([fit[0] for fit in fits]) * (track.frames[-1] - track.frames[0])
    deviations = [np.polyval(fit, track.frames) - centre for fit, centre in zip(fits, (track.x, track.y))]
    across, along = sorted(abs(net))
    if along > max(least, 2 * across) and np.sqrt(np.mean(np.square(deviations))) < _MAX_DEVIATION * along:
        heading = tuple(int(sign) for sign in np.sign(net) * (abs(net) == along))
        return next(name for name, direction in world.DIRECTIONS.items() if direction == heading)
    some = max(1, len(track.frames) // 5)
    growth = np.sqrt(np.median(track.area[-some:]) / np.median(track.area[:some]))
    return "growing" if growth > _MIN_GROWTH and along <= least else None


def _shape(track: _Track, upright: bool) -> tuple[str | None, float]:
    """(the shape whose outline fits best, by how many degrees it turns in the clip)"""
    chosen = np.unique(np.linspace(0, len(track.frames) - 1, _FITTED_FRAMES).round().astype(int))
    best, overlap, turn = None, _MIN_OVERLAP, 0.0
    for shape, period in _PERIODS.items():
        # A shape that does not move may rotate: every angle is tried.
        tried = np.array([-_TILT, 0.0, _TILT]) if upright else np.arange(0, period, _ANGLE_STEP)
        for fits in _overlaps(track, chosen, shape, tried if period else np.zeros(1)):
            # Larger patches are the more reliable ones.
            mean = np.average(fits.max(axis=1), weights=track.area[chosen])
            if mean > overlap:
                best, overlap, turn = shape, mean, 0.0
                if period and not upright:
                    angles = np.unwrap(tried[fits.argmax(axis=1)], period=period)
                    turn = abs(angles[-1] - angles[0])
    return best, turn


def _overlaps(track: _Track, chosen: np.ndarray, shape: str, angles: np.ndarray) -> np.ndarray:
    """Intersection over union with the ideal shape of the same centre and area, by softness:
    [len(_SOFTNESS), len(chosen), len(angles)]."""
    found = track.coverage[chosen]
    height, width = found.shape[1:]
    x, y, radius = track.x[chosen], track.y[chosen], np.sqrt(track.area[chosen] / _area_of(shape))
    fits = np.empty((len(_SOFTNESS), len(chosen), len(angles)))
    for column, angle in enumerate(np.deg2rad(angles)):
        sharp = world.shape_coverage(shape, x, y, radius, np.full_like(x, angle), width, height)
        for row, softness in enumerate(_SOFTNESS):
            ideal = ndimage.gaussian_filter(sharp, (0, softness, softness)) if softness else sharp
            fits[row, :, column] = np.minimum(found, ideal).sum((1, 2)) / np.maximum(found, ideal).sum((1, 2))
    return fits


@cache
def _area_of(shape: str) -> float:
    """The area of a shape of radius 1."""
    centre, radius, angle = np.full(1, 32.0), np.full(1, 20.0), np.zeros(1)
    return float(world.shape_coverage(shape, centre, centre, radius, angle, 64, 64).sum()) / 400


def _size(track: _Track, shape: str, motion: str | None) -> str:
    radius = np.sqrt(np.median(track.area) / _area_of(shape))
    if motion == "growing":
        radius /= np.mean(world.GROWTH)
    return min(world.SIZES, key=lambda name: abs(np.log(radius / world.SIZES[name])))
