"""What a clip of the nano world shows, read off its pixels by fixed rules: nothing here is learned.

The rules allow for what a small diffusion model does to a picture: soft edges, colours a little off, flicker, faint
ghosts. What they cannot find is None.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, stats

from . import world

# colours are compared in sRGB, 0 .. 255; the closest two of the world's are 92 apart
_FAR_COLOUR = 90.0  # from the nearest name: a colour that has none
_LEAST_CONTRAST = 30.0  # between a shape and what is behind it
_LEAST_AREA = 16  # pixels, half of the smallest shape the world draws
_LEAST_OVERLAP = 0.6  # with a shape's ideal outline, intersection over union
_LEAST_PATH = 0.12  # of the picture's shorter side; the world's shortest way is 0.28
_MOST_STRAYING = 0.2  # from a steady way, RMS over the way's length; random places stray by more than the length
_LEAST_GROWTH = 1.4  # last radius over first; the world's is 2.25
_LEAST_TURN = 45.0  # degrees in a clip; the world's is 120
_FITTED_FRAMES = 13  # outlines are compared in so many frames, evenly spread
# degrees after which a shape looks the same
_PERIODS = {"circle": 0.0, "square": 90.0, "triangle": 120.0, "star": 72.0}
_SOFTNESS = (0.0, 0.8, 1.6)  # pixels, the blur of the outlines tried
_TILT, _ANGLE_STEP = 6.0, 6.0  # degrees: an upright shape may lean so much; between angles tried


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
    behind = _background(pixels)
    background = _names(behind[0, 0], behind[-1, 0])
    colour = _shape_colour(pixels, behind)
    track = None if colour is None else _track(pixels, behind, colour)
    if track is None:
        return Reading(None, None, None, None, background)
    motion = _path_motion(track, pixels.shape)
    shape, turn = _shape(track, upright=motion is not None)
    if motion is None and shape is not None and turn >= _LEAST_TURN:
        motion = "rotating"
    size = None if shape is None else _size(track, shape, motion)
    return Reading(shape, None if colour is None else _name(colour), size, motion, background)


def _name(colour: np.ndarray) -> str | None:
    """The nearest of the world's colours, the one that LoRAs teach among them."""
    distances = {
        name: float(np.linalg.norm(colour - value)) for name, value in {**world.COLOURS, **world.TAUGHT}.items()
    }
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] < _FAR_COLOUR else None


def _names(top: np.ndarray, bottom: np.ndarray) -> tuple[str, ...] | None:
    first, last = _name(top), _name(bottom)
    if first is None or last is None:
        return None
    return (first,) if first == last else (first, last)


def _background(pixels: np.ndarray) -> np.ndarray:
    """[H, 1, 3]: a straight line through the colours of the outermost columns, where shapes seldom are."""
    height, width = pixels.shape[1:3]
    edge = max(1, width // 32)
    columns = np.concatenate([pixels[:, :, :edge], pixels[:, :, -edge:]], axis=2)
    rows = np.median(columns, axis=(0, 2))
    if height == 1:
        return rows[:, None]
    # Theil and Sen's line: a shape may hide a quarter of the rows
    lines = [stats.theilslopes(rows[:, channel]) for channel in range(3)]
    return np.stack([line[1] + line[0] * np.arange(height) for line in lines], axis=-1)[:, None].astype(np.float32)


def _shape_colour(pixels: np.ndarray, behind: np.ndarray) -> np.ndarray | None:
    """The median colour of what stands out most, away from its edges."""
    distance = np.linalg.norm(pixels - behind, axis=-1)
    # by frame: on a shaded background the contrast of a moving shape changes
    strongest = np.sort(distance.reshape(len(distance), -1), axis=1)[:, -2 * _LEAST_AREA :].mean(axis=1)
    bold = distance > np.maximum(0.8 * strongest, _LEAST_CONTRAST)[:, None, None]
    across = np.ones((1, 3, 3), bool)
    inner: Any = ndimage.binary_erosion(bold, across)
    chosen = inner if inner.sum() >= _LEAST_AREA else bold
    return np.median(pixels[chosen], axis=0) if chosen.sum() >= _LEAST_AREA else None


def _track(pixels: np.ndarray, behind: np.ndarray, colour: np.ndarray) -> _Track | None:
    """Find the shape frame by frame: the largest patch nearer to its colour than to the background's."""
    ahead = colour - behind
    contrast = np.maximum((ahead**2).sum(-1), _LEAST_CONTRAST**2)
    coverage = (((pixels - behind) * ahead).sum(-1) / contrast).clip(0, 1)
    found = []
    for number, frame in enumerate(coverage):
        labelled: Any = ndimage.label(frame > 0.5)
        patches, count = labelled
        areas = np.bincount(patches.ravel(), minlength=2)[1:]
        if count and areas.max() >= _LEAST_AREA:
            # three pixels more on every side hold the soft edge, and points that faded in it
            shape = frame * ndimage.binary_dilation(patches == 1 + areas.argmax(), iterations=3)
            centre: Any = ndimage.center_of_mass(shape)
            y, x = centre
            found.append((number, x + 0.5, y + 0.5, shape.sum(), shape))
    if 2 * len(found) < len(pixels):
        return None
    numbers, x, y, area, shapes = map(np.array, zip(*found))
    return _Track(numbers, x, y, area.astype(float), shapes)


def _path_motion(track: _Track, clip: tuple[int, ...]) -> str | None:
    """The motion that centres and areas tell of; None for a shape that stays as and where it is."""
    if len(track.frames) < 2:
        return None
    least = _LEAST_PATH * min(clip[1:3])
    x_range, y_range = np.ptp(track.x), np.ptp(track.y)
    lowest = track.y.argmax()
    fall, rise = (track.y[lowest] - part.min() for part in (track.y[: lowest + 1], track.y[lowest:]))
    if y_range > max(least, 2 * x_range) and min(fall, rise) > 0.5 * y_range:
        return "bouncing"
    ways = [np.polyfit(track.frames, centre, 1) for centre in (track.x, track.y)]
    net = np.array([way[0] for way in ways]) * (track.frames[-1] - track.frames[0])
    strays = [np.polyval(way, track.frames) - centre for way, centre in zip(ways, (track.x, track.y))]
    across, along = sorted(abs(net))
    if along > max(least, 2 * across) and np.sqrt(np.mean(np.square(strays))) < _MOST_STRAYING * along:
        heading = tuple(int(sign) for sign in np.sign(net) * (abs(net) == along))
        return next(name for name, direction in world.DIRECTIONS.items() if direction == heading)
    some = max(1, len(track.frames) // 5)
    growth = np.sqrt(np.median(track.area[-some:]) / np.median(track.area[:some]))
    return "growing" if growth > _LEAST_GROWTH and along <= least else None


def _shape(track: _Track, upright: bool) -> tuple[str | None, float]:
    """The shape whose outline fits best, and by how many degrees it turns in the clip."""
    chosen = np.unique(np.linspace(0, len(track.frames) - 1, _FITTED_FRAMES).round().astype(int))
    best, overlap, turn = None, _LEAST_OVERLAP, 0.0
    for shape, period in _PERIODS.items():
        # a shape that rests may have turned: every angle there is
        tried = np.array([-_TILT, 0.0, _TILT]) if upright else np.arange(0, period, _ANGLE_STEP)
        for softness in _SOFTNESS:
            fits = _overlaps(track, chosen, shape, tried if period else np.zeros(1), softness)
            # larger patches tell more
            mean = np.average(fits.max(axis=1), weights=track.area[chosen])
            if mean > overlap:
                best, overlap, turn = shape, mean, 0.0
                if period and not upright:
                    angles = np.unwrap(tried[fits.argmax(axis=1)], period=period)
                    turn = abs(angles[-1] - angles[0])
    return best, turn


def _overlaps(track: _Track, chosen: np.ndarray, shape: str, angles: np.ndarray, softness: float) -> np.ndarray:
    """Intersection over union with the ideal shape of the same centre and area: [len(chosen), len(angles)]."""
    found = track.coverage[chosen]
    height, width = found.shape[1:]
    x, y, radius = track.x[chosen], track.y[chosen], np.sqrt(track.area[chosen] / _area_of(shape))
    fits = []
    for angle in np.deg2rad(angles):
        ideal = world.shape_coverage(shape, x, y, radius, np.full_like(x, angle), width, height)
        ideal = ndimage.gaussian_filter(ideal, (0, softness, softness)) if softness else ideal
        fits.append(np.minimum(found, ideal).sum((1, 2)) / np.maximum(found, ideal).sum((1, 2)))
    return np.stack(fits, axis=1)


def _area_of(shape: str) -> float:
    """The area of a shape of radius 1."""
    centre, radius, angle = np.full(1, 32.0), np.full(1, 20.0), np.zeros(1)
    return float(world.shape_coverage(shape, centre, centre, radius, angle, 64, 64).sum()) / 400


def _size(track: _Track, shape: str, motion: str | None) -> str:
    radius = np.sqrt(np.median(track.area) / _area_of(shape))
    if motion == "growing":
        radius /= np.mean(world.GROWTH)
    return min(world.SIZES, key=lambda name: abs(np.log(radius / world.SIZES[name])))
