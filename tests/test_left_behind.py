"""What a killed process leaves of a file that it was writing: the next writer deletes it, and nothing else."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.host.output import new_output_path
from cogvideox.media.video_file import new_video_path
from cogvideox.model_loaders.files.safetensors_writer import write_tensors
from cogvideox.nodes import save, train
from cogvideox.system import complete_file
from cogvideox.tests.children import CONTEXT, Child, running
from cogvideox.tests.system.test_complete_file import WRITERS
from cogvideox.training import checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins for a kill are POSIX's")
MACHINE = complete_file._MACHINE
OLD_S = 25 * 3600


def die_in_the_middle_of_each(root: Path) -> None:
    """For each writer a process that is killed when all bytes are there and the name is not."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, "fsync", die)  # noqa: B010, of processes that end with it
    for what, write in WRITERS.items():
        folder = root / what
        folder.mkdir()
        child = os.fork()
        if not child:
            write(folder)
            os._exit(1)  # it should have been killed
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, what


@contextmanager
def holding(function: str, folder: Path) -> Iterator[Child]:
    """A process that is in the middle of `function`, "module.name" of the tests, which comes to its end afterwards."""
    ours, theirs = CONTEXT.Pipe()
    with running(function, folder, theirs) as process:
        theirs.close()
        assert ours.poll(120) and ours.recv() == "holds", process.output()
        yield process
        ours.close()
        process.wait()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are looked through at most once a minute, which is too long for a test."""
    monkeypatch.setattr(complete_file, "_SWEEP_EVERY_S", 0.0)


def make_older(path: Path, age_s: float) -> None:
    when = time.time() - age_s
    os.utime(path, (when, when))


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def sweep(folder: Path) -> None:
    """Look through a folder and all below it, and wait for the end."""
    complete_file.remove_unfinished_below(folder)
    complete_file._sweeps[str(folder)].join()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each writer, with what a kill has left."""
    root = tmp_path_factory.mktemp("killed")
    with running("test_left_behind.die_in_the_middle_of_each", root) as process:
        process.result()
    return root


@pytest.mark.parametrize("what", WRITERS)
def test_the_next_run_deletes_what_a_kill_has_left(killed: Path, what: str) -> None:
    """11 GB under a hidden name, for ever, for each Save Model of a 5b that was killed."""
    assert any(name.endswith(".part") for name in files_in(killed / what))
    WRITERS[what](killed / what)
    assert not [name for name in files_in(killed / what) if ".part" in name]


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    """Two ComfyUIs that save into one folder would delete each other's models, however long the one takes."""
    with holding("held_file.hold", tmp_path):
        (part,) = tmp_path.glob(".model.safetensors.*.part")
        make_older(part, OLD_S)
        write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {})
        sweep(tmp_path)
        assert part.read_bytes() == b"half"
    assert files_in(tmp_path) == {"model.safetensors", "other.safetensors"}


@pytest.mark.parametrize(
    ("name", "lock", "age_s", "goes"),
    [
        (f".a.{MACHINE}-00000000.part", True, 0, True),
        (f".a.{MACHINE}-00000000.part", False, 0, False),  # its file system may have no locks
        (f".a.{MACHINE}-00000000.part", False, OLD_S, True),
        (".a.abcdef-00000000.part", True, 0, False),  # of another machine, whose locks may not be seen here
        (".a.abcdef-00000000.part", True, OLD_S, True),
        (".model.safetensors.0123abcd.part", False, 0, False),  # of a version without locks
        (".model.safetensors.0123abcd.part", False, OLD_S, True),
        ("model.safetensors.part", False, OLD_S, False),  # a download that is to be continued
        (".a.part", False, OLD_S, False),
        (".a.0123abcd.part.txt", False, OLD_S, False),
    ],
)
def test_only_what_nobody_holds(tmp_path: Path, name: str, lock: bool, age_s: float, goes: bool) -> None:
    """A file of another program, or one that a machine next door is writing, must not be lost."""
    paths = [tmp_path / name, *([tmp_path / f"{name}.lock"] if lock else [])]
    for path in paths:
        path.write_text("x")
        make_older(path, age_s)
    complete_file.remove_unfinished(tmp_path)
    assert files_in(tmp_path) == (set() if goes else {path.name for path in paths})


def test_folders_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next model may be saved in another folder than the one that was killed; links lead elsewhere."""
    outside = tmp_path / "outside"
    for folder in (outside, tmp_path / "models" / "a" / "b"):
        folder.mkdir(parents=True)
        for suffix in ("", ".lock"):
            (folder / f".a.{MACHINE}-00000000.part{suffix}").touch()
    (tmp_path / "models" / "link").symlink_to(outside, target_is_directory=True)
    complete_file.remove_unfinished(tmp_path / "models")
    assert len(files_in(tmp_path / "models" / "a")) == 2
    sweep(tmp_path / "models")
    assert not files_in(tmp_path / "models" / "a") and len(files_in(outside)) == 2
    (tmp_path / "models" / "a" / f".a.{MACHINE}-00000000.part").touch()
    monkeypatch.setattr(os, "walk", lambda _: pytest.fail("looks through a million files at every run"))
    sweep(tmp_path / "models")


@pytest.fixture
def slow_walk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk in a network that answers when the event is set, or after a minute, to those who ask for all folders."""
    answers, walk = threading.Event(), os.walk

    def slow(folder: Any) -> Any:
        for number, entry in enumerate(walk(folder)):
            if number:
                answers.wait(60)
            yield entry

    monkeypatch.setattr(os, "walk", slow)
    yield answers
    answers.set()


def test_no_save_waits_for_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_walk: threading.Event
) -> None:
    """The first save of a process looked through the whole output folder, a million files, before it wrote its own."""
    for folder in ("a", "a/b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f".a.{MACHINE}-00000000.part").touch()
        make_older(tmp_path / folder / f".a.{MACHINE}-00000000.part", OLD_S)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    began = time.monotonic()
    write_tensors(new_output_path("c/mine", ".safetensors"), {"a": torch.zeros(2)}, {})
    assert time.monotonic() - began < 30
    assert files_in(tmp_path / "c") == {"mine_00001_.safetensors"}  # that of the folder itself is gone at once
    assert files_in(tmp_path / "a")
    slow_walk.set()
    complete_file._sweeps[str(tmp_path)].join()
    assert files_in(tmp_path) == {"mine_00001_.safetensors"}


def test_a_file_that_is_written_while_the_folder_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in one process now: what another thread writes is as much a living file as what another process does."""
    written = tmp_path / "new" / "a.safetensors"
    written.parent.mkdir()
    with complete_file.complete_file(written) as file:
        file.part.write_bytes(b"half")
        make_older(file.part, OLD_S)
        sweep(tmp_path)
        assert file.part.read_bytes() == b"half"
    assert files_in(tmp_path) == {"a.safetensors"}


def test_a_lock_that_is_held_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for unfinished files may take the lock of a new file before its writer does, and deletes the file:
    the writer takes another name."""
    real, asked = complete_file._try_lock, []

    def taken_once(lock: Path) -> Any:
        asked.append(lock)
        return complete_file._TAKEN if len(asked) == 1 else real(lock)

    monkeypatch.setattr(complete_file, "_try_lock", taken_once)
    with complete_file.complete_file(tmp_path / "a") as file:
        file.part.write_bytes(b"all")
        assert file.part.name == asked[1].name.removesuffix(".lock") != asked[0].name.removesuffix(".lock")
    assert files_in(tmp_path) == {"a"}


def run_save_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "save_model", lambda *_: 1)
    model = mock.create_autospec(ModelPatcher, instance=True)
    cast(Any, save.CogVideoXSaveModel).execute(model, "new/name", "as loaded")


def run_save_trained_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "convert_trained", lambda _: ({"a": torch.zeros(2)}, {}, 0))
    cast(Any, train.CogVideoXSaveTrainedLora).execute({}, "new/name")


# Save LoRA and Decode to File ask for their names by new_output_path.
NODES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "Save Model": run_save_model,
    "Save Trained LoRA": run_save_trained_lora,
    "Save LoRA": lambda _: new_output_path("new/name", ".safetensors"),
    "Decode to File": lambda _: new_video_path("new/name", ".mp4"),
}


@pytest.mark.parametrize("node", NODES)
def test_nodes_look_through_all_that_they_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    """The run that was killed may have had another filename_prefix."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    for category in ("diffusion_models", "loras"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, category, ([str(tmp_path)], {".safetensors"}))
    (tmp_path / "old").mkdir()
    for suffix in ("", ".lock"):
        (tmp_path / "old" / f".a.{MACHINE}-00000000.part{suffix}").touch()
    NODES[node](monkeypatch)
    complete_file._sweeps[str(tmp_path)].join()
    assert not list((tmp_path / "old").iterdir())


def test_a_folder_is_there_complete_or_not_at_all(tmp_path: Path) -> None:
    """Half a checkpoint would be resumed from."""
    with pytest.raises(KeyboardInterrupt), complete_file.complete_folder(tmp_path / "new" / "step") as part:
        (part / "a").write_text("half")
        raise KeyboardInterrupt
    assert not list((tmp_path / "new").iterdir())
    with complete_file.complete_folder(tmp_path / "new" / "step") as part:
        (part / "a").write_text("whole")
        assert not (tmp_path / "new" / "step").exists()
    assert files_in(tmp_path) == {"a"} and (tmp_path / "new" / "step" / "a").read_text() == "whole"
    with pytest.raises(FileExistsError), complete_file.complete_folder(tmp_path / "new" / "step"):
        pass
    complete_file.remove_folder(tmp_path / "new" / "step")
    assert not list((tmp_path / "new").iterdir())


def test_one_training_a_folder(tmp_path: Path) -> None:
    """Two with one checkpoint_name deleted each other's checkpoints, and left a log of 7 rows for 25 steps."""
    folder = tmp_path / "mine"
    with holding("held_file.train_here", folder) as process:
        with (
            pytest.raises(UserError, match="Another training writes to .*mine.*another name or output folder"),
            checkpoint.only_training(folder),
        ):
            pass
        process.kill()
        process.wait()
    with checkpoint.only_training(folder):  # a kill leaves no lock that a person has to delete
        (folder / "log.csv").touch()
    assert files_in(folder) == {"log.csv"}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """NFS without its lock service: files are written and trainings run there, as they did before there were locks."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(code, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    complete_file.write_complete_text(tmp_path / "a.json", "{}")
    with checkpoint.only_training(tmp_path / "mine"):
        (tmp_path / "mine" / "log.csv").touch()
    left = tmp_path / f".a.{MACHINE}-00000000.part"
    left.touch()
    complete_file.remove_unfinished(tmp_path)
    assert files_in(tmp_path) == {"a.json", "log.csv", left.name}
    make_older(left, OLD_S)
    complete_file.remove_unfinished(tmp_path)
    assert files_in(tmp_path) == {"a.json", "log.csv"}


def test_a_refused_training_leaves_no_folder(tmp_path: Path) -> None:
    """An empty folder for each try."""
    with checkpoint.only_training(tmp_path / "mine"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), checkpoint.only_training(tmp_path / "file"):
        pass
