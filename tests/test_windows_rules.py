"""Every file operation of the pack under Windows' rules, which a stand-in enforces: windows_files.py."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads.hub import RemoteFile
from cogvideox.model_loaders.downloads.part_file import PartFile
from cogvideox.model_loaders.files.safetensors_writer import write_tensors
from cogvideox.system import complete_file
from cogvideox.tests.system.test_complete_file import WRITERS
from cogvideox.tests.test_house import FILES, ROOT
from cogvideox.tests.training.test_loop import train
from cogvideox.tests.windows_files import SHARING_VIOLATION, windows, windows_error
from cogvideox.training import cache, checkpoint

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the stand-in asks Linux what is open")
RENAMES = (".rename(", "os.replace(", "os.rename(", "os.renames(", "shutil.move(", "shutil.rmtree(")


@pytest.mark.parametrize("what", WRITERS)
def test_every_writer_twice(tmp_path: Path, what: str) -> None:
    """The first has no file to replace; the second replaces its own, or says that the name is taken."""
    with windows(tmp_path) as refused:
        WRITERS[what](tmp_path)
        try:
            WRITERS[what](tmp_path)
        except UserError as error:
            assert "exists already" in str(error)
    # Whether a name is taken is asked by the rename that gives it, which Windows refuses then; twice where there is no
    # other name.
    assert not refused or (what == "video" and len(refused) <= 2)
    assert all(refusal.startswith(f"[Errno {errno.EEXIST}]") for refusal in refused)
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_a_training_that_goes_on(tmp_path: Path) -> None:
    """The log of the first part was still open when the second one replaced it; checkpoints take turns."""
    with windows(tmp_path) as refused:
        train(tmp_path / "run", should_stop=lambda: True)
        train(tmp_path / "run")
    assert not refused
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log.csv", "step-000008"]


def test_a_training_that_was_ended_by_an_error(tmp_path: Path) -> None:
    """A traceback keeps the loop's variables alive, the open log among them."""

    def fail(step: int, loss: float) -> None:
        raise RuntimeError("the card is gone")

    with windows(tmp_path) as refused:
        with pytest.raises(RuntimeError) as kept:
            train(tmp_path / "run", on_step=fail)
        train(tmp_path / "run")
    assert not refused and kept.tb is not None


def test_an_old_checkpoint_that_is_open_stays_whole(tmp_path: Path) -> None:
    """Half of it would still have the name of a complete one."""
    train(tmp_path, should_stop=lambda: True)
    (old,) = checkpoint.finished_checkpoints(tmp_path)
    with windows(tmp_path), (old / "training.pt").open("rb"):
        train(tmp_path)
        assert {path.name for path in old.iterdir()} == {"training.pt", "settings.json"}
    assert [path.name for path in checkpoint.finished_checkpoints(tmp_path)] == ["step-000001", "step-000008"]


def test_a_file_that_a_model_is_mapped_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The LoRA of the last checkpoint is loaded in ComfyUI while the training writes the next one: one sentence that
    says so, and the old file."""
    monkeypatch.setattr(complete_file, "_WAITS_S", (0.0,))
    path = tmp_path / "lora.safetensors"
    write_tensors(path, {"a": torch.zeros(2)}, {})
    with windows(tmp_path), safe_open(path, "pt") as mapped:
        with pytest.raises(UserError, match="lora.safetensors cannot be written: .*Close the program that has it open"):
            write_tensors(path, {"a": torch.ones(2)}, {}, overwrite=True)
        assert mapped.get_tensor("a").sum() == 0
    assert [name.name for name in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize("name", ["replace", "rename"])
def test_a_scanner_that_looks_at_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An antivirus has each new file open for some milliseconds: no reason to lose a model that took minutes."""
    real, busy = getattr(os, name), [2]

    def scanned(source: Any, target: Any) -> None:
        if busy[0]:
            busy[0] -= 1
            raise windows_error(SHARING_VIOLATION, source)
        real(source, target)

    monkeypatch.setattr(os, name, scanned)
    if name == "replace":
        complete_file.write_complete_text(tmp_path / "a", "all of it")
    else:
        with complete_file.complete_folder(tmp_path / "a") as part:
            (part / "b").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and not busy[0]


def test_other_errors_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without permission would cost seconds for every file."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(complete_file.time, "sleep", lambda _: pytest.fail("waits"))
    with pytest.raises(UserError, match="Permission denied. Check the free space of the disk and the permissions"):
        complete_file.write_complete_text(tmp_path / "a", "")


def test_a_download_replaces_a_file(tmp_path: Path) -> None:
    """A file that changed on the hub takes the place of the old one, whose name is taken."""
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    file = RemoteFile(target.name, 3, "sha256:" + "0" * 64)
    with windows(tmp_path) as refused:
        with PartFile(target, file) as part:
            part.write(b"new")
            part.finalize()
        with PartFile(target, file) as part:
            part.write(b"bad")
            part.discard()
    assert not refused and target.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_a_broken_file_of_the_cache_is_written_again(tmp_path: Path) -> None:
    """A power cut may leave one; the dataset would never be encoded."""
    path = tmp_path / "clip.safetensors"
    path.write_bytes(b"broken")
    with windows(tmp_path) as refused:
        assert not cache.is_complete(path)
        cache.write_cached(path, {"a": torch.ones(2)})
        assert cache.is_complete(path) and cache.read_cached(path)["a"].sum() == 2
        path.write_bytes(b"broken")
        cache.write_cached(path, {"a": torch.ones(2)})
    assert not refused


@pytest.mark.parametrize("refused_by", ["name", "open target", "open source", "taken", "flush"])
def test_the_stand_in(tmp_path: Path, refused_by: str) -> None:
    """A stand-in that allows everything would let every test above pass."""
    source, target = tmp_path / "a", tmp_path / "b"
    for path in (source, target):
        path.touch()

    def flush() -> None:
        with source.open("rb") as file:
            os.fsync(file.fileno())

    def replace_open(path: Path) -> None:
        with path.open():
            os.replace(source, target)

    cases: dict[str, Callable[[], object]] = {
        "name": lambda: (tmp_path / "a:b").open("w"),
        "open target": lambda: replace_open(target),
        "open source": lambda: replace_open(source),
        "taken": lambda: source.rename(target),
        "flush": flush,
    }
    with windows(tmp_path) as refused, pytest.raises(OSError):
        cases[refused_by]()
    assert len(refused) == 1
    cases[refused_by]()  # outside of it, POSIX allows all of them


def test_renames_and_deletions_are_in_one_place() -> None:
    """A rename elsewhere would be right on the developer's system only."""
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for name, path in FILES.items()
        if name != "system.complete_file"
        for line in path.read_text("utf-8").splitlines()
        if any(word in line for word in RENAMES)
    }
    assert not found
