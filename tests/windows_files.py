"""A stand-in for Windows' file system on Linux: its rules for names that are taken, files that are open, and ":"."""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cogvideox.system import complete_file

ACCESS_DENIED, SHARING_VIOLATION, ALREADY_EXISTS, INVALID_NAME = 5, 32, 183, 123  # winerror.h
_FORBIDDEN = set('<>:"|?*\\')


def windows_error(code: int, path: object, kind: type[OSError] = PermissionError) -> OSError:
    """What Python raises there. winerror is an attribute that OSError has on Windows only."""
    error = kind(errno.EACCES if kind is PermissionError else errno.EEXIST, "Windows does not allow it", str(path))
    error.winerror = code  # type: ignore[attr-defined]
    return error


def open_files() -> set[str]:
    """Files that this process has open or mapped."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with Path("/proc/self/maps").open(encoding="utf-8") as maps:
        found |= {line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6}
    return found


@contextmanager
def windows(root: Path) -> Iterator[list[str]]:
    """Windows' rules for everything below `root`. Yields the refusals so far, which a test may look at."""
    refused: list[str] = []
    base = os.path.realpath(root)

    def inside(path: Any) -> str | None:
        if not isinstance(path, (str, os.PathLike)):
            return None
        place = os.path.abspath(os.fspath(path))
        return place if place.startswith(base + os.sep) else None

    def refuse(error: OSError) -> None:
        refused.append(str(error))
        raise error

    def check_closed(path: Any, code: int) -> None:
        place = inside(path)
        if place is not None and any(name == place or name.startswith(place + os.sep) for name in open_files()):
            refuse(windows_error(code, path))

    def check_name(path: Any) -> None:
        place = inside(path)
        if place is not None and _FORBIDDEN & set(place[len(base) :]):
            refuse(windows_error(INVALID_NAME, path, OSError))

    def wrap(real: Callable[..., Any], before: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before(*args, **kwargs)
            return real(*args, **kwargs)

        return call

    def before_rename(source: Any, target: Any, *_: Any, **__: Any) -> None:
        check_name(target)
        check_closed(source, SHARING_VIOLATION)
        if inside(target) is not None and os.path.lexists(target):
            refuse(windows_error(ALREADY_EXISTS, target, FileExistsError))

    def before_replace(source: Any, target: Any, *_: Any, **__: Any) -> None:
        check_name(target)
        check_closed(source, SHARING_VIOLATION)
        check_closed(target, ACCESS_DENIED)
        if inside(target) is not None and os.path.isdir(target):
            refuse(windows_error(ACCESS_DENIED, target))

    def before_unlink(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> None:
        folder = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else ""
        check_closed(os.path.join(folder, os.fspath(path)), SHARING_VIOLATION)

    def before_fsync(number: int) -> None:
        place = Path(f"/proc/self/fdinfo/{number}")
        flags = next(line.split()[1] for line in place.read_text("utf-8").splitlines() if line.startswith("flags"))
        can_write = int(flags, 8) & (os.O_RDWR | os.O_WRONLY)
        if inside(os.readlink(f"/proc/self/fd/{number}")) and not can_write:
            refuse(windows_error(ACCESS_DENIED, number))  # FlushFileBuffers needs a handle that may write

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "mkdir"):
            patch.setattr(os, name, wrap(getattr(os, name), lambda path, *_, **__: check_name(path)))
        for module in (io, builtins):
            patch.setattr(module, "open", wrap(io.open, lambda path, *_, **__: check_name(path)))
        for name in ("_DELETES_OPEN_FILES", "_RENAMES_ONTO_FILES"):
            patch.setattr(complete_file, name, False)
        patch.setattr(os, "rename", wrap(os.rename, before_rename))
        patch.setattr(os, "replace", wrap(os.replace, before_replace))
        patch.setattr(os, "fsync", wrap(os.fsync, before_fsync))
        for name in ("unlink", "remove"):
            patch.setattr(os, name, wrap(getattr(os, name), before_unlink))
        yield refused
