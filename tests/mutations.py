"""Files of a valid structure and wrong contents, and what must come of each: a result, or one UserError of a few
sentences; never another error, a hang, or more memory than the file can need."""

import copy
import json
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cogvideox.errors import UserError
from cogvideox.tests.guard import TookTooLong, bounded
from cogvideox.tests.measured import FUZZ

MUTATIONS = (40, pytest.param(300, marks=pytest.mark.long))  # of each kind of file; the same ones, and more of them
MOST_LETTERS, MOST_SENTENCES = 1200, 8
SLOWEST_S = 2.0  # of work; half of it has been seen on a slow machine beside two other workers
LEAST_REFUSED = 0.2  # of all mutations: where fewer are, they miss what is read


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


# What stands in a file in the place of something else.
WRONG: tuple[Any, ...] = (
    *(None, True, False, [], {}, "", "x" * 5000, "\0\ud800\u202e", "1", "../../x", "/etc/passwd", "nan"),
    *(0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *([None], [[]], {"": None}, nested(50), [1] * 2000, {str(i): i for i in range(2000)}, [0.1, "a", None, {}]),
)


def wrong(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(WRONG))


def mutate_tree(tree: Any, rng: random.Random, changes: int = 1) -> Any:
    """A copy of a JSON-like tree with something replaced, taken out, doubled, renamed, wrapped or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(changes):
        tree = _changed(tree, rng)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all values below `tree`; of long lists and tables the first and the last few."""
    found, left = [], [tree]
    while left:
        at = left.pop()
        keys = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
        for key in keys if len(keys) <= 40 else [*keys[:10], *keys[-10:]]:
            found.append((at, key))
            left.append(at[key])
    return found


def _changed(tree: Any, rng: random.Random) -> Any:
    places = _places(tree)
    if not places or rng.random() < 0.03:
        return wrong(rng)
    at, key = rng.choice(places)
    what = rng.randrange(8)
    if what == 0:
        del at[key]
    elif what == 1 and isinstance(at, dict):
        at[rng.choice((f"{key}x", "", "x" * 2000, str(key).upper(), f" {key}"))] = at.pop(key)
    elif what == 2:
        at[key] = [at[key]] if rng.random() < 0.5 else {str(key): at[key]}
    elif what == 3:
        other, name = rng.choice(places)
        try:
            at[key] = copy.deepcopy(other[name])
        except (KeyError, IndexError):
            at[key] = None
    elif what == 4 and isinstance(at, list):
        at.extend(copy.deepcopy(at[:50]))
    elif what == 5 and type(at[key]) in (int, float):
        at[key] = rng.choice((at[key] + 1, -at[key], at[key] * 2, at[key] * 10**6, float(at[key]) + 0.5, str(at[key])))
    else:
        at[key] = wrong(rng)
    return tree


def as_json(tree: Any, rng: random.Random) -> str:
    """JSON, now and then of a form that few writers make: NaN, nesting, numbers and names without end."""
    text = json.dumps(tree)
    special = rng.randrange(40)
    if special == 0:
        return "[" * 100_000 + "]" * 100_000
    if special == 1:
        return text.replace("0", "9" * 5000, 1)
    if special == 2 and text.startswith("{") and len(text) > 2:
        return "{" + text[1:-1] + ", " + text[1:]  # every name twice
    return f"\ufeff{text}" if special == 3 else text


@dataclass(frozen=True)
class Outcome:
    """What became of all mutations of one kind of file.

    taken, refused: how many were read, and how many ended in a UserError. problems: a line for each that ended in
    anything else, or in a message that is too short or too long. slowest_s: of work, without waiting.
    """

    taken: int
    refused: int
    problems: tuple[str, ...]
    slowest_s: float

    @property
    def refused_share(self) -> float:
        return self.refused / (self.taken + self.refused + len(self.problems))

    def __str__(self) -> str:
        counts = f"{self.taken} taken, {self.refused} refused, {len(self.problems)} otherwise"
        return "\n".join([f"{counts}; the slowest took {self.slowest_s:.1f} s", *self.problems[:20]])


def message_problem(error: UserError) -> str:
    """What is wrong with a message for the user, "" for nothing."""
    message = str(error)
    is_good = 20 < len(message) <= MOST_LETTERS and message.count(". ") + 1 <= MOST_SENTENCES
    return "" if is_good else f"a message of another length: {message}"


def fuzz(
    what: str,
    mutations: int,
    make: Callable[[random.Random], object],
    load: Callable[[], object],
) -> Outcome:
    """make(rng) writes a mutation, load() reads it."""
    taken, refused, slowest, problems = 0, 0, 0.0, []
    for number in range(mutations):
        made = make(random.Random(f"{what} {number}"))
        start = time.process_time()
        problem = ""
        try:
            with bounded(5.0 * SLOWEST_S, 512):
                load()
            taken += 1
        except UserError as error:
            problem = message_problem(error)
            refused += not problem
        except (Exception, TookTooLong) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__}: {str(error)[:150]} at {last.filename}:{last.lineno}"
        problems += [f"{number} ({made}): {problem}"] if problem else []
        slowest = max(slowest, time.process_time() - start)
    FUZZ[f"{what}, contents"] = (Counter(taken=taken, refused=refused), slowest)
    return Outcome(taken, refused, tuple(problems), slowest)
