"""What tests have measured, for the tables at the end of a run. Without torch: the process that shares the tests out to
workers prints them, and must not have to import it."""

import json
from collections import Counter

LAYOUT_MATRIX: dict[str, set[str]] = {}  # layout of a transformer on disk -> the variants that loaded from it
FUZZ: dict[str, tuple[Counter, float]] = {}  # what was damaged -> (how its copies ended, slowest in seconds)
PARITY: dict[str, list[tuple[float, float]]] = {}  # what was compared -> (relative error, tolerance) of each case
ERRORS: dict[str, list[tuple[float, str]]] = {}  # precision -> (relative error, note) of each measurement

_MEASURED = {"LAYOUT_MATRIX": LAYOUT_MATRIX, "FUZZ": FUZZ, "PARITY": PARITY, "ERRORS": ERRORS}


def dump_measured() -> str:
    """All that this process has measured, as JSON: a worker's tests count for the tables of the whole run."""
    return json.dumps(_MEASURED, default=sorted)  # the only values that JSON has no word for are sets


def merge_measured(text: str) -> None:
    """Add what `dump_measured` said in another process."""
    other = json.loads(text)
    for layout, variants in other.get("LAYOUT_MATRIX", {}).items():
        LAYOUT_MATRIX.setdefault(layout, set()).update(variants)
    for what, (counts, slowest_s) in other.get("FUZZ", {}).items():
        FUZZ[what] = (Counter(counts), slowest_s)
    for name, table in (("PARITY", PARITY), ("ERRORS", ERRORS)):
        for what, cases in other.get(name, {}).items():
            table.setdefault(what, []).extend(tuple(case) for case in cases)
