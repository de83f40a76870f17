"""Numbers of the committed results, as documents print them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from fnmatch import fnmatchcase
from functools import cache

from cogvideox.devtools.result_files import Table
from cogvideox.tests.figures.reading import sections_by_age

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"


class Number(float):
    """A float whose format knows what documents write: "e" 1.7e-7, "0e" 2e-7, "word" nineteen, "" 12 or 12.5."""

    def __format__(self, spec: str) -> str:
        if spec == "word":
            return WORDS[int(self)]
        if spec in ("e", "0e"):
            return format(float(self), ".1e" if spec == "e" else ".0e").replace("e-0", "e-")
        if spec.endswith("f"):  # a 5 goes up, as people round what stands in a table
            digits = Decimal(1).scaleb(-int(spec[1:-1]))
            return str(Decimal(repr(float(self))).quantize(digits, ROUND_HALF_UP))
        return format(float(self), spec or "g")


def fixed(number: float) -> Callable[[], Number]:
    """A number that the code itself holds."""
    return lambda: Number(number)


@dataclass(frozen=True)
class Cell:
    """A number of a table of results.

    what, section: which file and section, see `devtools.result_files`. title: of the table, None for any.
    row: its first cells; one alone may stand in any of the first two. after: what precedes the number in its cell, by
    default nothing: the first one counts. scale: the unit of the document over the table's. card: of which another
    call was, as in a title "VAE, fourth call, H200"; by default none.
    """

    what: str
    section: str
    title: str | None
    row: tuple[str, ...]
    column: str
    after: str = ""
    scale: float = 1.0
    card: str = ""

    def __call__(self) -> Number:
        text = find(self)
        found = re.search(f"{re.escape(self.after)}({_NUMBER})" if self.after else f"({_NUMBER})", text)
        if found is None:
            raise LookupError(f"“{text}” has no number after “{self.after}”, where {self} looks.")
        return Number(float(found[1]) * self.scale)

    def times(self, scale: float) -> "Cell":
        return replace(self, scale=self.scale * scale)


@cache
def tables_of(what: str, section: str) -> list[list[Table]]:
    """Of each file, the newest first."""
    return list(sections_by_age(what, section))


def find(cell: Cell) -> str:
    """The text of a cell. Of the newest file that has the table; where any table will do, that has the row.

    Raises: LookupError where there is none.
    """
    for tables in tables_of(cell.what, cell.section):
        named = [table for table in tables if _is_called(table.title, cell)]
        for table in named:
            for row in table.rows:
                if cell.column in table.header and _is_row(row, cell.row) and "not measured" not in row:
                    return row[table.header.index(cell.column)]
        if named and cell.title is not None:
            break  # an older file would say what is no longer so
    raise LookupError(f"No *-{cell.what}.md has {cell.row} and “{cell.column}” in {cell.section}, {cell.title}.")


def _is_called(title: str, cell: Cell) -> bool:
    parts = re.fullmatch(r"(.*?)(?:, \w+ call)?(?:, ([A-Z]+\d+))?", title)
    return parts is not None and cell.title in (None, parts[1]) and (parts[2] or "") == cell.card


def _is_row(row: Sequence[str], wanted: tuple[str, ...]) -> bool:
    return tuple(row[: len(wanted)]) == wanted or (len(wanted) == 1 and wanted[0] in row[:2])


@dataclass(frozen=True)
class Note:
    """The largest number that `pattern` finds in the notes of the newest table of that title."""

    what: str
    section: str
    title: str
    pattern: str

    def __call__(self) -> Number:
        tables = next(iter(tables_of(self.what, self.section)))
        notes = " ".join(note for table in tables if table.title == self.title for note in table.notes)
        return Number(max(float(number) for number in re.findall(self.pattern, notes)))


@dataclass(frozen=True)
class Rows:
    """A figure of all rows, of the newest run of the tests, whose first cell matches one of the patterns.

    column: whose numbers are combined. by: "worst" the largest, "least" the smallest, "sum", "count" the rows.
    """

    section: str
    patterns: tuple[str, ...]
    column: str = ""
    by: str = "worst"

    def __call__(self) -> Number:
        table = next(iter(tables_of("tests", self.section)))[0]
        for pattern in self.patterns:
            if not any(fnmatchcase(row[0], pattern) for row in table.rows):
                raise LookupError(f"“{pattern}” is no row of {self.section}.")
        rows = [row for row in table.rows if any(fnmatchcase(row[0], pattern) for pattern in self.patterns)]
        if self.by == "count":
            return Number(len(rows))
        numbers = [float(row[table.header.index(self.column)]) for row in rows]
        return Number({"worst": max, "least": min, "sum": sum}[self.by](numbers))
