"""Files and folders that exist either complete or not at all, whatever interrupts the writing, on every system.

All renames of the pack go through here, and all deletions of folders. They follow the rules of Windows, which are the
strictest: a name is only given to a file that nobody has open, a folder takes no name that is taken, and a file that is
open stays.

What a killed process has left is deleted by the next writer. Each unfinished file has a lock beside it, which the
operating system releases when its process ends: a file whose lock is free is nobody's.
"""

import errno
import hashlib
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NameTakenError, UserError

# Of the same folder, since a file is renamed in one step only within a file system; hidden, and with a suffix of its
# own, so that no list of models takes it for one. The machine is part of the name, because a folder in a network may
# be written by several, which do not see each other's locks everywhere.
_PART = r"\..+\.(?:(?P<machine>[0-9a-f]{6})-)?[0-9a-f]{8}\.part"
_LOCK_SUFFIX = ".lock"
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_ABANDONED_S = 24 * 3600.0  # age of a file whose lock says nothing: of another machine, or of a version without locks
_SWEEP_EVERY_S = 60.0  # a training's cache is thousands of files in one folder
_MAX_FOLDERS = 10_000
# Windows: access denied, sharing violation, lock violation, a file that is mapped (winerror.h). An antivirus or an
# indexer holds a new file for some milliseconds.
_IN_USE = (5, 32, 33, 1224)
_WAITS_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)

_DELETES_OPEN_FILES = os.name != "nt"
_RENAMES_ONTO_FILES = os.name != "nt"

_TAKEN = object()
_swept: dict[str, float] = {}  # folder -> when it was last looked through, by time.monotonic
_sweeps: dict[str, threading.Thread] = {}  # folder -> what looks through it and all folders below it
_sweeps_guard = threading.Lock()


def writing_advice(error: OSError) -> str:
    """What to do about an error of the system in writing or renaming."""
    if getattr(error, "winerror", None) in _IN_USE:
        return "Close the program that has it open, such as a ComfyUI that has loaded it, or choose another name."
    return "Check the free space of the disk and the permissions of the folder."


@contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Turns the system's errors while `path` is written into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}. {writing_advice(error)}") from error


@dataclass
class UnfinishedFile:
    """A file that is being written.

    part: where to write it. path: the name that it gets when it is complete; afterwards, the name that it has got.
    """

    part: Path
    path: Path


@contextmanager
def complete_file(
    path: Path, replaces: bool = False, next_path: Callable[[], Path] | None = None
) -> Iterator[UnfinishedFile]:
    """Let the block write a file next to `path`. When the block ends, the file gets that name.

    A file that had the name when the block began is replaced, and one that got it meanwhile stays as it is. replaces:
    that one is replaced too. next_path(): another name in the same folder, asked for where the name is taken; then no
    file is replaced.

    Where the block raises, its file is deleted and `path` stays as it was. After a power cut `path` holds either the
    old contents or the new ones, because the new ones are on the disk before they get the name. What killed processes
    have left in the folder is deleted.

    Raises NameTakenError where the name has been taken and there is no other one; and UserError for every error of the
    system, those of the block included: a disk may be full when the file gets its name, after all of it was written.
    """
    with explained_writing(path), _unfinished(path) as part:
        replaces = replaces or (next_path is None and os.path.lexists(path))
        file = UnfinishedFile(part, path)
        yield file
        _flush(file.part)
        if replaces:
            return replace_file(file.part, file.path)
        while not _give_free_name(file.part, file.path):
            taken, file.path = file.path, file.path if next_path is None else next_path()
            # Another name was asked for and is the same: what had it may be gone by now.
            if next_path and file.path == taken and _give_free_name(file.part, file.path):
                return
            if file.path == taken:
                raise NameTakenError(
                    f"{taken} exists already: something else has made it meanwhile. It is not overwritten. Choose "
                    "another name, or move the file away."
                )


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Let the block fill a new folder, which gets the name `path` when the block ends.

    Where the block raises, its folder is deleted. What killed processes have left beside `path` is deleted.

    Raises OSError, where the name is taken too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(path) as part:
        part.mkdir()
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
        # POSIX would let it replace an empty folder, and Windows none.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        _retried(os.rename, part, path)


def write_complete_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 to `path`, in the place of what is there, complete or not at all. Raises UserError."""
    with complete_file(path, replaces=True) as file:
        file.part.write_text(text, encoding="utf-8")


def replace_file(source: Path, target: Path) -> None:
    """Give a file the name `target`, in the place of the file that had it. Nobody may have either open on Windows.

    Raises OSError.
    """
    _retried(os.replace, source, target)


def _give_free_name(source: Path, target: Path) -> bool:
    """Give a file the name `target`, unless that is taken. Returns whether it has got it. Raises OSError."""
    try:
        if not _RENAMES_ONTO_FILES:
            _retried(os.rename, source, target)
        elif not _link(source, target):
            # A file system without links: exFAT, and some that are shared in a network. The name is reserved first,
            # which fails where it is taken. A kill right after it leaves an empty file.
            target.open("xb").close()
            try:
                os.replace(source, target)
            except OSError:
                _delete(target)
                raise
    except FileExistsError:
        return False
    return True


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name. Returns whether the file system can. Raises FileExistsError where it is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        # NFS asks its server again where the first answer was lost, and finds the name taken by its own first try.
        if not os.path.samestat(os.lstat(source), os.lstat(target)):
            raise
    except (OSError, AttributeError):  # Python on Android has no os.link
        return False
    return True


def remove_folder(path: Path) -> None:
    """Delete a folder; where something in it is open on Windows, all of it stays. Raises nothing."""
    # Under another name first: a kill in between, or a file that is open, would leave half of a folder that is taken
    # for a complete one. The end of the block deletes what has that name, or else the next writer does.
    with suppress(OSError), _unfinished(path) as aside:
        os.rename(path, aside)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that only this user may read, to the end of the block. What killed processes have
    left there is deleted. Raises OSError."""
    with _unfinished(path) as part:
        part.mkdir(mode=0o700)
        yield part


@contextmanager
def only_process(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock that the operating system releases when the process ends, even by a kill.

    lock: the lock's file, deleted at the end. busy: the message where another process holds it.

    Raises UserError where another one holds it, and OSError.
    """
    held = _try_lock(lock)
    if held is _TAKEN:
        raise UserError(busy)
    try:
        yield
    finally:
        _release(held, lock)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes have left in `folder`; at most once a minute. What a living process writes stays.
    Raises nothing."""
    name, now = os.path.abspath(folder), time.monotonic()
    if now - _swept.get(name, float("-inf")) >= _SWEEP_EVERY_S:
        _swept[name] = now
        _remove_in(*next(os.walk(folder), (name, [], [])))


def remove_unfinished_below(folder: Path) -> None:
    """remove_unfinished in `folder` and all folders below it, without following links: in a thread, and once in a
    process, since an output folder may have a million files, on a disk in a network. Raises nothing."""
    with _sweeps_guard:
        if (name := os.path.abspath(folder)) in _sweeps:
            return
        # A daemon, so that a disk that does not answer keeps no program from ending.
        sweep = threading.Thread(target=_sweep, args=(name,), name="cogvideox-unfinished-files", daemon=True)
        _sweeps[name] = sweep
    sweep.start()


def _sweep(root: str) -> None:
    for number, (folder, folders, files) in enumerate(os.walk(root)):
        _remove_in(folder, folders, files)
        folders[:] = [name for name in folders if number < _MAX_FOLDERS and not re.fullmatch(_PART, name)]


def _remove_in(folder: str, folders: list[str], files: list[str]) -> None:
    """Delete what killed processes have left of the entries of a folder."""
    for entry in (*folders, *files):
        if re.fullmatch(_PART, entry.removesuffix(_LOCK_SUFFIX)):
            _remove_abandoned(Path(folder, entry.removesuffix(_LOCK_SUFFIX)))


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A free path next to `path`, locked while the block writes there; what is left at it in the end is deleted."""
    remove_unfinished(path.parent)
    held = _TAKEN
    # Whoever looks for unfinished files may hold the lock for a moment, and would then delete the file.
    while held is _TAKEN:
        part = _part_path(path)
        lock = part.with_name(part.name + _LOCK_SUFFIX)
        # Without the folder the writer itself finds out, whose error says more than the lock's.
        held = _try_lock(lock) if path.parent.is_dir() else None
    try:
        yield part
    finally:
        # Where the block has raised, an error in deleting must not hide that error.
        _delete(part)
        _release(held, lock)


def _part_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_MACHINE}-{uuid.uuid4().hex[:8]}.part")


def _remove_abandoned(part: Path) -> None:
    """Delete an unfinished file or folder and its lock, unless a living process may hold it."""
    lock = part.with_name(part.name + _LOCK_SUFFIX)
    match = re.fullmatch(_PART, part.name)
    is_known = match is not None and match["machine"] == _MACHINE and os.path.lexists(lock)
    with suppress(OSError):
        # The lock without its file is what a process leaves that was killed at its very beginning or end.
        newest = max((os.lstat(path).st_mtime for path in (part, lock) if os.path.lexists(path)), default=0.0)
        if not is_known and time.time() - newest < _ABANDONED_S:
            return
        held = _try_lock(lock)
        if held is not _TAKEN:
            _delete(part)
            _release(held, lock)


def _try_lock(path: Path) -> Any:
    """A lock at `path` that this process holds; _TAKEN where another one does; None where the file system knows no
    locks. Raises OSError."""
    # Imported late: dev.py describes downloads with a Python that has no packages.
    import filelock

    while True:
        lock = filelock.FileLock(str(path))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return None if _has_no_locks(path) else _TAKEN
        except (OSError, NotImplementedError):
            if _has_no_locks(path):
                return None
            raise
        # Another process may have deleted the file between its opening and its locking here, and a third one have made
        # a new one: then nobody else would find this lock.
        if _is_at(lock, path):
            return lock
        lock.release()


def _has_no_locks(path: Path) -> bool:
    """Whether the file system of `path` refuses locks for another reason than that they are taken, as NFS without its
    lock service does. filelock's versions differ in what they say of it."""
    try:
        import fcntl
    except ImportError:  # Windows, whose file systems all have them
        return False
    with suppress(OSError), path.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
    return False  # free by now, or not to be opened


def _is_at(lock: Any, path: Path) -> bool:
    """Whether the file that a lock holds is the one called `path`."""
    try:
        there = os.stat(path)
        held = os.fstat(lock._context.lock_file_fd)
    except (OSError, AttributeError, TypeError):  # gone; or a version of filelock that keeps its file elsewhere
        return os.path.lexists(path)
    return os.path.samestat(held, there)


def _release(held: Any, path: Path) -> None:
    if held is _TAKEN:
        return
    # While it is still held: whoever waits for it must not find the name once another one may take it. On Windows the
    # deletion comes afterwards, and is refused where another process has the file open by then.
    if _DELETES_OPEN_FILES:
        _delete(path)
    if held is not None:
        held.release()
    if not _DELETES_OPEN_FILES:
        _delete(path)


def _delete(path: Path) -> None:
    """Delete a file or a folder, if it is there. Raises nothing."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    # Opened for writing although nothing is written: Windows flushes no other handles.
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def _retried(rename: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """`rename`, again where another program has the file open for a moment on Windows."""
    for wait_s in _WAITS_S:
        try:
            return rename(source, target)
        except OSError as error:
            if getattr(error, "winerror", None) not in _IN_USE:
                raise
        time.sleep(wait_s)
    return rename(source, target)
