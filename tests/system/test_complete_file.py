"""Files that are there complete or not at all."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cogvideox.errors import NameTakenError, UserError
from cogvideox.media.video_file import FORMATS, VideoSettings, write_video
from cogvideox.model_loaders.downloads.manifest import Manifest
from cogvideox.model_loaders.files import safetensors_writer
from cogvideox.model_loaders.files.safetensors_writer import write_safetensors, write_tensors
from cogvideox.system.complete_file import complete_file, write_complete_text
from cogvideox.tests.windows_files import windows
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
    path, names = tmp_path / "video_1.mp4", iter([tmp_path / "video_2.mp4", tmp_path / "video_3.mp4"])
    with complete_file(path, next_path=lambda: next(names)) as file:
        file.part.write_text("ours")
        path.write_text("theirs")
        (tmp_path / "video_2.mp4").write_text("theirs too")
    assert path.read_text() == "theirs" and (tmp_path / "video_2.mp4").read_text() == "theirs too"
    assert file.path == tmp_path / "video_3.mp4" and file.path.read_text() == "ours"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_name_that_was_taken_before_the_first_byte(tmp_path: Path) -> None:
    """Between the question for a free name and the beginning of the file."""
    path = tmp_path / "video_1.mp4"
    path.write_text("theirs")
    with complete_file(path, next_path=lambda: tmp_path / "video_2.mp4") as file:
        file.part.write_text("ours")
    assert path.read_text() == "theirs" and file.path.read_text() == "ours" and file.path.name == "video_2.mp4"


def test_a_name_that_is_free_again(tmp_path: Path) -> None:
    """What had the name is deleted before the next one is asked for, which is then the same: the video was lost."""
    path = tmp_path / "video_1.mp4"

    def next_path() -> Path:
        path.unlink()
        return path

    with complete_file(path, next_path=next_path) as file:
        file.part.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "ours" and file.path == path and list(tmp_path.iterdir()) == [path]


def test_a_name_that_stays_taken(tmp_path: Path) -> None:
    """Nobody else has to be asked for ever."""
    path = tmp_path / "video_1.mp4"
    with pytest.raises(NameTakenError, match="exists already"), complete_file(path, next_path=lambda: path) as file:
        file.part.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("when", ["before the first byte", "while it is written"])
def test_a_file_that_appears_while_weights_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, when: str
) -> None:
    """Where the file is meant to be replaced, a training of hours ended at it; where not, it has to stay."""
    path = tmp_path / "model.safetensors"

    def theirs(*_: object) -> None:
        path.write_bytes(b"theirs")

    if when == "before the first byte":
        monkeypatch.setattr(safetensors_writer, "require_space", theirs)

    def tensor(_: str) -> torch.Tensor:
        theirs()
        return torch.ones(2)

    def write() -> int:
        return write_safetensors(path, {"a": ((2,), torch.float32)}, tensor, {}, overwrite=overwrite)

    if overwrite:
        assert write() == path.stat().st_size and load_file(path)["a"].tolist() == [1, 1]
    else:
        with pytest.raises(NameTakenError, match="exists already"):
            write()
        assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def _refuse_link(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


HOW_NAMES_ARE_GIVEN: dict[str, Callable[[Path, pytest.MonkeyPatch], AbstractContextManager[object]]] = {
    "by a link": lambda *_: nullcontext(),
    "exFAT, which knows no links": lambda _, patch: nullcontext(patch.setattr(os, "link", _refuse_link)),
    "a Python without links": lambda _, patch: nullcontext(patch.delattr(os, "link")),
    "Windows": lambda folder, _: windows(folder),
}
given = pytest.mark.parametrize("how", HOW_NAMES_ARE_GIVEN)


@given
@pytest.mark.parametrize("what", ["file", "dangling link", "folder"])
def test_what_is_taken_in_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    """The last bytes of 11 GB take seconds to reach the disk. Whoever made a file of that name meanwhile lost it."""
    path, flush = tmp_path / "model.safetensors", os.fsync
    make: dict[str, Callable[[], object]] = {
        "file": lambda: path.write_bytes(b"theirs"),
        "dangling link": lambda: path.symlink_to(tmp_path / "gone"),
        "folder": path.mkdir,
    }
    with HOW_NAMES_ARE_GIVEN[how](tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", lambda number: (flush(number), make[what]()))
        with pytest.raises(UserError, match="model.safetensors exists already.*Choose another name"):
            write_tensors(path, {"a": torch.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"theirs" if what == "file" else path.is_dir() or path.is_symlink()


@given
def test_a_free_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """On each of these disks the file is there in the end, alone and with one name."""
    path = tmp_path / "model.safetensors"
    with HOW_NAMES_ARE_GIVEN[how](tmp_path, monkeypatch):
        with complete_file(path) as file:
            file.part.write_bytes(b"ours")
    assert path.read_bytes() == b"ours" and path.stat().st_nlink == 1 and list(tmp_path.iterdir()) == [path]


@given
@pytest.mark.parametrize("was_there", [True, False])
def test_what_is_meant_to_be_replaced_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, was_there: bool
) -> None:
    """A log and a LoRA of each checkpoint replace the ones before, whoever has written them."""
    path = tmp_path / "log.csv"
    with HOW_NAMES_ARE_GIVEN[how](tmp_path, monkeypatch):
        if was_there:
            path.write_text("old")
        with complete_file(path, replaces=not was_there) as file:
            file.part.write_text("new")
            path.write_text("meanwhile")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_answer_of_a_server_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS asks again, and finds the name taken by its own first try: the file is there and must not be refused."""
    link = os.link

    def linked_twice(*names: Any) -> None:
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", linked_twice)
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_disk_that_is_full_after_the_name_was_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file would be left, with the name of a model."""
    monkeypatch.setattr(os, "link", _refuse_link)
    monkeypatch.setattr(os, "replace", _refuse_link)
    with pytest.raises(UserError, match="cannot be written: Operation not permitted"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("step", ["flush", "name"])
@pytest.mark.parametrize("what", WRITERS)
def test_a_disk_that_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: str) -> None:
    """The last bytes and the name take room as well: one sentence that names the file, and nothing half-written."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ["fsync"] if step == "flush" else ["link", "replace"]:
        monkeypatch.setattr(os, name, full)
    with pytest.raises(UserError, match="cannot be written.* No space left on device.*[Ff]ree s") as caught:
        WRITERS[what](tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(os.name == "nt", reason="a folder's permissions are others on Windows")
@pytest.mark.parametrize("what", WRITERS)
def test_a_file_where_the_folder_should_be(tmp_path: Path, what: str) -> None:
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
