"""Which files of a folder belong together: single files, and sets of shards with and without an index.

What is in them, their headers say (component_files.py).
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError, quoted
from ..host.folders import WEIGHT_SUFFIXES
from ..system.file_names import is_system_file
from ..system.small_files import read_small_text
from .files.headers import check_amount

_MAX_JSON_BYTES = 1 << 24  # an index of 100,000 tensors has about 10 MB
_MOST_FILES = 2000  # of weights in one folder; each one's header is read
SHARD = r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>(?:\.\w+)+)$"
# A precision or a moving average that diffusers and transformers put before the suffix of a name; and an index of one
# ("….index.fp16.json").
_VARIANT = r"\.(?P<variant>fp16|bf16|fp32|fp8\w*|int8\w*|ema|non_ema)$"
_INDEX = r"\.index(?:\.\w+)?\.json$"


class FileSet(NamedTuple):
    """Files that hold one set of tensors together.

    stem: their name without the number of a shard, variant and suffix. variant: "" or a precision, such as "fp16".
    """

    files: tuple[Path, ...]
    stem: str
    variant: str
    suffix: str
    has_index: bool = False

    @property
    def name(self) -> str:
        """Of the first file, for messages."""
        return self.files[0].name


def file_sets(folder: Path) -> tuple[list[FileSet], list[UserError]]:
    """The complete sets of weight files in `folder`, and why others are not complete.

    A file that an incomplete set lacks others of is in none: half a model is no model.

    Raises UserError for more files than a folder of models has.
    """
    try:
        there = sorted(os.listdir(folder)) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}). Check its permissions.") from error
    names = [name for name in there if not is_system_file(name)]
    weights = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    if len(weights) > _MOST_FILES:
        raise UserError(
            f"{folder} has {len(weights)} files with weights. At most {_MOST_FILES} are read: put the model into a "
            "folder of its own."
        )
    sets, problems, taken = [], [], set()
    for name in (name for name in names if re.search(_INDEX, name.lower())):
        try:
            listed = _indexed_names(folder / name)
            # Parts of a model, complete or not. Shards whose names say how many there are can be complete without it.
            taken.update(part for part in listed if len(_numbered(part)) == 1)
            _require_shards(folder, listed, name)
            taken.update(listed)
            sets.append(_set_of(folder, listed)._replace(has_index=True))
        except UserError as error:
            problems.append(error)
    for name in weights:
        if name not in taken:
            try:
                files = shards_of(folder / name)
                taken.update(file.name for file in files)
                sets.append(_set_of(folder, [file.name for file in files]))
            except UserError as error:
                taken.update(_numbered(name))
                problems.append(error)
    return sets, problems


def preferred_forms(sets: Iterable[FileSet]) -> list[FileSet]:
    """One of each model among `sets`, which hold the same component: of several forms of one model (a precision beside
    the full one, .bin beside .safetensors, shards beside one file) the one that diffusers and transformers take."""

    def rank(one: FileSet) -> tuple:
        return one.variant != "", WEIGHT_SUFFIXES.index(one.suffix), not one.has_index, one.name

    kept: list[FileSet] = []
    for one in sorted(sets, key=rank):
        if not any(_is_other_form(one, better) for better in kept):
            kept.append(one)
    return kept


def _is_other_form(one: FileSet, better: FileSet) -> bool:
    """Whether `one` is the model of `better` in another form. GGUF is none: only the user knows which is wanted. Nor is
    one variant of another, such as fp16 of bf16."""
    # transformers' names of one model, by suffix. accelerate calls what it has trained model.safetensors, in a folder
    # where the model that it began with may be called diffusion_pytorch_model.safetensors.
    of_transformers = {one.stem, better.stem} == {"model", "pytorch_model"} and one.suffix != better.suffix
    same_name = one.stem == better.stem or of_transformers
    is_plain = ".gguf" not in (one.suffix, better.suffix) or one.suffix == better.suffix
    return same_name and is_plain and better.variant in ("", one.variant)


def _set_of(folder: Path, names: list[str]) -> FileSet:
    first = re.match(SHARD, names[0])
    name = first["stem"] + first["suffix"] if first else names[0]
    suffix = next(suffix for suffix in WEIGHT_SUFFIXES if name.lower().endswith(suffix))
    name = name[: -len(suffix)]
    variant = re.search(_VARIANT, name.lower())
    stem = name[: variant.start()] if variant else name
    return FileSet(tuple(folder / name for name in names), stem, variant["variant"] if variant else "", suffix)


def _indexed_names(index: Path) -> list[str]:
    """The files that an index names; [] where it names none.

    Raises UserError for a name that is not a file of its own folder.
    """
    weight_map = read_json(index).get("weight_map")
    names: set[str] = set()
    for name in {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else ():
        # All of a set, where a name says how many there are: the tensors count, not what the index says of them.
        names.update(_numbered(name) if name not in names else ())
        if len(names) > _MOST_FILES:
            raise UserError(f"{index} names more than {_MOST_FILES} files. Download the checkpoint again.")
    # A downloaded index is data from a stranger: no name in it may lead to a file elsewhere. On Windows, a backslash
    # separates folders.
    outside = [name for name in sorted(names) if Path(name).name != name or "\\" in name]
    if outside:
        raise UserError(
            f"{index} names {outside[0][:100]!r}, which is not a file of its own folder. Download the checkpoint again."
        )
    return sorted(names)


def _require_shards(folder: Path, names: list[str], index: str) -> None:
    missing = [name for name in names if not os.path.isfile(folder / name)]  # also for a name that is too long
    if missing or not names:
        shown = ", ".join(map(quoted, missing[:5])) or "every shard"
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{folder} lacks {shown}{more}, named in {index}: the download is not complete. Download the missing "
            "files again."
        )
    if others := [name for name in names if not name.lower().endswith(WEIGHT_SUFFIXES)]:
        raise UserError(
            f"{folder / index} names {quoted(others[0])}, which is not a file of weights. Such a file ends in one "
            f"of {', '.join(WEIGHT_SUFFIXES)}: download the checkpoint again."
        )


def shards_of(path: Path) -> list[Path]:
    """All shards of the set that `path` is one of, or `path` alone. Raises UserError where some are missing."""
    names = _numbered(path.name)
    missing = [name for name in names if not path.with_name(name).is_file()] if len(names) > 1 else []
    if missing:
        match = re.match(SHARD, path.name)
        raise UserError(
            f"{path.parent} lacks {', '.join(missing[:5])} of {int(match['count']) if match else 0} parts: the "
            "download is not complete. Download the missing files again."
        )
    return [path.with_name(name) for name in names]


def _numbered(name: str) -> list[str]:
    """The names of all shards of the set that `name` announces to be one of, or `name` alone."""
    match = re.match(SHARD, name)
    if match is None or int(match["count"]) == 0:
        return [name]
    # The count is taken from a file name, which could announce 99999 shards: that many paths would be looked up.
    count = min(int(match["count"]), 1000)
    return [f"{match['stem']}-{n:05d}-of-{match['count']}{match['suffix']}" for n in range(1, count + 1)]


def latest_folder(folder: Path) -> Path | None:
    """The folder below `folder` that DeepSpeed's file "latest" names; None without one.

    DeepSpeed, and therefore SAT, writes the name of the last checkpoint's folder ("1" in THUDM's downloads) there; the
    weights are one folder below. A larger file of that name is something else and is not read.
    """
    latest = folder / "latest"
    if not latest.is_file() or latest.stat().st_size >= 100:
        return None
    name = Path(latest.read_text(encoding="utf-8", errors="replace").strip()).name
    return None if name in ("", "..") else folder / name


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where it contains something else."""
    try:
        text = read_small_text(path, _MAX_JSON_BYTES)
        check_amount(text)
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}. Download it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object. Download it again.")
    return value
