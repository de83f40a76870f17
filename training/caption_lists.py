"""Lists of captions: metadata.jsonl, metadata.csv, and the official trainer's prompts.txt with videos.txt.

Each is read by the rules of its own format and strictly: a caption that is cut at a comma, or that swallows the rows
below it, would be trained without a word.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..system.small_files import read_small_text

MAX_LIST_BYTES = 1 << 26
_MAX_ROW_CHARACTERS = 1 << 20  # a caption has at most a sixteenth of it
_COLUMNS = ("file_name", "text")
_NO_TEXT = "[\0\ud800-\udfff]"
_LINE_BREAK = r"\r\n?|\n"
_QUOTES = (
    "Put a text with commas, line breaks or quotation marks between quotation marks, and double those inside it: "
    'clip.mp4,"a ""red"" cat, asleep"'
)


class UnusableClipError(UserError):
    """One clip of a dataset cannot be used. It is left out, the report names it, and the others are used."""


class Row(NamedTuple):
    """line: where the row begins in its file, from 1. name: of the clip's file, as the list spells it."""

    line: int
    name: str
    caption: str


def read_json_rows(path: Path) -> list[Row]:
    """The rows of a metadata.jsonl: one JSON object a line. Raises UserError naming the first line that is not one."""
    rows = []
    # JSON Lines end in \n alone: the other line breaks of Unicode belong to the text.
    for number, line in enumerate(read_text(path, MAX_LIST_BYTES).split("\n"), 1):
        throw_if_interrupted()
        _require_row(len(line), path, number)
        if line.strip():
            try:
                entry = json.loads(line, object_pairs_hook=_unique)
                name, text = entry["file_name"], entry["text"]
                if not (isinstance(name, str) and isinstance(text, str)):
                    raise TypeError("null would become the caption None")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                # Without the error's own words, which may repeat what the line contains.
                raise UserError(
                    f'{path}, line {number}, is not {{"file_name": "clip.mp4", "text": "a caption"}}. Correct or '
                    "delete that line."
                ) from error
            # JSON can write in an escape what UTF-8 has no bytes for, and NUL.
            _require_text(name + text, f"{path}, line {number},", UserError)
            rows.append(Row(number, name, text))
    return rows


def read_csv_rows(path: Path) -> list[Row]:
    """The rows of a metadata.csv (RFC 4180, with any line ends). Raises UserError naming the first line that is
    wrong."""
    lines = _Lines(path)
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    rows, name, text, named = [], 0, 0, 0
    start = 1  # the line that the next row begins in
    try:
        for cells in reader:
            throw_if_interrupted()
            line, start = start, reader.line_num + 1
            lines.characters, lines.number = 0, start  # the next row's
            if not cells:  # an empty line is no clip
                continue
            if not header:
                header = _checked_header(cells, path, line)
                name, text = map(header.index, _COLUMNS)
                named = max(number for number, column in enumerate(header, 1) if column.strip())
                continue
            # Spreadsheets end every line with the commas of empty columns, the first one too.
            if any(cells[named:]):
                raise UserError(
                    f"{path}, line {line}, has {len(cells)} cells and the first line names {named} columns: a comma "
                    f"splits its caption. {_QUOTES}."
                )
            cells += [""] * (1 + max(name, text) - len(cells))
            rows.append(Row(line, cells[name], cells[text]))
    except csv.Error as error:
        raise UserError(f"{path}, line {start}, cannot be read: {_csv_problem(error)}.") from error
    if not header:
        _checked_header([], path, 1)
    return rows


def read_line_pairs(prompts: Path, videos: Path) -> list[Row]:
    """Line n of `prompts` is the caption of the clip in line n of `videos`: the layout of the official trainer
    (THUDM/CogVideo finetune/README.md). Raises UserError where one has more lines."""
    captions, names = (read_text(path, MAX_LIST_BYTES).split("\n") for path in (prompts, videos))
    # The end of the last line begins no other. Every further empty line counts: the first caption may be missing.
    captions, names = (lines[:-1] if lines[-1] == "" else lines for lines in (captions, names))
    if len(captions) != len(names):
        raise UserError(
            f"{prompts} has {len(captions)} lines and {videos.name} {len(names)}. Line by line they name a caption and "
            "its clip: give both as many lines."
        )
    pairs = enumerate(zip(names, captions), 1)
    return [Row(number, name, text) for number, (name, text) in pairs if name.strip() or text.strip()]


def read_text(path: Path, most_bytes: int) -> str:
    """Raises UnusableClipError where `path` is not UTF-8 text, contains NUL, or is larger than `most_bytes`."""
    try:
        text = read_small_text(path, most_bytes)
    except UnicodeDecodeError as error:  # its own words repeat a byte of the file
        raise UnusableClipError(f"{path} is not UTF-8 text. Save it again as UTF-8.") from error
    except OSError as error:
        raise UnusableClipError(f"{path} cannot be read ({error}). Check its permissions.") from error
    except UserError as error:
        raise UnusableClipError(str(error)) from error
    # The whole text first: that of a list has millions of lines.
    for line, part in enumerate(re.split(_LINE_BREAK, text), 1) if "\0" in text else ():
        _require_text(part, f"{path}, line {line},", UnusableClipError)
    return text


def _require_text(text: str, where: str, kind: type[UserError]) -> None:
    """Raises a `kind` of error for what tokenizers cut a caption at, or fail at, and no file's name contains."""
    if found := re.search(_NO_TEXT, text):
        what = "a NUL character" if found[0] == "\0" else f"an unpaired surrogate (U+{ord(found[0]):04X})"
        raise kind(f"{where} contains {what}. Delete it, or save the file again as UTF-8 text.")


class _Lines:
    """The lines of a table. characters: how many the reader has taken for the row that it is reading, which begins in
    line `number`."""

    def __init__(self, path: Path):
        self.path, self.characters, self.number = path, 0, 1
        # Not splitlines, which breaks lines at U+2028 and at form feeds as well.
        self._lines = io.StringIO(read_text(path, MAX_LIST_BYTES), newline="")

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.characters += len(line)
        _require_row(self.characters, self.path, self.number)
        return line


def _require_row(characters: int, path: Path, line: int) -> None:
    """Raises UserError for a row that is read into a thousand times the memory of any other."""
    if characters > _MAX_ROW_CHARACTERS:
        raise UserError(
            f"{path} has a row of more than {_MAX_ROW_CHARACTERS} characters, which begins in line {line}. Correct "
            "or delete it."
        )


def _checked_header(header: list[str], path: Path, line: int) -> list[str]:
    """The names of a table's columns. Raises UserError unless each column that is read is there once."""
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise UserError(
            f"{path} has no column {' and no column '.join(missing)}. Let its first line be: file_name,text"
        )
    twice = [column for column in _COLUMNS if header.count(column) > 1]
    if twice:
        raise UserError(f"{path}, line {line}, has two columns {twice[0]}. Rename or delete one of them.")
    return header


def _csv_problem(error: csv.Error) -> str:
    """What is wrong with a row, without the reader's own words, which name neither rule nor remedy."""
    if "field limit" in str(error):
        return f"a cell has more than {csv.field_size_limit()} characters, and no caption needs that many. Shorten it"
    return f"a quotation mark is not closed, or text follows one that closes. {_QUOTES}"


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a name occurs twice, of which json.loads would keep the last."""
    listed = list(pairs)
    found = dict(listed)
    if len(found) != len(listed):
        raise ValueError("a name occurs twice")
    return found
