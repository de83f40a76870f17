"""The tiers leave out what they say, and nothing else."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cogvideox.tests import measured, tiers
from cogvideox.tests.figures.reading import sections_by_age


class Case:
    """A stand-in for a collected test."""

    def __init__(self, file: str, function: str, number: int = 0, *markers: str):
        self.path, self.nodeid = tiers.TESTS / file, f"tests/{file}::{function}[{number}]"
        self.originalname, self.name = function, f"{function}[{number}]"
        self.get_closest_marker = dict.fromkeys(markers, True).get


def cases(*rows: tuple) -> list[Any]:
    """Stand-ins for pytest's items, of which they have what tiers.py reads."""
    return [Case(*row) for row in rows]


ROWS = (
    ("vae/test_a.py", "test_x", 0),
    ("vae/test_a.py", "test_x", 1),
    ("vae/test_b.py", "test_x", 0),
    ("vae/test_a.py", "test_minutes", 0, "long"),
    ("server/test_c.py", "test_server", 0, "server"),
    ("server/test_c.py", "test_end_to_end", 0, "server", "fast"),
    ("browser/test_d.py", "test_browser", 0, "browser"),
    ("training/test_dataset.py", "test_any", 0),
)


@pytest.mark.parametrize(
    "tier, ran",
    [
        ("long", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("standard", [0, 1, 2, 4, 5, 6, 7]),
        ("fast", [0, 2, 5]),
    ],
)
def test_each_tier_runs_what_it_says(tier: str, ran: list[int]) -> None:
    """A test that no tier runs guards nothing."""
    items = cases(*ROWS)
    reasons = tiers.left_out(items, tier)
    assert [index for index, item in enumerate(items) if item not in reasons] == ran


def test_a_first_case_of_minutes_leaves_the_next_one_to_the_fast_tier() -> None:
    items = cases(("vae/test_a.py", "test_x", 0, "long"), ("vae/test_a.py", "test_x", 1))
    assert list(tiers.left_out(items, "fast")) == items[:1]


@pytest.mark.parametrize("file", tiers.SLOW)
def test_slow_tests_exist(file: str) -> None:
    """A name that has gone hides that its test, under a new name, makes the fast tier slow."""
    text = (tiers.TESTS / file).read_text("utf-8")
    assert not [function for function in tiers.SLOW[file] if f"def {function}(" not in text]


def test_every_room_has_a_fast_test() -> None:
    """Someone who edits a room and runs the fast tier must not be told that all is well by tests of other rooms."""
    slow_files = {tiers.TESTS / file for file, functions in tiers.SLOW.items() if functions is tiers.ALL}
    folders = {path.parent for path in tiers.TESTS.rglob("test_*.py")} - {tiers.TESTS}
    for folder in folders - {tiers.TESTS / name for name in ("server", "browser")}:
        assert set(folder.glob("test_*.py")) - slow_files, folder


def test_those_who_share_a_server_share_a_worker() -> None:
    """Each worker that talks to a server starts one, which takes ten seconds and a gigabyte."""
    rooms = {tiers.room_of(item.nodeid) for item in cases(*ROWS)}
    servers = {room for room in rooms if room.endswith("/")}
    assert servers <= {"tests/server/", "tests/browser/"} and "tests/server/" in servers
    assert rooms - servers == {"tests/vae/test_a.py", "tests/vae/test_b.py", "tests/training/test_dataset.py"}
    order = [tiers.room_of(item.nodeid) for item in tiers.heaviest_first(cases(*ROWS))]
    assert set(order[:3]) == servers and order[-1] == "tests/vae/test_b.py"
    forks = "\nfrom cogvideox.tests.children import"
    forking = [path for path in tiers.TESTS.rglob("test_*.py") if forks in path.read_text("utf-8")]
    assert {f"tests/{path.relative_to(tiers.TESTS).as_posix()}" for path in forking} == {*tiers._FORKING}
    ranks = [f"tests/parallel/test_remote_{what}.py" for what in ("model", "vae")]
    assert all((tiers.TESTS.parent / file).is_file() for file in ranks)
    assert len({tiers.room_of(f"{file}::test_it") for file in ranks}) == 1


MEASURED = {
    "LAYOUT_MATRIX": ("SAT", {"2b", "5b"}),
    "FUZZ": ("SAT", (Counter(equal=2), 0.5)),
    "PARITY": ("run", [(1e-6, 5e-6)]),
    "ERRORS": ("fp8", [(1e-2, "forward")]),
}


def test_what_workers_measured_reaches_the_tables() -> None:
    """The tables at the end of a run would show the half that one worker ran, or nothing."""
    tables = {name: getattr(measured, name) for name in MEASURED}
    kept = {name: dict(table) for name, table in tables.items()}
    try:
        for name, (what, value) in MEASURED.items():
            tables[name].clear()
            tables[name][what] = value
        text = measured.dump_measured()
        for table in tables.values():
            table.clear()
        for times in (1, 2):
            measured.merge_measured(text)
            for name, (what, value) in MEASURED.items():
                assert tables[name] == {what: value * times if isinstance(value, list) else value}
    finally:
        for name, table in tables.items():
            table.clear()
            table.update(kept[name])


def test_a_run_of_some_files_renews_their_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents' figures come from this file: a row that a short run drops would be gone, one that a whole run
    keeps would speak of a test that is no more."""
    monkeypatch.setattr(measured, "PARITY", {"run": [(1e-6, 5e-6), (3e-6, 5e-6)], "gone": [(1e-7, 1e-6)]})
    monkeypatch.setattr(measured, "ERRORS", {"fp8": [(1e-2, "forward")]})
    measured.save_measured("long", [], tmp_path)
    monkeypatch.setattr(measured, "PARITY", {"run": [(2e-6, 5e-6)]})
    monkeypatch.setattr(measured, "ERRORS", {})
    path = measured.save_measured("long", ["tests/vae"], tmp_path)
    (table,) = next(sections_by_age("tests", "parity", tmp_path))
    assert table.rows == [["run", "1", "2.0e-06", "5.0e-06"], ["gone", "1", "1.0e-07", "1.0e-06"]]
    assert "tests/vae" in table.notes[0] and path is not None
    measured.save_measured("long", [], tmp_path)
    (table,) = next(sections_by_age("tests", "parity", tmp_path))
    assert [row[0] for row in table.rows] == ["run"]
    (table,) = next(sections_by_age("tests", "errors", tmp_path))
    assert table.rows == [["fp8, forward", "1.0e-02"]]


def test_one_combination_in_some_has_every_value() -> None:
    """A family or a sampler that no standard run has would break unseen for a week."""
    for share, values in ((2, ("ab", "cd")), (3, ("abcde", "xyz")), (4, ("abcd", "wxyz")), (2, ("ab", "cdef", "gh"))):
        cases = tiers.long_but_one_in(share, *values)
        kept = [case.values for case in cases if not case.marks]
        assert [set(column) for column in zip(*kept)] == [set(each) for each in values]
        assert len(cases) == len({case.values for case in cases}) and len(kept) <= len(cases) / share + 1
    with pytest.raises(ValueError, match="would never be in a run"):
        tiers.long_but_one_in(3, "abcde", "xy")
