import numpy as np
import pytest
from scipy import ndimage

from cogvideox.nano import score, world
from cogvideox.nano.reading import Reading, read_clip
from cogvideox.tests.score_table import score_table

LENGTHS, WIDTHS = (9, 17, 49), (64, 96)
PER_SETTING, OTHERS = 3, 40


def draw(seed: int, index: int, frames: int, width: int = 64) -> tuple[world.Scene, np.ndarray]:
    rng = np.random.default_rng([seed, index, frames, width])
    scene = world.draw_scene(rng)
    return scene, world.render(scene, rng, frames, width)


def as_a_model_paints(clip: np.ndarray, seed: int) -> np.ndarray:
    """Blurred edges, neighbouring frames shining through, colours off by up to 12 of 255, noise; floats in 0 .. 1."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(clip.astype(np.float32), (0, 0.8, 0.8, 0))
    before, after = np.concatenate([soft[:1], soft[:-1]]), np.concatenate([soft[1:], soft[-1:]])
    mixed = 0.5 * soft + 0.25 * before + 0.25 * after
    return ((mixed + rng.uniform(-12, 12, 3) + rng.normal(0, 4, mixed.shape)) / 255).clip(0, 1)


@pytest.mark.parametrize("painted, least", [(False, 0.99), (True, 0.95)], ids=["exact", "as a model paints"])
def test_right_clips_score_right(painted: bool, least: float):
    """Every share in nano's table would be too low, and good models look bad, however well they paint."""
    rows, everything = {}, []
    for frames in LENGTHS:
        for width in WIDTHS:
            scores = []
            for index in range(PER_SETTING):
                scene, clip = draw(7, index, frames, width)
                scores.append(score.score_clip(as_a_model_paints(clip, index) if painted else clip, scene))
            rows[f"{width}x64, {frames} frames"] = score.summarize(scores)
            everything += scores
    shares = score.summarize(everything)
    print("\n" + score_table({**rows, "all": shares}))
    assert min(shares.values()) >= least, shares


def test_clips_of_other_prompts_score_near_chance():
    """A model that ignores its prompt would get a good score: the table would prove nothing."""
    drawn = [draw(8, index, 9) for index in range(OTHERS)]
    shares = score.summarize([score.score_clip(drawn[i][1], drawn[i - 1][0]) for i in range(OTHERS)])
    print("\n" + score_table({"other prompts": shares}))
    chances = {"colour": 1 / 8, "shape": 1 / 4, "size": 1 / 2, "direction": 1 / 7, "background": 0.05}
    for name, chance in chances.items():
        assert shares[name] < chance + 0.15, name


@pytest.mark.parametrize("motion, backwards", [("left", "right"), ("up", "down"), ("bouncing", "bouncing")])
def test_a_clip_played_backwards_moves_the_other_way(motion: str, backwards: str):
    """A model that confuses left and right would pass for one that follows its prompt."""
    clip = world.render(world.Scene("star", "red", "small", motion, ("white", "blue")), np.random.default_rng(1), 17)
    assert read_clip(clip).motion == motion
    assert read_clip(clip[::-1]).motion == backwards


def test_what_does_not_move_has_no_motion():
    """A model that paints stills would be given points for one direction or the other."""
    for shape in world.SHAPES:
        clip = world.render(world.Scene(shape, "green", "large", "left", ("purple",)), np.random.default_rng(2), 17)
        still = as_a_model_paints(np.repeat(clip[8:9], 17, axis=0), 3)
        assert read_clip(still) == Reading(shape, "green", "large", None, ("purple",))


def test_a_shrinking_shape_does_not_grow():
    """A model that grows shapes the wrong way round would score as right."""
    clip = world.render(world.Scene("square", "blue", "large", "growing", ("white",)), np.random.default_rng(4), 17)
    assert read_clip(clip).motion == "growing"
    assert read_clip(clip[::-1]).motion is None


def test_where_there_is_no_shape_none_is_read():
    """Empty or broken videos would stop the benchmark, or be taken for clips that show something."""
    rng = np.random.default_rng(5)
    blank = np.full((9, 64, 64, 3), world.COLOURS["cyan"], np.uint8)
    assert read_clip(blank) == Reading(None, None, None, None, ("cyan",))
    noise = read_clip(rng.integers(0, 256, (9, 64, 64, 3)).astype(np.uint8))
    assert noise.shape is None and noise.motion is None and noise.background is None
    assert read_clip(np.full((9, 64, 64, 3), np.nan, np.float32)).shape is None
    assert not any(score.score_clip(np.zeros((1, 8, 8, 3)), world.draw_scene(rng)).values())


def test_a_single_frame_shows_all_but_the_motion():
    """Scoring the picture that image to video starts from would fail."""
    scene = world.Scene("triangle", "yellow", "large", "down", ("blue", "red"))
    frame = world.render(scene, np.random.default_rng(6), 17)[8:9]
    assert read_clip(frame) == Reading("triangle", "yellow", "large", None, ("blue", "red"))


def test_a_batch_is_refused():
    """Frames in the wrong layout would be read as a clip, and score nothing without a word."""
    with pytest.raises(ValueError, match="frames, height, width, 3"):
        read_clip(np.zeros((3, 9, 64, 64)))


def test_psnr_is_that_of_its_definition():
    """The first frame of image to video would be judged by a wrong number."""
    picture = np.full((2, 2, 3), 0.5)
    assert score.psnr_db(picture, picture + 0.1) == pytest.approx(20.0)
    assert score.psnr_db(picture, picture) == float("inf")


def test_no_clips_make_no_table():
    """A benchmark that scored nothing would print shares all the same."""
    with pytest.raises(ValueError, match="no clip"):
        score.summarize([])
