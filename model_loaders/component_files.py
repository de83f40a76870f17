"""Find the files and tensors of a component by the headers of the files, which may be of any format and layout."""

import logging
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import UserError, quoted, shortened
from ..host.folders import WEIGHT_SUFFIXES
from ..host.toy import part_folder, weights_folder
from .downloads.manifest import require_complete
from .files.gguf_files import looks_like_gguf, open_gguf, read_gguf_header
from .files.headers import MAX_TENSORS, Entry, Header
from .files.key_maps import LORA_PART, MODULE_WRAPPERS, Layout, TensorLocation, find_layouts, split_ends
from .files.safetensors_files import looks_like_safetensors, open_safetensors, read_safetensors_header
from .files.tensor_specs import TensorSpec, collect_specs
from .files.torch_files import looks_like_torch, open_torch, read_torch_header
from .variants import SIGNATURES, has_computed_positions, require_component
from .weight_files import FileSet, file_sets, latest_folder, preferred_forms, shards_of


class FileFormat(NamedTuple):
    """How a format is recognised, by the content of a file and not by its name, and read."""

    looks_like: Callable[[Path], bool]
    read_header: Callable[[Path], Header]
    open: Callable[[Path], dict[str, torch.Tensor]]


# In this order: the test for safetensors (a length and a brace) is weaker than that for GGUF's four magic bytes.
_FORMATS = (
    FileFormat(looks_like_gguf, read_gguf_header, open_gguf),
    FileFormat(looks_like_safetensors, read_safetensors_header, open_safetensors),
    FileFormat(looks_like_torch, read_torch_header, open_torch),
)
# First bytes of files that a failed download saves under the name of weights -> what the file is. A clone without
# Git LFS leaves pointers, and a hub that asks for a login or a licence answers with a page.
_FAILED_DOWNLOADS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file that it points to",
    b"<": "is a web page, not weights",
}
_FRESH_S = 2.0  # a file that is being written changes more often than the clock of some file systems ticks


class FoundComponent(NamedTuple):
    """A component as the headers of its files describe it.

    specs: by name in the files. entries: by diffusers' name.
    """

    files: tuple[Path, ...]
    layout: Layout
    specs: Mapping[str, TensorSpec]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def find_weights(path: Path, component: str) -> FoundComponent:
    """The files and tensors of `component`; path as in open_component. Only the headers of the files are read.

    Of a folder it is the file, or the set of shards, whose header holds the component; optimizers and other models
    beside it are passed over.

    Raises UserError for what open_component would refuse, and where several files of a folder hold the component.
    """
    require_complete(path)
    if path.is_file():
        return _read_component(tuple(shards_of(path)), component, str(path))
    # exists() follows links, so that a link that leads nowhere would be reported as missing though the user sees it.
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which does not exist. Download the file again.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder. Choose the checkpoint's {component}.")
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Choose an existing file or folder.")
    folder = weights_folder(component_folder(path, component))
    found, problems = _read_sets(folder, component)
    latest = None if found else latest_folder(folder)
    if latest is not None:
        found, in_latest = _read_sets(latest, component)
        problems = in_latest or problems
        folder = latest
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = ", ".join(quoted(one.name) for one in list(found)[:3])
        raise UserError(
            f"{folder} holds {SIGNATURES[component].description} ({len(found)} times): {names}. Choose one of the "
            "files, or leave only one in the folder."
        )
    raise _describe_problems(folder, component, problems)


def component_folder(path: Path, component: str) -> Path:
    """The folder of a component in a pipeline; `path` itself, where it is that folder."""
    folder = part_folder(path, component)
    return folder if folder.is_dir() else path


def _read_sets(folder: Path, component: str) -> tuple[dict[FileSet, FoundComponent], list[UserError]]:
    """The sets of files in `folder` that hold the component, one of each model, and why the others do not."""
    sets, problems = file_sets(folder)
    found: dict[FileSet, FoundComponent] = {}
    for one in sets:
        # What is said of one of several files has to name it.
        first, *others = one.files
        source = str(folder if others else first)
        try:
            found[one] = _read_component(one.files, component, source)
        except UserError as error:
            problems.append(error)
    kept = preferred_forms(found)
    if kept and (problems or len(found) > len(kept)):
        others = [f"{one.name}, the same model in another form." for one in found if one not in kept]
        passed_over = [*others, *map(str, problems)][:3]
        logging.info(f"Of {folder}, {kept[0].name} is read. Passed over: {' '.join(passed_over)}")
    return {one: found[one] for one in kept}, problems


def _describe_problems(folder: Path, component: str, problems: list[UserError]) -> UserError:
    """The error for a folder in which no file holds the component."""
    if not problems:
        return UserError(
            f"{folder} contains no weights ({', '.join(WEIGHT_SUFFIXES)}). Put the component's weights there, or "
            "choose another folder."
        )
    if len(problems) == 1:
        return problems[0]
    shown = " ".join(shortened(str(problem), 500) for problem in problems[:3])
    return UserError(f"None of the files in {folder} holds {SIGNATURES[component].description}. {shown}")


def _read_component(files: tuple[Path, ...], component: str, source: str) -> FoundComponent:
    """The component in `files`, which hold one set of tensors. source: path for messages."""
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = read_header(file)
        repeated = entries.keys() & header.entries.keys()
        if repeated:
            raise UserError(f"{file} repeats {quoted(min(repeated))} of another shard. Download these files again.")
        entries |= header.entries
        metadata |= header.metadata
        if len(entries) > MAX_TENSORS:
            raise UserError(
                f"{file.parent} has more than {MAX_TENSORS} tensors, which no model has. Choose another one."
            )
    # Three stages: the names in the files -> logical tensors (codes and scales together) -> diffusers' names.
    specs = collect_specs(Header(entries, metadata), source)
    layouts = find_layouts(specs, component, SIGNATURES[component].required_keys)
    require_component(layouts[0].locations if layouts else specs, component, source)
    if len(layouts) > 1:
        copies = " and ".join(quoted(layout.prefix or "no prefix") for layout in layouts[:3])
        raise UserError(
            f"{source} holds {SIGNATURES[component].description} ({len(layouts)} times), under the prefixes {copies}. "
            "Save one of them as a file of its own."
        )
    layout = layouts[0]  # every dialect's signature key is among the keys that require_component requires
    _refuse_unmerged(specs, layout, f"{source} is {SIGNATURES[component].description}")
    found = {name: _entry_at(specs[at.name].entry, at) for name, at in layout.locations.items()}
    if component == "transformer" and has_computed_positions(found):
        # 2b's table is computed for the video's size at every run. Left in, it would count as a learned table, which 2b
        # does not have: no family would fit.
        del found["patch_embed.pos_embedding"]
    return FoundComponent(files, layout, specs, found, metadata)


def _refuse_unmerged(names: Collection[str], layout: Layout, beginning: str) -> None:
    """Raises UserError for a model that was saved while its LoRA was beside its weights and not in them.

    It cannot be merged here: what the LoRA was scaled by (alpha / rank) stands in no such file.

    names: of all tensors of the files. beginning: of the message.
    """
    weights = {re.sub(MODULE_WRAPPERS, "", at.name) for at in layout.locations.values()}
    # Whatever kind of adapter peft has put around a layer, the layer itself is called base_layer then.
    wrapped = {name.partition(".base_layer.")[0] for name in names if ".base_layer." in name}
    for name in names:
        part = re.search(LORA_PART, name)
        is_part = part and re.sub(MODULE_WRAPPERS, "", f"{name[: part.start()]}.weight") in weights
        is_adapter = wrapped and ".base_layer." not in name and any(layer in wrapped for layer, _ in split_ends(name))
        if is_part or is_adapter:
            raise UserError(
                f"{beginning} that was saved with a LoRA beside its weights: {quoted(name)} is not merged into them. "
                "Merge it before you save the model (merge_and_unload in peft), or save the LoRA alone and apply it to "
                "the original model."
            )


def _entry_at(entry: Entry, location: TensorLocation) -> Entry:
    """The entry of those rows of a file's tensor that are at `location`: SAT fuses several of diffusers' weights."""
    if location.parts == 1:
        # DiffSynth's patch embedding, a convolution over one frame at a time: [D, C, 1, p, p].
        flat = len(entry.shape) == 5 and entry.shape[2] == 1 and location.name.endswith("patchify.proj.weight")
        return Entry((*entry.shape[:2], *entry.shape[3:]), entry.dtype) if flat else entry
    rows = entry.shape[0] // location.parts * len(location.indices)
    return Entry((rows, *entry.shape[1:]), entry.dtype)


def read_header(path: Path) -> Header:
    """The tensors of a file of any format by name, without reading them.

    Raises UserError where the file is incomplete, damaged or of an unknown format.
    """
    status = _stat_file(path)
    if time.time() - max(status.st_mtime, status.st_ctime) < _FRESH_S:
        return find_format(path).read_header(path)
    return _read_header(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


@lru_cache(maxsize=64)
def _read_header(path: Path, state: tuple[int, ...]) -> Header:
    """The header, read again only when the file has another size, time or inode.

    ComfyUI validates a graph several times per run, and each loader node reads its headers for that.
    """
    return find_format(path).read_header(path)


def find_format(path: Path) -> FileFormat:
    """Raises UserError where the file is of no format that this version reads."""
    size = _stat_file(path).st_size
    with path.open("rb") as file:
        start = file.read(32)
    for file_format in _FORMATS:
        if file_format.looks_like(path):
            return file_format
    # After the formats, because a .safetensors file begins with a length, whose first byte may be that of "<".
    failure = next((what for first_bytes, what in _FAILED_DOWNLOADS.items() if start.startswith(first_bytes)), None)
    if failure or not size:
        raise UserError(f"{path} {failure or 'is empty'} ({size} bytes). Download it again.")
    raise UserError(
        f"{path} is not a weight file that this version reads (safetensors, PyTorch, GGUF), or only the beginning of "
        f"one ({size} bytes). Download it again."
    )


def _stat_file(path: Path) -> os.stat_result:
    """The status of a regular file. Links are followed: many people keep their models on another disk.

    Raises UserError for anything else; opening a named pipe would block for ever.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}. Download it again.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file. Choose a file with weights.")
    return status
