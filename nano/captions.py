"""Captions of CogVideoX-nano's world: a small grammar with paraphrases."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .world import COLOURS, SHAPES, Scene

T = TypeVar("T")

_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_STRAIGHT = (
    "moves {to}",
    "is moving {to}",
    "slides {to}",
    "drifts {to}",
    "travels {to}",
)
_TOWARDS = {
    "left": ("to the left", "left", "from right to left"),
    "right": ("to the right", "right", "from left to right"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
}
_IN_PLACE = {
    "bouncing": ("bounces", "is bouncing", "bounces up and down"),
    "rotating": ("rotates", "is rotating", "spins around", "turns around"),
    "growing": ("grows", "is growing", "gets bigger", "becomes larger"),
}
_PLAIN = ("on a {0} background", "over a {0} background", "in front of a {0} background")
_SHADED = (
    "on a gradient from {0} to {1}",
    "over a background fading from {0} to {1}",
    "in front of a {0} to {1} gradient",
)
_SENTENCES = (
    "{thing} {does} {where}",
    "{thing} {does} {where}",
    "{where}, {thing} {does}",
    "there is {thing} that {does} {where}",
    "a video of {thing} that {does} {where}",
)
_SPELLINGS = (str, str, str, lambda sentence: sentence[0].upper() + sentence[1:] + ".")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many ways to say what a scene shows: "a small red circle moves to the right on a blue background"."""
    thing = f"a {_one(rng, _SIZES[scene.size])} {scene.colour} {scene.shape}"
    where = _where(scene, rng)
    sentence = _one(rng, _SENTENCES).format(thing=thing, does=_action(scene, rng), where=where)
    return _SPELLINGS[rng.integers(len(_SPELLINGS))](sentence)


def partial_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that leaves out the size, the motion or the background, as people do: "a red circle"."""
    size, action, where = rng.random(3) < 0.5
    words = ["a", *([_one(rng, _SIZES[scene.size])] if size else []), scene.colour, scene.shape]
    words += [_action(scene, rng)] if action else []
    return " ".join(words + ([_where(scene, rng)] if where else []))


def vocabulary() -> list[str]:
    """Every word of every caption, sentence beginnings capitalised as well, and the comma."""
    phrases = [*_SENTENCES, *_PLAIN, *_SHADED, *_STRAIGHT, *COLOURS, *SHAPES, "a"]
    for table in (_SIZES, _TOWARDS, _IN_PLACE):
        phrases += [phrase for row in table.values() for phrase in row]
    words = {word for phrase in phrases for word in phrase.replace(",", " , ").split() if "{" not in word}
    return sorted(
        words
        | {sentence.split()[0].title() for sentence in (*_SENTENCES, *_PLAIN, *_SHADED) if sentence[0] != "{"}
        | {"A"}
    )


def _action(scene: Scene, rng: np.random.Generator) -> str:
    if scene.motion in _IN_PLACE:
        return _one(rng, _IN_PLACE[scene.motion])
    return _one(rng, _STRAIGHT).format(to=_one(rng, _TOWARDS[scene.motion]))


def _where(scene: Scene, rng: np.random.Generator) -> str:
    return _one(rng, _PLAIN if len(scene.background) == 1 else _SHADED).format(*scene.background)


def _one(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]
