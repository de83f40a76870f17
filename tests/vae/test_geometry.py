"""Sizes of videos and latents."""

import pytest

from cogvideox.errors import UserError
from cogvideox.vae import geometry


def test_frames_round_trip() -> None:
    """8k + 1 frames must come back as 8k + 1 frames."""
    for frames in (1, 9, 17, 49, 81, 161):
        assert geometry.video_frames(geometry.latent_frames(frames)) == frames


@pytest.mark.parametrize(
    ("size", "named"),
    [
        ((721, 480, 49), "width 721 is not divisible by 16: use 720 or 736"),
        ((720, 488, 49), "height 488 is not divisible by 16: use 480 or 496"),
        ((720, 480, 48), "frames 48 is not 4k + 1 (8k + 1 as the models were trained): use 41 or 49, or else 45."),
        ((720, 480, 20), "use 17 or 25, or else 21."),
        ((720, 480, 3), "use 1 or 9, or else 5."),
        ((720, 480, 0), "frames 0 is not 4k + 1 (8k + 1 as the models were trained): use 1"),
        ((8, 480, 49), "width 8 is not divisible by 16: use 16"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(size: tuple[int, int, int], named: str) -> None:
    """A user must be told what to type instead, before anything runs."""
    with pytest.raises(UserError) as error:
        geometry.check_size(*size)
    assert named in str(error.value)


def test_all_problems_at_once() -> None:
    """Three wrong numbers must not take three attempts."""
    with pytest.raises(UserError, match="width.*height.*frames"):
        geometry.empty_latent(1, 2, 3, 1)


def test_empty_latent_shape() -> None:
    """The shape that every stock node expects of a video latent."""
    assert geometry.empty_latent(720, 480, 49, 2).shape == (2, 16, 13, 60, 90)
