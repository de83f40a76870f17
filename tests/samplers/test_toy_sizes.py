"""What a run of the toy says of its size."""

from typing import Any, cast

import pytest
import torch

from cogvideox.host.protocols import GuiderExecutor
from cogvideox.samplers.toy_sizes import tell_toy_size, toy_size_message


@pytest.mark.parametrize("size", [(5, 8, 8), (3, 12, 8), (13, 12, 12), (25, 8, 8), (5, 24, 24), (5, 16, 24), (1, 4, 4)])
def test_its_own_world_and_twice_of_it_are_not_spoken_of(size: tuple[int, ...]) -> None:
    """The templates of long videos go there; a warning on each would soon be read by nobody."""
    assert toy_size_message(size) == ""


_TOLD = [((13, 60, 90), "720 × 480 with 49 frames"), ((26, 8, 8), "with 101 frames"), ((5, 8, 20), "160 × 64 with 17")]


@pytest.mark.parametrize("size, shown", _TOLD)
def test_far_from_it_the_run_says_what_the_toy_knows(size: tuple[int, ...], shown: str) -> None:
    """Otherwise a user sees coloured mud at 720 × 480, or half a star at 160 × 64, and takes the pack for broken. What
    it knows is said of a prompt, on the prompt's node."""
    message = toy_size_message(size)
    assert shown in message and "Set 64 × 64 with 17 frames." in message and "official checkpoint" in message
    assert "coloured shapes that move" not in message


def test_the_run_goes_on_as_it_would() -> None:
    """It is said, and not refused."""
    told: list[str] = []
    given: list[Any] = []
    executor = cast(GuiderExecutor, lambda *arguments, **named: given.append((arguments, named)) or "done")
    noise, latent = torch.zeros(1, 16, 1, 60, 90), torch.ones(1, 16, 1, 60, 90)
    assert tell_toy_size(told.append, executor, noise, latent, "sampler", seed=3) == "done"
    ((arguments, named),) = given
    assert arguments[0] is noise and arguments[1] is latent and arguments[2:] == ("sampler",) and named == {"seed": 3}
    assert len(told) == 1
    tell_toy_size(told.append, executor, noise, torch.ones(16, 8, 8))  # what no video is, the run's checks refuse
    assert len(told) == 1
