import itertools

import numpy as np
import pytest

from cogvideox.nano import world


def drawn(held_out: bool, count: int) -> set[tuple[str, str, str, str]]:
    rng = np.random.default_rng(11)
    scenes = [world.draw_scene(rng, held_out) for _ in range(count)]
    return {(s.shape, s.colour, s.size, s.motion) for s in scenes}


def test_held_out_combinations_are_never_trained_on():
    """The scores on new prompts would be those of prompts learned by heart."""
    held_out = {c for c in world.combinations() if world.is_held_out(c)}
    trained = set(world.combinations()) - held_out
    assert drawn(False, 2000) <= trained and drawn(True, 300) <= held_out
    assert 0.08 < len(held_out) / len(world.combinations()) < 0.17


def test_every_pair_of_attributes_is_trained_on():
    """A held-out prompt would ask for a word, or for two of them together, that the model has never met."""
    trained = [c for c in world.combinations() if not world.is_held_out(c)]
    for pair in itertools.combinations(range(4), 2):
        possible = {tuple(c[i] for i in pair) for c in world.combinations()}
        assert {tuple(c[i] for i in pair) for c in trained} == possible


def test_a_seed_always_draws_the_same_clip():
    """Training could not be resumed or repeated, and scores of two runs could not be compared."""

    def clip(seed: int) -> tuple[world.Scene, np.ndarray]:
        rng = np.random.default_rng(seed)
        scene = world.draw_scene(rng)
        return scene, world.render(scene, rng, 9, 96, 64)

    assert clip(3)[0] == clip(3)[0]
    np.testing.assert_array_equal(clip(3)[1], clip(3)[1])
    assert not np.array_equal(clip(3)[1], clip(4)[1])


def test_the_shape_never_has_the_colour_behind_it():
    """Some prompts would ask for what cannot be seen."""
    rng = np.random.default_rng(12)
    for _ in range(500):
        scene = world.draw_scene(rng)
        assert scene.colour not in scene.background and len(set(scene.background)) == len(scene.background)


@pytest.mark.parametrize("frames, width", [(1, 64), (9, 64), (17, 96)])
def test_a_clip_has_the_size_that_is_asked_for(frames: int, width: int):
    """The VAE would be given clips that it cannot take."""
    rng = np.random.default_rng(13)
    clip = world.render(world.draw_scene(rng), rng, frames, width, 64)
    assert clip.shape == (frames, 64, width, 3) and clip.dtype == np.uint8


@pytest.mark.parametrize("motion", world.MOTIONS)
@pytest.mark.parametrize("shape", world.SHAPES)
def test_shapes_stay_in_the_picture(shape: str, motion: str, monkeypatch: pytest.MonkeyPatch):
    """A shape that is cut off has another outline: the model would learn it, and be scored for it."""
    cover, border, kept = world.shape_coverage, 20, []

    def share_inside(shape, x, y, radius, angle, width, height):
        wide = cover(shape, x + border, y + border, radius, angle, width + 2 * border, height + 2 * border)
        inside = wide[:, border:-border, border:-border]
        kept.append((inside.sum((1, 2)) / wide.sum((1, 2))).min())
        return inside

    monkeypatch.setattr(world, "shape_coverage", share_inside)
    for seed in range(40):
        scene = world.Scene(shape, "red", ("small", "large")[seed % 2], motion, ("blue",))
        world.render(scene, np.random.default_rng(seed), 9)
    # the tips of stars and triangles, which reach beyond the nominal radius, may touch the edge
    assert min(kept) > (0.9999 if shape == "circle" else 0.99)
