"""Which ranks share the tokens, and which the prompts."""

import pytest

from cogvideox.errors import UserError
from cogvideox.parallel.split import AUTO, BOTH, GUIDANCE, SEQUENCE, Split, choose_split


@pytest.mark.parametrize(
    ("name", "ranks", "machines", "split"),
    [
        (AUTO, 1, 1, Split(1, 1)),
        (AUTO, 4, 1, Split(1, 4)),
        (AUTO, 4, 2, Split(2, 2)),
        (AUTO, 3, 3, Split(1, 3)),
        (SEQUENCE, 3, 1, Split(1, 3)),
        (GUIDANCE, 2, 1, Split(2, 1)),
        (BOTH, 8, 1, Split(2, 4)),
    ],
)
def test_ranks_are_divided(name: str, ranks: int, machines: int, split: Split) -> None:
    """Gigabytes a step stay inside a machine."""
    assert choose_split(name, ranks, machines) == split


@pytest.mark.parametrize(
    ("name", "ranks", "advice"),
    [
        (GUIDANCE, 1, 'Set split to "auto"'),
        (BOTH, 1, 'Set split to "auto"'),
        (GUIDANCE, 4, "Set cards to 2"),
        (BOTH, 3, "Set cards to 2 or 4"),
    ],
)
def test_what_cannot_be_divided_says_what_can(name: str, ranks: int, advice: str) -> None:
    """Before any process starts."""
    with pytest.raises(UserError, match=advice):
        choose_split(name, ranks, 1)


def test_no_group_is_left_without_work() -> None:
    """A run without guidance has one prompt a step: half of the cards would wait."""
    assert Split(2, 2).used_for(2) == Split(2, 2)
    assert Split(2, 2).used_for(1) == Split(1, 4)
