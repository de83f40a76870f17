"""Files that are there complete or not at all."""

from pathlib import Path

import pytest

from cogvideox.complete_file import complete_file, write_complete_text


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    """Whoever reads the folder meanwhile would take half a model for one."""
    path = tmp_path / "model.bin"
    with complete_file(path) as file:
        file.part.write_bytes(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half" and list(tmp_path.iterdir()) == [path]


def test_what_ends_the_writing_leaves_the_old_file(tmp_path: Path) -> None:
    """Ctrl-C or a full disk would take the last good file with it, and litter the folder."""
    path = tmp_path / "log.csv"
    write_complete_text(path, "old")
    with pytest.raises(KeyboardInterrupt), complete_file(path) as file:
        file.part.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_name_that_was_taken_meanwhile_is_changed(tmp_path: Path) -> None:
    """Two runs that save under one prefix would overwrite each other's video."""
    path = tmp_path / "video_1.mp4"
    with complete_file(path) as file:
        file.part.write_text("ours")
        path.write_text("theirs")
        file.path = tmp_path / "video_2.mp4"
    assert path.read_text() == "theirs" and file.path.read_text() == "ours"
