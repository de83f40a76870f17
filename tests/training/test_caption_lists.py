"""Lists of captions as people write them: each caption is taken whole, or the line that cannot be read is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.training import clips


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips; a list only looks whether the files are there."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def captions(folder: Path) -> dict[str, str]:
    found, problems = clips.find_clips(folder)
    assert not problems, problems
    return {clip.name: clip.caption for clip in found}


TABLES = {
    "a quoted line break": ('a.mp4,"a cat\nand a dog"\nb.mp4,"x, y"', {"a.mp4": "a cat\nand a dog", "b.mp4": "x, y"}),
    "doubled quotation marks": ('a.mp4,"a ""red"" cat"', {"a.mp4": 'a "red" cat'}),
    "quotation marks inside": ('a.mp4,a "red" cat', {"a.mp4": 'a "red" cat'}),
    "line breaks of Unicode": (
        "a.mp4,a\u2028b\u2029c\x0cd\x85e\nb.mp4,x",
        {"a.mp4": "a\u2028b\u2029c\x0cd\x85e", "b.mp4": "x"},
    ),
    "commas of empty columns": ("a.mp4,x,,\nb.mp4,y,", {"a.mp4": "x", "b.mp4": "y"}),
    "empty lines": ("\na.mp4,x\n\n\nb.mp4,y\n\n", {"a.mp4": "x", "b.mp4": "y"}),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("what", TABLES)
def test_tables_are_taken_whole(folder: Path, what: str, end: str) -> None:
    """A caption that loses its line break or its end is trained as another one."""
    text, expected = TABLES[what]
    quoted_break = end if "quoted line break" in what else "\n"
    (folder / "metadata.csv").write_bytes(f"\ufefffile_name,text\n{text}\n".replace("\n", end).encode())
    assert captions(folder) == {name: caption.replace("\n", quoted_break) for name, caption in expected.items()}


def test_columns_in_any_order_and_number(folder: Path) -> None:
    (folder / "metadata.csv").write_text("\n\nwidth,text,file_name\n720,x,a.mp4\n720,y,b.mp4\n")
    assert captions(folder) == {"a.mp4": "x", "b.mp4": "y"}


def test_a_comma_under_a_column_without_a_name(folder: Path) -> None:
    """Spreadsheets write the first line with the commas of empty columns: the end of a caption was one of them."""
    (folder / "metadata.csv").write_text("file_name,text,\na.mp4,a cat, asleep\n")
    with pytest.raises(UserError, match="line 2, has 3 cells and the first line names 2 columns"):
        clips.find_clips(folder)


def test_a_list_that_was_written_on_windows(folder: Path) -> None:
    (folder / "videos").mkdir()
    (folder / "a.mp4").rename(folder / "videos" / "a.mp4")
    (folder / "metadata.csv").write_text("file_name,text\nvideos\\a.mp4,x\n..\\..\\b.mp4,y\n")
    found, problems = clips.find_clips(folder)
    assert [(clip.path.resolve(), clip.caption) for clip in found] == [((folder / "videos" / "a.mp4").resolve(), "x")]
    assert len(problems) == 1 and "there is no such file" in problems[0]


BROKEN = {
    "a comma without quotation marks": (
        "a.mp4,a cat, a dog\nb.mp4,x",
        2,
        "has 3 cells and the first line names 2 columns",
    ),
    "a space before the quotation mark": (
        'a.mp4,x\nb.mp4, "a cat, a dog"',
        3,
        "has 3 cells and the first line names 2 columns",
    ),
    "a quotation mark that stays open": ('a.mp4,x\nb.mp4,"a cat\nc.mp4,y', 3, "a quotation mark is not closed"),
    "one that ends in the next caption": ('a.mp4,"a cat\nb.mp4,"a dog"\nc.mp4,y', 2, "a quotation mark is not closed"),
    "a letter after the quotation mark": ('a.mp4,"x\ny"\nb.mp4,"a" cat', 4, "text follows one that closes"),
    "a cell without end": ("a.mp4,x\nb.mp4," + "y" * 140_000, 3, "a cell has more than 131072 characters"),
    "a column that is there twice": ("", 1, "has two columns text"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_tables_that_mean_something_else_are_refused(folder: Path, what: str) -> None:
    """Half a caption, or one that holds the rows below it, is not seen in the trained LoRA until it is too late."""
    text, line, words = BROKEN[what]
    header = "file_name,text,text" if "twice" in what else "file_name,text"
    (folder / "metadata.csv").write_text(f"{header}\n{text}\n")
    with pytest.raises(UserError, match=re.escape(f"metadata.csv, line {line}, ") + f".*{words}") as caught:
        clips.find_clips(folder)
    assert len(str(caught.value)) < 500 and "cat" not in str(caught.value).replace('"a ""red"" cat, asleep"', "")


LINES = {
    "deep nesting": ('{"file_name": "b.mp4", "text": "x", "z": ' + "[" * 100_000 + "]" * 100_000 + "}", 2),
    "a name twice": ('{"file_name": "b.mp4", "text": "x", "text": "y"}', 2),
    "a number of thousands of digits": ('{"file_name": "b.mp4", "text": "x", "z": ' + "9" * 5000 + "}", 2),
    "a line break inside": ('{"file_name": "b.mp4",\n"text": "x"}', 2),
    "two objects": ('\n{"file_name": "b.mp4", "text": "x"} {"file_name": "c.mp4", "text": "x"}', 3),
    "another type": ('{"file_name": "b.mp4", "text": ["x"]}', 2),
}


@pytest.mark.parametrize("what", LINES)
def test_json_lines_that_cannot_be_read(folder: Path, what: str) -> None:
    text, line = LINES[what]
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.mp4", "text": "x"}}\n{text}\n')
    with pytest.raises(UserError, match=f"metadata.jsonl, line {line}, is not"):
        clips.find_clips(folder)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_end_in_line_feeds_alone(folder: Path, end: str) -> None:
    rows = {"a.mp4": "a\u2028b", "b.mp4": "c\x0cd\x85e\nf"}
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in rows.items()]
    (folder / "metadata.jsonl").write_bytes(end.join(lines).encode())
    assert captions(folder) == rows


# Each in its third line.
NO_LETTERS: dict[str, Callable[[Path, str], object]] = {
    "csv": lambda folder, end: (folder / "metadata.csv").write_bytes(
        f"file_name,text{end}a.mp4,x{end}b.mp4,a cat\0and a dog{end}".encode()
    ),
    "name in csv": lambda folder, end: (folder / "metadata.csv").write_bytes(
        f'file_name,text{end}a.mp4,"x{end}b\0.mp4",y{end}'.encode()
    ),
    "jsonl": lambda folder, end: (folder / "metadata.jsonl").write_text(
        "\n\n" + json.dumps({"file_name": "a.mp4", "text": "a cat\0and a dog"})
    ),
    "name in jsonl": lambda folder, end: (folder / "metadata.jsonl").write_text(
        "\n\n" + json.dumps({"file_name": "a\0.mp4", "text": "x"})
    ),
    "an unpaired surrogate in jsonl": lambda folder, end: (folder / "metadata.jsonl").write_text(
        "\n\n" + json.dumps({"file_name": "a.mp4", "text": "a cat \ud83d"})
    ),
    "bytes in jsonl": lambda folder, end: (folder / "metadata.jsonl").write_bytes(
        f'{end}{end}{{"file_name": "a.mp4", "text": "a cat\0"}}'.encode()
    ),
    "prompts": lambda folder, end: write_pair(folder, f"x{end}y{end}z\0", f"a.mp4{end}b.mp4{end}c.mp4"),
    "videos": lambda folder, end: write_pair(folder, f"x{end}y{end}z", f"a.mp4{end}b.mp4{end}c\0.mp4"),
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("what", NO_LETTERS)
def test_what_is_no_letter(folder: Path, what: str, end: str) -> None:
    """A tokenizer cuts a caption at NUL, or fails with an error of its own; a file's name with it names no file."""
    NO_LETTERS[what](folder, end)
    kind = r"an unpaired surrogate \(U\+D83D\)" if "unpaired" in what else "a NUL character"
    with pytest.raises(UserError, match=rf", line 3, contains {kind}. Delete it, or save") as caught:
        clips.find_clips(folder)
    assert "cat" not in str(caught.value) and len(str(caught.value)) < 300


def test_no_letter_in_a_caption_of_its_own(folder: Path) -> None:
    """One clip of many: it is left out, and the report says so."""
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text("x\ny" + ("\0" if name == "b" else ""))
    found, problems = clips.find_clips(folder)
    assert [clip.name for clip in found] == ["a.mp4", "c.mp4"]
    assert len(problems) == 1 and "b.txt, line 2, contains a NUL character" in problems[0]


def write_pair(folder: Path, prompts: str, videos: str) -> None:
    (folder / "prompts.txt").write_bytes(prompts.encode())
    (folder / "videos.txt").write_bytes(videos.encode())


@pytest.mark.parametrize(
    ("prompts", "videos"),
    [("x\ny", "a.mp4\nb.mp4\n"), ("x\r\ny\r\n", "a.mp4\r\nb.mp4"), ("\nx\ny\n\n", "\na.mp4\nb.mp4\n\n")],
)
def test_line_by_line(folder: Path, prompts: str, videos: str) -> None:
    write_pair(folder, prompts, videos)
    assert captions(folder) == {"a.mp4": "x", "b.mp4": "y"}


def test_a_missing_line_moves_no_caption(folder: Path) -> None:
    """An empty first line was dropped from one of the two files: every clip got the caption of its neighbour."""
    write_pair(folder, "\nx\ny\n", "a.mp4\nb.mp4\nc.mp4\n")
    found, problems = clips.find_clips(folder)
    assert {clip.name: clip.caption for clip in found} == {"b.mp4": "x", "c.mp4": "y"}
    assert len(problems) == 1 and "a.mp4: it has no caption; prompts.txt, line 1" in problems[0]
    write_pair(folder, "\nx\n", "a.mp4\n")
    with pytest.raises(UserError, match="has 2 lines and videos.txt 1"):
        clips.find_clips(folder)


def test_rows_that_name_no_clip_name_their_line(folder: Path) -> None:
    """In a table of thousands of rows the name alone is hard to find, and a row may have none."""
    (folder / "metadata.csv").write_text('file_name,text\na.mp4,"x\ny"\ngone.mp4,x\n,x\nb.mp4\n"c?.mp4",x\n')
    found, problems = clips.find_clips(folder)
    assert [clip.name for clip in found] == ["a.mp4"]
    lines = [int(re.findall(r"metadata.csv, line (\d+),", problem)[0]) for problem in problems]
    assert lines == [4, 5, 6, 7]
