"""Whether a model's files are still those that it was loaded from, by their times and sizes."""

import functools
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from ..errors import UserError
from ..host.folders import COMPONENTS, PIPELINE_INDEX, WEIGHT_SUFFIXES
from ..host.toy import part_folder, weights_folder
from ..system.file_names import is_system_file
from .weight_files import SHARD

T = TypeVar("T")
_TOKENIZER, _SCHEDULER = "tokenizer", "scheduler"
_DEEPSPEED = "latest"  # the file that names the folder of the weights
_SIDE_SUFFIX, _CONFIG = ".json", "config.json"  # configs and indexes


def stamp_of(path: Path, *components: str) -> str:
    """A text that changes when anything is replaced, added or removed that loading from `path` reads.

    path: a pipeline, a component's folder, or a file, as in checkpoints.open_component. components: those that are
    loaded; of a pipeline that is loaded whole, all of them. Raises nothing.
    """
    return hash_of(files_read(path, components or COMPONENTS))


def hash_of(files: Iterable[Path]) -> str:
    """A hash of the names, times, sizes and inodes of files. Links are followed."""
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        try:
            status = os.stat(file)
        except OSError:  # gone by now, which is a change too
            continue
        if stat.S_ISREG(status.st_mode):
            # A copy may keep the times of what it was copied from, but neither the inode nor the time of its change.
            state = f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}\n"
            digest.update(state.encode(errors="backslashreplace"))
    return digest.hexdigest()


def if_unchanged(load: Callable[..., T], path: Path, *components: str) -> Callable[..., T]:
    """`load`, for a second time: it raises UserError where what it reads from `path` is not what it was when this
    function was called. ComfyUI would go on with the weights of two models, and a training with a stranger's."""
    before = stamp_of(path, *components)

    @functools.wraps(load)
    def load_again(*args: object, **kwargs: object) -> T:
        if stamp_of(path, *components) != before:
            raise UserError(f"{path} has changed since it was loaded.", advice="load the file again")
        return load(*args, **kwargs)

    return load_again


def files_read(path: Path, components: Iterable[str]) -> Iterator[Path]:
    """The files that loading `components` from `path` reads; some of them may not be there. See stamp_of."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        inner = [place for place in (part_folder(path, name) for name in components) if place.is_dir()] or [path]
        for place in dict.fromkeys(place for part in inner for place in (part, weights_folder(part))):
            yield from _models_in(place)
            # A DeepSpeed checkpoint's weights are one folder below.
            yield from (file for below in _entries(place) if below.is_dir() for file in _models_in(below))
    else:
        yield path
        # The other shards of a set, and the config beside them. Other files there belong to other models.
        shard = re.match(SHARD, path.name)
        yield folder / _CONFIG
        yield from (file for file in _entries(folder) if shard and file.name.startswith(f"{shard['stem']}-"))
    # The configs, the tokenizer and the scheduler beside it: of a pipeline, and of a component in one.
    for place in (folder, *([folder.parent] if (folder.parent / PIPELINE_INDEX).is_file() else [])):
        yield from _side_files(place) if place != folder or path.is_dir() else ()
        for name in (*COMPONENTS, _SCHEDULER):
            yield from _side_files(part_folder(place, name))
        yield from _entries(part_folder(place, _TOKENIZER))
    yield from _entries(folder.parent / _TOKENIZER)


def _models_in(folder: Path) -> Iterator[Path]:
    for file in _entries(folder):
        if file.name.lower().endswith((*WEIGHT_SUFFIXES, _SIDE_SUFFIX)) or file.name == _DEEPSPEED:
            yield file


def _side_files(folder: Path) -> Iterator[Path]:
    return (file for file in _entries(folder) if file.name.lower().endswith(_SIDE_SUFFIX))


def _entries(folder: Path) -> list[Path]:
    """What is in a folder. What a system writes there while the folder is looked at changes no model."""
    try:
        return [entry for entry in folder.iterdir() if not is_system_file(entry.name)]
    except OSError:
        return []
