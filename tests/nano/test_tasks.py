"""The scores of CogVideoX-nano's tasks: right clips score right, wrong ones do not."""

import numpy as np
import pytest

from cogvideox.nano import paint, tasks, world
from cogvideox.nano.score import deviation, deviation_of, squares


def requests(frames: int = 17, count: int = 4) -> list[paint.Request]:
    return paint.held_out_requests(4, count, paint.Settings(frames=frames))


def share(values: list[float]) -> float:
    return float(np.nanmean(values))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_clip_that_is_asked_for_scores_right(name: str) -> None:
    """A task's score that a perfect model cannot reach says nothing about the toy."""
    task = tasks.TASKS[name]
    asked = requests(int(str(task.changes.get("frames", 17))))
    for request in asked:
        clip = request.truth / 255
        if name == "extend":
            clip = clip[-tasks.EXTENDED_BY :]
        judged = task.judge(clip, request)
        assert judged["colour"] == 1
        assert all(value > 90 for name, value in judged.items() if name in ("first frame dB", "last frame dB"))
        assert not judged.get("edges IoU", 1.0) < 1


def test_the_clip_that_was_given_does_not() -> None:
    """Video to video that returns its source would pass for one that does as it is told."""
    for request in requests():
        judged = tasks.judge_region(request.other / 255, request)
        assert judged["colour"] == 0 and judged["direction"] == 1 and judged["rest dB"] > 90


def test_edges_of_another_clip_do_not_overlap() -> None:
    asked = requests(count=8)
    pairs = zip(asked, [*asked[1:], asked[0]])
    assert share([tasks.judge_edges(other.truth / 255, request)["edges IoU"] for request, other in pairs]) < 0.4


def test_a_jump_is_seen() -> None:
    """A join where the shape leaps looks broken, however well both halves are painted."""
    request = next(r for r in requests(29, 8) if r.scene.motion == "left")
    broken = request.truth[-tasks.EXTENDED_BY :][::-1] / 255
    assert not tasks.judge_continued(broken, request)["no jump"]
    assert tasks.is_smooth(request.truth / 255)


def test_deviation_is_relative() -> None:
    exact = np.ones((2, 3))
    assert deviation(exact, exact) == 0 and deviation(exact, exact * 1.5) == pytest.approx(0.5)
    assert deviation(10 * exact, 15 * exact) == pytest.approx(0.5)


def test_the_deviation_of_parts_is_that_of_the_whole() -> None:
    exact, lossy = np.random.default_rng(0).random((2, 5, 7))
    parts = [squares(exact[rows], lossy[rows]) for rows in (slice(2), slice(2, 5))]
    assert deviation_of(parts) == pytest.approx(deviation(exact, lossy))


def test_the_other_clip_differs_in_the_colour_alone() -> None:
    for request in requests():
        assert request.other.shape == request.truth.shape
        differs = (request.other != request.truth).any(axis=-1)
        assert differs.any() and not differs[:, ~world.path_box(request.other)].any()
