"""The tool of the tests of wrong contents notices what it is there for."""

import random
from collections.abc import Iterator

import pytest

from cogvideox.errors import UserError
from cogvideox.tests import measured, mutations


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "FUZZ", dict(measured.FUZZ))


def test_every_end_is_told() -> None:
    """Taken, refused, refused with half a message, and ended in another error."""
    ends: Iterator[Exception | None] = iter(
        [None, UserError("A file of the wrong kind."), UserError("No."), KeyError(3)]
    )

    def load() -> None:
        end = next(ends)
        if end is not None:
            raise end

    outcome = mutations.fuzz("a tool", 4, lambda rng: rng.random(), load)
    assert (outcome.taken, outcome.refused, outcome.refused_share) == (1, 1, 0.25)
    assert "another length: No." in outcome.problems[0] and "KeyError: 3" in outcome.problems[1]
    assert "1 taken, 1 refused, 2 otherwise" in str(outcome)


def test_a_mutation_is_the_same_at_every_run() -> None:
    made: list[float] = []
    for _ in range(2):
        mutations.fuzz("a tool", 3, lambda rng: made.append(rng.random()), lambda: None)
    assert made[:3] == made[3:] == [random.Random(f"a tool {number}").random() for number in range(3)]
