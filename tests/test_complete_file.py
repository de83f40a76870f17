"""Files that are there complete or not at all."""

import errno
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cogvideox.complete_file import complete_file, write_complete_text
from cogvideox.errors import UserError
from cogvideox.media.video_file import FORMATS, VideoSettings, write_video
from cogvideox.model_loaders.downloads.manifest import Manifest
from cogvideox.model_loaders.files.safetensors_writer import write_tensors
from cogvideox.training import headless
from cogvideox.training.cache import write_cached, write_index
from cogvideox.training.loop import _Log


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


def _video(folder: Path) -> None:
    settings = VideoSettings(FORMATS["mp4 (h264)"], Fraction(8), 20)
    write_video(lambda: folder / "new.mp4", [torch.zeros(1, 32, 32, 3)], (32, 32), settings)


def _losses(folder: Path) -> None:
    _Log(folder / "log.csv", 0)
    training: Any = SimpleNamespace(
        run_folder=folder, output=SimpleNamespace(name="n"), mode="full", training=SimpleNamespace(max_steps=2)
    )
    nothing: Any = None
    headless.save_artifacts(training, nothing, torch.float32, 1, {})


# Every place that writes through complete_file.
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_complete_text(folder / "new.json", "{}"),
    "LoRA or model": lambda folder: write_tensors(folder / "new.safetensors", {"a": torch.zeros(2)}, {}),
    "in a new folder": lambda folder: write_tensors(folder / "b" / "new.safetensors", {"a": torch.zeros(2)}, {}),
    "video": _video,
    "manifest": lambda folder: Manifest("a/b", "main", []).save(folder),
    "index of a dataset": lambda folder: write_index(folder, {"a": ["b"]}),
    "part of a dataset": lambda folder: write_cached(folder / "new.safetensors", {"a": torch.zeros(2)}),
    "log and picture of the loss": _losses,
}


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("what", WRITERS)
def test_a_disk_that_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: str) -> None:
    """The last bytes and the name take room as well: one sentence that names the file, and nothing half-written."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match="cannot be written.* No space left on device.*[Ff]ree s") as caught:
        WRITERS[what](tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(os.name == "nt", reason="a folder's permissions are others on Windows")
@pytest.mark.parametrize("what", WRITERS)
def test_a_folder_that_is_none(tmp_path: Path, what: str) -> None:
    """A file where the folder is expected: the system's error would be a stack trace."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        WRITERS[what](tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_of_the_block(tmp_path: Path) -> None:
    """The disk fills up in the middle of a file."""
    with (
        pytest.raises(UserError, match="new.bin cannot be written: File too large"),
        complete_file(tmp_path / "new.bin"),
    ):
        raise OSError(errno.EFBIG, "File too large")
    assert not list(tmp_path.iterdir())
