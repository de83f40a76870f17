"""What tests have measured, for the tables at the end of a run and for the file of results. Without torch: the process
that shares the tests out to workers prints them, and must not have to import it."""

import datetime
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cogvideox.devtools.result_files import RESULTS, Table, write_section
from cogvideox.tests.figures.reading import sections_by_age

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


def result_tables() -> dict[str, Table]:
    """Section of the file of results -> what has been measured for it, where anything has."""
    layouts = [[what, str(len(variants)), ", ".join(sorted(variants))] for what, variants in LAYOUT_MATRIX.items()]
    damaged = []
    for what, (counts, slowest_s) in FUZZ.items():
        loaded = counts["equal"] + counts["loaded"]
        damaged.append([what, *map(str, (sum(counts.values()), loaded, counts["numbers"], counts["refused"]))])
        damaged[-1].append(f"{slowest_s:.2f}")
    parity = [[what, str(len(cases)), *map(_short, max(cases))] for what, cases in PARITY.items()]
    errors = [[f"{what}, {note}", f"{error:.1e}"] for what, found in ERRORS.items() for error, note in found]
    tables = (
        ("layouts", Table("Layouts of a transformer", [], ["layout", "models", "which"], layouts)),
        ("damaged files", Table("Damaged files", [], ["file", "copies", "loaded", "numbers", "refused", "s"], damaged)),
        ("parity", Table("Parity with diffusers", [], ["compared", "cases", "worst", "tolerance"], parity)),
        ("errors", Table("Errors against fp32", [], ["of", "error"], errors)),
    )
    return {section: table for section, table in tables if table.rows}


def _short(value: float) -> str:
    """An error, or a ratio of errors."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:.1e}"


def save_measured(tier: str, chosen: Sequence[str], folder: Path = RESULTS) -> Path | None:
    """Write what this run has measured as sections of today's file; returns it, None where nothing was measured.

    chosen: the files or folders that the run was narrowed to. Their rows replace those of the newest results; without
    any, the tables are those of this run alone.
    """
    path, tables = None, result_tables()
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers"))
    note = f"{datetime.date.today()}, {tier} tier; Python {platform.python_version()}, {packages}."
    for section, table in tables.items():
        rows, notes = {row[0]: row for row in table.rows}, [note]
        if chosen:
            older = next(sections_by_age("tests", section, folder), [])
            rows = {row[0]: row for found in older for row in found.rows} | rows
            notes = [f"{note} Of this run are the rows of {', '.join(chosen)}; the others:"]
            notes += [old for found in older for old in found.notes]
        body = Table(table.title, notes, table.header, list(rows.values())).markdown()
        path = write_section(section, body, "tests", folder)
    return path
