"""New files in ComfyUI's output folder, numbered as ComfyUI's own save nodes do."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import folder_paths

from ..errors import NameTakenError, UserError, quoted
from ..system.complete_file import remove_unfinished_below
from ..system.file_names import MAX_PART_BYTES, check_file_name
from ..system.inside import is_inside
from .placeholders import stand_in

Written = TypeVar("Written")
# In the numbers of files: as many as the largest seed has, for a prefix may end in one. After the longest prefix fewer,
# so that one more, a suffix and what an unfinished file's name has besides stay below 255 bytes.
_SEED_DIGITS, _MOST_DIGITS = 20, 13


def check_output_prefix(prefix: str, example: str = "loras/cogvideox") -> str:
    """`prefix` with / between folders, dates filled in, and a 0 for each value that is known only in a run.

    example: a valid prefix, for messages.

    Raises UserError for a prefix that leads out of the output folder, or that cannot be a file's name.
    """
    return _checked(stand_in(prefix), example)


def new_output_path(prefix: str, suffix: str, example: str = "loras/cogvideox") -> Path:
    """The next free `<output>/<prefix>_00001_<suffix>`, counted as ComfyUI's own save nodes count.

    prefix: as placeholders.fill_in gives it. What killed processes have left in the output folder is deleted.

    Raises UserError as check_output_prefix does, and where the folder cannot be made.
    """
    path = _root() / _checked(prefix, example)
    remove_unfinished_below(_root())
    # Not by folder_paths.get_save_image_path, which fills in %year% a second time: in a value that contains it.
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        return numbered_path(path.parent, path.name, f"_{suffix}")
    except OSError as error:
        raise UserError(
            f"There is no folder for {quoted(prefix)!r}: {error}. Check the permissions of ComfyUI's output folder, or "
            "choose another name."
        ) from error


def numbered_path(folder: Path, stem: str, suffix: str) -> Path:
    """`<folder>/<stem>_00001<suffix>` with the number after the highest that a file of that stem has.

    The same as in folder_paths.get_save_image_path of ComfyUI, but for longer numbers than seeds are, and those beyond
    which a name would not fit: they count as part of another name. Raises OSError where the folder cannot be read.
    """
    digits = min(_SEED_DIGITS, MAX_PART_BYTES + _MOST_DIGITS - len(os.fsencode(stem)))
    number_of = re.compile(re.escape(os.path.normcase(stem)) + rf"_([0-9]{{1,{digits}}})(?:[_.]|\Z)")
    there = os.listdir(folder) if folder.is_dir() else []
    numbers = [int(match[1]) for name in there if (match := number_of.match(os.path.normcase(name)))]
    number = max(numbers, default=0) + 1
    # Some file systems take more names for the same one than their list shows: macOS those in other cases.
    while os.path.lexists(path := folder / f"{stem}_{number:05}{suffix}"):
        number += 1
    return path


def write_numbered(new_path: Callable[[], Path], write: Callable[[Path], Written]) -> tuple[Path, Written]:
    """write(path) for the next free path, or for the one after it where something else has taken that meanwhile.

    new_path(): as numbered_path. write(path): writes a file that replaces no other one, and raises NameTakenError where
    it would. Returns the path and what `write` returns. Raises what it raises.
    """
    while True:
        path = new_path()
        try:
            return path, write(path)
        except NameTakenError:  # counted again: the next number is free
            continue


def _checked(prefix: str, example: str) -> str:
    plain = check_file_name(prefix, example)
    # A link in the output folder may lead out of it.
    if not is_inside((_root() / plain).parent, _root()):
        raise UserError(f"{quoted(prefix)!r} leads out of ComfyUI's output folder. Use a prefix such as {example}.")
    return plain


def _root() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def output_subfolder(*names: str) -> Path:
    """A folder in ComfyUI's output folder; it is not made. Raises UserError where a link leads out of that."""
    folder = _root().joinpath(*names)
    if not is_inside(folder, _root()):
        raise UserError(f"{folder} is a link that leads out of ComfyUI's output folder. Delete it.")
    return folder
