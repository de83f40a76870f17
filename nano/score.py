"""The scores of CogVideoX-nano: its clips compared with their prompts."""

from collections.abc import Iterable, Mapping

import numpy as np

from .reading import read_clip
from .world import Scene

ATTRIBUTES = ("colour", "shape", "size", "direction", "background")


def score_clip(frames: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Which of ATTRIBUTES a clip shows as in `scene`. frames: [F, H, W, 3], uint8 or float in 0 .. 1."""
    found = read_clip(frames)
    return {
        "colour": found.colour == scene.colour,
        "shape": found.shape == scene.shape,
        "size": found.size == scene.size,
        "direction": found.motion == scene.motion,
        "background": found.background == scene.background,
    }


def summarize(scores: Iterable[Mapping[str, bool]]) -> dict[str, float]:
    """The share of correct clips, by attribute. Raises ValueError for no clips."""
    scores = list(scores)
    if not scores:
        raise ValueError("There is no clip to score.")
    return {name: sum(score[name] for score in scores) / len(scores) for name in ATTRIBUTES}


def score_clips(clips: Iterable[np.ndarray], scenes: Iterable[Scene]) -> dict[str, float]:
    """The share of clips that show their scene, by attribute."""
    return summarize(score_clip(clip, scene) for clip, scene in zip(clips, scenes))


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two pictures or clips in 0 .. 1; infinite where they are equal."""
    error = float(np.mean((np.asarray(first, np.float64) - np.asarray(second, np.float64)) ** 2))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def deviation(exact: np.ndarray, lossy: np.ndarray) -> float:
    """How far runs of one seed are apart, the yardstick for what saves time at the cost of exactness: the RMS of the
    difference of their latents or frames over that of the exact ones."""
    return deviation_of([squares(exact, lossy)])


def squares(exact: np.ndarray, lossy: np.ndarray) -> tuple[float, float]:
    """The sums of the squared difference and of the squared exact values, for deviation_of."""
    exact, lossy = np.asarray(exact, np.float64), np.asarray(lossy, np.float64)
    return float(((lossy - exact) ** 2).sum()), float((exact**2).sum())


def deviation_of(parts: Iterable[tuple[float, float]]) -> float:
    """The deviation of runs of which every part has its squares."""
    differences, exact = zip(*parts)
    return float(np.sqrt(sum(differences) / sum(exact)))
