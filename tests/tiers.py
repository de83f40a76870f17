"""The tiers of the suite, what each leaves out, and how its tests are shared between workers. tests/README.md says
what the tiers are for."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

TIERS = ("fast", "standard", "long")  # each runs all that the one before it runs
TESTS = Path(__file__).resolve().parent


def left_out(items: Iterable[pytest.Item], tier: str) -> dict[pytest.Item, str]:
    """The tests that `tier` does not run, each with the reason."""
    seen: set[tuple[Path, str]] = set()
    reasons: dict[pytest.Item, str] = {}
    for item in items:
        reason = _reason(item, tier, seen)
        if reason:
            reasons[item] = reason
    return reasons


def _reason(item: pytest.Item, tier: str, seen: set[tuple[Path, str]]) -> str:
    """Why `tier` leaves a test out; "" where it runs. seen: (file, function) of the cases that the fast tier runs."""
    if tier == "long":
        return ""
    if item.get_closest_marker("long"):
        return "marked long"
    if tier == "standard" or item.get_closest_marker("fast"):
        return ""
    for marker in ("server", "browser", "slow"):
        if item.get_closest_marker(marker):
            return f"marked {marker}"
    function = item.path, getattr(item, "originalname", None) or item.name
    if function in seen:
        return "further cases of parametrised tests"
    seen.add(function)
    return ""


def summary_lines(tier: str, counts: Counter) -> list[str]:
    """What the end of a run says about the tests that its tier left out."""
    lines = [f"{count:5d}  {reason}" for reason, count in counts.most_common()]
    wider = [name for name in TIERS[TIERS.index(tier) + 1 :]]
    commands = " or ".join("`python3 dev.py test" + ("`" if name == "standard" else f" --{name}`") for name in wider)
    return [*lines, f"They run with {commands}."]


def room_of(node_id: str) -> str:
    """What one worker runs: a file, or all that needs servers, since every worker would start its own."""
    file = node_id.split("::", 1)[0]
    return "server" if file.startswith(("tests/server/", "tests/browser/")) else file


def heaviest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The order in which workers take rooms: the server's, which is the largest, then files with slow tests, so that no
    long test is left to one worker at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("long")}

    def weight(item: pytest.Item) -> int:
        if room_of(item.nodeid) == "server":
            return 0
        return 1 if item.path in slow else 2

    return sorted(items, key=weight)
