"""The files of results: what one run writes, the documents' test reads."""

from pathlib import Path

import pytest

from cogvideox.devtools.result_files import Table, replace_section, split_sections
from cogvideox.tests.figures import cells
from cogvideox.tests.figures.cells import Cell, find
from cogvideox.tests.figures.reading import read_tables, sections_by_age

TABLE = Table(
    "Speed", ["2 layers."], ["model", "time", "ratio"], [["2b", "0.50 s (0.40 - 0.60)", "0.90"], ["5b", "", ""]]
)


def test_tables_are_read_as_they_are_written() -> None:
    """A column that shifts on the way would put one model's figure under another's name."""
    document = replace_section("", "forward", f"2026-11-21. A machine\n\n{TABLE.markdown()}")
    assert read_tables(split_sections(document)["forward"]) == [TABLE]
    again = replace_section(document, "forward", "nothing")
    assert read_tables(split_sections(again)["forward"]) == [] and again.count("## forward") == 1


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results that `find` reads in place of the committed ones."""
    monkeypatch.setattr(cells, "tables_of", lambda what, section: list(sections_by_age(what, section, tmp_path)))
    return tmp_path


def write(path: Path, section: str, *tables: Table) -> None:
    path.write_text(replace_section("", section, "\n\n".join(table.markdown() for table in tables)), "utf-8")


def test_the_newest_run_counts(results: Path) -> None:
    """A benchmark that has been run again would change nothing in the documents' test."""
    for day, seconds in (("21", "0.50 s"), ("26", "0.30 s")):
        write(results / f"2026-11-{day}-cpu.md", "forward", Table("Speed", [], ["model", "time"], [["2b", seconds]]))
    write(results / "2026-11-27-cpu.md", "load", Table("Speed", [], ["model", "time"], [["2b", "9 s"]]))
    write(results / "2026-11-28-cuda.md", "forward", Table("Speed", [], ["model", "time"], [["2b", "8 s"]]))
    assert Cell("cpu", "forward", "Speed", ("2b",), "time")() == 0.3
    with pytest.raises(LookupError, match="2c"):
        find(Cell("cpu", "forward", "Speed", ("2c",), "time"))


def test_a_row_that_has_gone_is_not_taken_from_an_older_run(results: Path) -> None:
    """What a benchmark no longer measures, no document may go on saying."""
    write(results / "2026-11-21-cpu.md", "forward", TABLE)
    write(results / "2026-11-26-cpu.md", "forward", Table("Speed", [], ["model", "time"], [["5b", "1 s"]]))
    with pytest.raises(LookupError):
        find(Cell("cpu", "forward", "Speed", ("2b",), "time"))


def test_a_second_call_of_the_same_day_counts(results: Path) -> None:
    """A card's time is short: its sections come in several calls, and what was repaired is in the last one. Another
    card's figures are not to be taken for this one's."""
    header = ["", "found", "predicted", ""]
    first = Table("VAE", [], header, [["decode", "2 s, peak 3 GiB", "", ""], ["encode", "1 s", "", ""]])
    second = Table("VAE, third call", [], header, [["decode", "1.5 s, peak 2.5 GiB", "", ""]])
    third = Table("VAE, fourth call", [], header, [["decode", "3 s are left", "", "not measured"]])
    other = Table("VAE, fifth call, H200", [], header, [["decode", "1 s, peak 1 GiB", "", ""]])
    write(results / "2026-11-26-cuda.md", "gpu", first, second, third, other)
    assert Cell("cuda", "gpu", None, ("decode",), "found", "peak ")() == 2.5
    assert Cell("cuda", "gpu", None, ("encode",), "found")() == 1
    assert Cell("cuda", "gpu", None, ("decode",), "found", card="H200")() == 1
