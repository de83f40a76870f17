"""The files of a farm's results, and which of them count as done."""

import json
import os
from pathlib import Path

import pytest

from cogvideox.devtools.errors import DevError
from cogvideox.devtools.farm.farm_results import Results
from cogvideox.devtools.run.targets import file_sha256

LINE = {"prompt": "a star", "seed": 3}
FILES = [("star_00001_.MP4", b"video"), ("star_00001_.png", b"picture")]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def write(results: Results) -> dict:
    return results.write("star", FILES, {"line": LINE, "seconds": 1.0})


def test_results_are_found_again(results: Results, tmp_path: Path) -> None:
    """The same command goes on where it stopped; a clip of several files is done with all of them."""
    record = write(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["star.2.png", "star.farm.json", "star.mp4"]
    assert (tmp_path / "star.2.png").read_bytes() == b"picture"
    assert results.find_done("star", LINE) == record == json.loads((tmp_path / "star.farm.json").read_text())
    assert results.find_done("star", {**LINE, "seed": 4}) is None
    assert results.find_done("moon", LINE) is None


@pytest.mark.parametrize("name", ["plain", "x." + "p" * 240, "x.p\x1b[31mn\ng", "x."])
def test_any_name_that_a_workflow_gives(results: Results, name: str) -> None:
    """A stranger's node may call its file what it will: the farm goes on, and the clip counts as made."""
    record = results.write("star", [(name, b"1"), (name, b"2")], {"line": LINE})
    assert [Path(each["file"]).name for each in record["files"]] == ["star", "star.2"]
    assert results.find_done("star", LINE) == record


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_result(results: Results, tmp_path: Path) -> None:
    """To read one would wait for ever."""
    write(results)
    (tmp_path / "star.mp4").unlink()
    os.mkfifo(tmp_path / "star.mp4")
    held = os.open(tmp_path / "star.mp4", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert file_sha256(tmp_path / "star.mp4") == "" and results.find_done("star", LINE) is None
    finally:
        os.close(held)


@pytest.mark.parametrize("change", ["deleted", "changed", "another's"])
def test_what_is_not_whole_is_made_again(results: Results, tmp_path: Path, change: str) -> None:
    """A kill between two files, or a hand that has touched one."""
    write(results)
    if change == "deleted":
        (tmp_path / "star.2.png").unlink()
    elif change == "changed":
        (tmp_path / "star.mp4").write_bytes(b"other")
    else:
        record = json.loads((tmp_path / "star.farm.json").read_text())
        record["files"][0]["file"] = "/elsewhere/moon.mp4"
        (tmp_path / "star.farm.json").write_text(json.dumps(record))
    assert results.find_done("star", LINE) is None
    results.check_free({"star": LINE}, overwrite=False)  # it is ours, and may be replaced


def test_a_folder_that_was_moved_is_whole(results: Results, tmp_path: Path) -> None:
    """Records have absolute paths, for whoever reads them."""
    write(results)
    moved = tmp_path.with_name(f"{tmp_path.name}_moved")
    tmp_path.rename(moved)
    assert Results(moved).find_done("star", LINE) is not None


@pytest.mark.parametrize("present", ["star.mp4", "STAR.webm", "star.farm.json"])
def test_a_file_of_something_else_is_not_replaced(results: Results, tmp_path: Path, present: str) -> None:
    """Whatever is there is kept, in file systems too for which both spellings are one."""
    (tmp_path / present).write_text("{}")
    with pytest.raises(DevError, match="--overwrite"):
        results.check_free({"star": LINE}, overwrite=False)
    results.check_free({"star": LINE}, overwrite=True)
    results.check_free({"stars": LINE}, overwrite=False)


def test_results_of_other_lines_are_not_replaced(results: Results) -> None:
    """A line whose seed was changed would take the place of the old clip."""
    write(results)
    with pytest.raises(DevError, match="made of another line"):
        results.check_free({"star": {**LINE, "seed": 4}}, overwrite=False)
