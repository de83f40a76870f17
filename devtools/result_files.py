"""What benchmarks and tests have measured, as files: benchmarks/results/<date>-<what>.md. Standard library only.

A file has sections, `## name`, and in them tables, `### title`. What documents say comes from the newest that has it:
tests/figures compares.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .paths import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Table:
    """One result: a markdown table with sentences before it."""

    title: str
    notes: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", *(f"- {note}" for note in self.notes), *([""] if self.notes else [])]
        lines += [_row(self.header), _row(["---"] * len(self.header)), *map(_row, self.rows)]
        return "\n".join(lines)


def write_section(name: str, body: str, what: str, folder: Path = RESULTS) -> Path:
    """Write `body` as the section `name` of today's file, in place of an earlier run's; returns the file.

    what: "cpu", "cuda" or "tests".
    """
    path = folder / f"{datetime.date.today().isoformat()}-{what}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(replace_section(before, name, body), encoding="utf-8")
    return path


def replace_section(document: str, name: str, body: str) -> str:
    """`document` with `body` as its section `## name`, which is added at the end where there is none."""
    sections = split_sections(document)
    sections[name] = f"\n{body}\n"
    return "# Benchmark results\n\n" + "\n".join(f"## {title}\n{text.rstrip()}\n" for title, text in sections.items())


def split_sections(document: str) -> dict[str, str]:
    """Section -> its text."""
    return dict(part.split("\n", 1) for part in f"\n{document}".split("\n## ")[1:])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
