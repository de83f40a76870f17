"""Where results go, and which of them are there already. Standard library only, but to write.

Beside each video lies a file NAME.mp4.json with the settings that it was made with and its hash: by this a run that
was ended goes on where it stopped.
"""

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError
from cogvideox.migration.workflow_limits import check_depth
from cogvideox.system.complete_file import complete_file, write_complete_text
from cogvideox.system.small_files import read_small_text

from ..errors import DevError
from ..paths import expanded

SUFFIX, RECORD_SUFFIX = ".mp4", ".json"
_NUMBER = re.compile(r"%0[1-9]d")  # not %d, which "100%done.mp4" has too
_NEEDED = {"settings": dict, "sha256": str}  # what a record has
_IN_A_FOLDER = "%04d.mp4"
_MAX_RECORD_BYTES = 1 << 20
_LONGER = 32  # letters by which the names that a file has before it is complete are longer than its own
_NAMES_ONLY = ("image", "video")  # settings that say where a file was; its hash says what it is


@dataclass(frozen=True)
class Target:
    """The path of a result. written: as the person would write it, for messages."""

    path: Path
    written: str

    @property
    def record(self) -> Path:
        return self.path.with_name(self.path.name + RECORD_SUFFIX)


def plan_targets(out: str, count: int) -> list[Target]:
    """The paths of `count` results. The folders that they need are made, and tried.

    out: a file, a folder, or a path with a number such as clips/%03d.mp4, which counts from 1. A path without a suffix
    is a folder. Raises: DevError.
    """
    if not out.strip():
        raise DevError("--out is empty: give the name of the video, or a folder.")
    is_folder = out.endswith(("/", os.sep)) or os.path.isdir(expanded(out)) or not Path(out).suffix
    pattern = os.path.join(out, _IN_A_FOLDER) if is_folder else out
    numbers = len(_NUMBER.findall(Path(pattern).name))
    if Path(pattern).suffix.lower() != SUFFIX:
        raise DevError(f"--out is {out}, and videos are written as {SUFFIX}: give a name that ends so, or a folder.")
    if numbers > 1:
        raise DevError(f"--out is {out}, which has {numbers} numbers: give one, such as clips/%03d{SUFFIX}.")
    if count > 1 and not numbers:
        raise DevError(
            f"--out is {out}, which is one file, and there are {count} prompts: give a folder, or a name with a "
            f"number, such as {Path(out).with_name(Path(out).stem + '-%03d' + SUFFIX)}."
        )
    names = [_numbered(pattern, number) for number in range(1, count + 1)]
    targets = [Target(Path(os.path.abspath(expanded(name))), name) for name in names]
    try_folder(targets[0].path.parent, out)
    for target in targets:
        _check_place(target.path, target.written)
        _check_place(target.record, target.written + RECORD_SUFFIX)
    return targets


def _check_place(path: Path, written: str) -> None:
    """Raises: DevError where no file can have this name, or what has it is no file: /dev/null would be replaced."""
    another = "and a file is to have that name: give another one"
    try:
        with suppress(FileNotFoundError):
            os.lstat(path.with_name(f"{path.name}{_LONGER * 'x'}"))
        mode = path.stat().st_mode
    except FileNotFoundError:
        # A link to a place that is not there yet is followed, as for every other program.
        if not os.path.isdir(os.path.dirname(os.path.realpath(path))):
            raise DevError(f"--out: {written} is a link to a folder that is not there, {another}.") from None
        return
    except OSError as error:
        raise DevError(f"--out: {written} cannot be written ({error.strerror or error}): give another name.") from error
    if stat.S_ISDIR(mode):
        raise DevError(f"--out: {written} is a folder, {another}.")
    if not stat.S_ISREG(mode):
        raise DevError(f"--out: {written} is a device or a pipe, {another}.")


def check_apart(targets: Iterable[Target], inputs: Iterable[Path | None]) -> None:
    """Raises: DevError where a result, or its record, would take the place of a file that the run reads."""
    read = {_identity_of(path): path for path in inputs if path is not None}
    for target in targets:
        for path in (target.path, target.record):
            if (found := read.get(_identity_of(path))) is not None:
                raise DevError(f"--out would replace {found}, which the run reads, by a result: give another name.")


def _identity_of(path: Path) -> str:
    """The same for all spellings of a path, links followed."""
    return os.path.normcase(os.path.realpath(expanded(path)))


def _numbered(pattern: str, number: int) -> str:
    """The number belongs into the last part alone; a % elsewhere is one."""
    folder, name = os.path.split(pattern)
    return os.path.join(folder, _NUMBER.sub(lambda found: found[0] % number, name))


def try_folder(folder: Path, out: str) -> None:
    """Make a folder. out: how --out names it. Raises: DevError where nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DevError(
            f"--out is {out}, and nothing can be written to {folder} ({error.strerror or error}): give another place."
        ) from error


def find_done(target: Target, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a result that is there, whole, and was made with these settings; None otherwise."""
    record = read_record(target.record)
    if record is None or _identity(record["settings"]) != _identity(settings):
        return None
    return record if file_sha256(target.path) == record["sha256"] else None


def check_free(targets: Iterable[Target], overwrite: bool) -> None:
    """Raises: DevError where a result would take the place of a file."""
    taken = [target for target in targets if os.path.lexists(target.path) or _is_foreign(target.record)]
    if taken and not overwrite:
        others = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        how = "was made with other settings, or has changed since" if read_record(taken[0].record) else "exists already"
        name = taken[0].written + ("" if os.path.lexists(taken[0].path) else RECORD_SUFFIX)
        raise DevError(f"{name}{others} {how}: give another --out, or --overwrite to replace it.")


def write_result(target: Target, video: bytes, record: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """Write a video and its record, each under a name of its own until it is complete; returns the record with the
    hash. Raises: DevError, where another file has taken the name meanwhile too."""
    written = {**record, "sha256": hashlib.sha256(video).hexdigest()}
    try:
        if os.path.lexists(target.path) and not overwrite:
            raise DevError(f"{target.written} has been made by something else meanwhile: it is not overwritten.")
        # The record first: a kill between the two leaves a record without its video, and that video is made again.
        # In ASCII, because a path may have bytes that are not UTF-8.
        write_complete_text(_followed(target.record), json.dumps(written, indent=1) + "\n")
        with complete_file(_followed(target.path), replaces=overwrite) as file:
            file.part.write_bytes(video)
    except UserError as error:
        raise DevError(str(error)) from error
    return written


def _followed(path: Path) -> Path:
    """The file that a link leads to: it is written, and the link stays."""
    return Path(os.path.realpath(path))


def _is_foreign(record: Path) -> bool:
    """Whether another file has the name of a record."""
    return os.path.lexists(record) and read_record(record) is None


def read_record(path: Path, needed: Mapping[str, type] = _NEEDED) -> dict[str, Any] | None:
    """What a record holds; None where it is none. needed: what it has to have, and of which type."""
    with suppress(OSError, ValueError, RecursionError, UserError):
        record = json.loads(read_small_text(path, _MAX_RECORD_BYTES))
        check_depth(record)
        if isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in needed.items()):
            return record
    return None


def _identity(settings: Mapping[str, Any]) -> Any:
    """What has to be equal for two results to be the same, as JSON gives it back."""
    return json.loads(json.dumps({name: value for name, value in settings.items() if name not in _NAMES_ONLY}))


def file_sha256(path: Path) -> str:
    """The sha256 of a file's contents; "" for one that cannot be read, and for a pipe or device, which may not end."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    except OSError:
        return ""
