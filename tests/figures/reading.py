"""The files of results as tables. Standard library only: `tests/measured.py` needs it in a process without torch."""

from collections.abc import Iterator
from pathlib import Path

from cogvideox.devtools.result_files import RESULTS, Table, split_sections


def read_tables(section: str) -> list[Table]:
    """The tables of a section's text."""
    tables = []
    for part in f"\n{section}".split("\n### ")[1:]:
        title, *lines = part.splitlines()
        notes = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        cells = [_cells(line) for line in lines if line.startswith("|")]
        tables.append(Table(title, notes, cells[0] if cells else [], cells[2:]))
    return tables


def sections_by_age(what: str, section: str, folder: Path = RESULTS) -> Iterator[list[Table]]:
    """The tables of `section` in every file that has it, the newest file first, and in each the last table first:
    a further call of a benchmark on the same day follows the first one. what: "cpu", "cuda" or "tests"."""
    for path in sorted(folder.glob(f"????-??-??-{what}.md"), reverse=True):
        sections = split_sections(path.read_text(encoding="utf-8"))
        if section in sections:
            yield read_tables(sections[section])[::-1]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
