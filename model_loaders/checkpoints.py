"""Open weights on disk: a diffusers folder, one component of it, or a file of any layout."""

import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import UserError, quoted, shortened
from ..host.compat import throw_if_interrupted
from ..host.folders import COMPONENTS, WEIGHT_SUFFIXES
from .config_limits import LIMITS, checked_config
from .downloads.manifest import require_complete
from .files.gguf_files import looks_like_gguf, open_gguf, read_gguf_header
from .files.headers import MAX_TENSORS, Entry, Header, json_metadata
from .files.key_maps import Layout, TensorLocation, find_layouts
from .files.safetensors_files import looks_like_safetensors, open_safetensors, read_safetensors_header
from .files.tensor_specs import TensorSpec, assemble, check_quantization_notes, collect_specs, split_fused_rows
from .files.torch_files import looks_like_torch, open_torch, read_torch_header
from .side_configs import config_differences, is_of_another_kind, is_of_this_kind
from .variants import SIGNATURES, has_computed_positions, require_component
from .weight_files import FileSet, file_sets, latest_folder, preferred_forms, read_json, shards_of


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
_SIBLINGS = ("transformer", "vae", "text_encoder", "scheduler")


@dataclass(frozen=True)
class Weights:
    """The memory-mapped tensors of one component under diffusers' names, and the configs found with them.

    state_dict: a value may be a ComfyUI QuantizedTensor of its logical shape (host/quantized.py). config: of this
    component. siblings: configs of the other components of the pipeline, by their folders' names. hint: what the
    checkpoint calls the model: the name in a file's header, or the class in the pipeline's index.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    config: dict[str, Any] | None = None
    siblings: dict[str, dict[str, Any]] = field(default_factory=dict)
    hint: str = ""


@dataclass(frozen=True)
class FoundComponent:
    """A component as the headers of its files describe it.

    specs: by name in the files. entries: by diffusers' name.
    """

    files: tuple[Path, ...]
    layout: Layout
    specs: Mapping[str, TensorSpec]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def is_pipeline(folder: Path) -> bool:
    """Whether `folder` is a diffusers pipeline."""
    return (folder / "model_index.json").is_file()


def require_pipeline(path: Path) -> None:
    """Raises UserError unless `path` is a complete diffusers pipeline of the CogVideoX family, or one file."""
    require_complete(path)
    if path.is_file():
        return
    if not is_pipeline(path):
        raise UserError(
            f"{path} has no model_index.json, so it is not a diffusers pipeline. Put the whole repository there "
            "(model_index.json, transformer, vae, text_encoder, tokenizer, scheduler), or load its components one by "
            "one with the loaders of the model, the text encoder and the VAE."
        )
    kind = _pipeline_class(path)
    if not kind.startswith("CogVideoX"):
        raise UserError(
            f"{path} is a {kind or 'pipeline of an unknown class'}, not a CogVideoX pipeline. "
            "Choose the folder of a CogVideoX checkpoint."
        )
    missing = [name for name in COMPONENTS if not (path / name).is_dir()]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}: the download is not complete. Download the missing folders again."
        )


def open_component(path: Path, component: str) -> Weights:
    """Memory-map the weights of `component` ("transformer", "vae", "text_encoder" or "controlnet").

    path: a pipeline folder, the component's own folder, or one file; of any format and any dialect (key_maps.py).

    Raises UserError, which names the file, for weights that are missing, cut short, unreadable or of another model.
    """
    found = find_weights(path, component)
    described = _describe(path, component, found)
    source = str(path)
    # All shards are collected before any tensor is assembled: a scale may be in another shard than its codes.
    tensors: dict[str, torch.Tensor] = {}
    for file in found.files:
        throw_if_interrupted()
        tensors.update(_find_format(file).open(file))
    check_quantization_notes(found.specs, tensors, source)
    state_dict = {}
    for name, at in found.layout.locations.items():
        throw_if_interrupted()
        if name in found.entries:  # without the position table that find_weights has left out
            tensor = split_fused_rows(assemble(found.specs[at.name], tensors, source), at.parts, at.indices)
            # Of DiffSynth's patch embedding, a convolution over one frame at a time.
            state_dict[name] = tensor.squeeze(2) if tensor.ndim > len(found.entries[name].shape) else tensor
    return replace(described, state_dict=state_dict)


def describe_component(path: Path, component: str) -> tuple[FoundComponent, Weights]:
    """What the headers and configs say of a component, and Weights without tensors; path as in open_component.

    Raises UserError for what open_component would refuse.
    """
    found = find_weights(path, component)
    return found, _describe(path, component, found)


def _describe(path: Path, component: str, found: FoundComponent) -> Weights:
    folder = _component_folder(path, component) if path.is_dir() else path.parent
    in_header = _header_configs(found.metadata, str(path))
    config = _side_config(path, folder, component, found) or in_header.get(component)
    siblings = _sibling_configs(folder) or in_header
    hint = found.metadata.get("modelspec.architecture", "") or _hinted_class(folder.parent)
    return Weights(folder if path.is_dir() else path, {}, config, siblings, hint)


def _hinted_class(folder: Path) -> str:
    """The class that the index of a pipeline names; "" for any other folder, and where the index is damaged."""
    try:
        return _pipeline_class(folder) if is_pipeline(folder) else ""
    except UserError:
        return ""


def _pipeline_class(pipeline: Path) -> str:
    return quoted(str(read_json(pipeline / "model_index.json").get("_class_name", "")))


def _side_config(path: Path, folder: Path, component: str, found: FoundComponent) -> dict[str, Any] | None:
    """The config.json beside the weights, where it is theirs; None without one.

    In a folder of weights it is, unless it says that it is another component's. A chosen file may lie in a folder with
    files of other models: its own header goes first, and the config.json counts where it describes these very weights.

    Raises UserError for an entry that is beyond the limits of config_limits.py.
    """
    places = (folder, found.files[0].parent)  # the second below the first, where DeepSpeed's "latest" names it
    place = next((place / "config.json" for place in places if (place / "config.json").is_file()), None)
    if place is None or (path.is_file() and component in json_metadata(found.metadata, "config")):
        return None
    if path.is_dir():
        config = read_json(place)
        return None if is_of_another_kind(component, config) else checked_config(component, config, str(place))
    try:
        config = read_json(place)
    except UserError as error:  # of a file that need not be this model's
        logging.info(f"{place} is not read for {found.files[0].name}: {error}")
        return None
    # One that names this component's class is not passed over for an entry that cannot be followed: the weights would
    # load as those of another model.
    if is_of_this_kind(component, config):
        checked_config(component, config, str(place))
    try:
        config = checked_config(component, config, str(place))
        differences = config_differences(component, config, found.entries, str(place))
    except UserError as error:
        differences = [str(error)]
    if differences:
        logging.info(f"{place} is not read for {found.files[0].name}: {'; '.join(differences)}.")
    return None if differences else config


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
    folder = _component_folder(path, component)
    found, problems = _read_sets(folder, component)
    latest = None if found else latest_folder(folder)
    if latest is not None:
        found, in_latest = _read_sets(latest, component)
        problems = in_latest or problems
        folder = latest
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        names = " and ".join(quoted(one.name) for one in list(found)[:3])
        raise UserError(
            f"{folder} holds {SIGNATURES[component].description} {len(found)} times: {names}. Choose one of the files, "
            "or leave only one in the folder."
        )
    raise _describe_problems(folder, component, problems)


def _component_folder(path: Path, component: str) -> Path:
    """The folder of a component in a pipeline; `path` itself, where it is that folder."""
    return path / component if (path / component).is_dir() else path


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
            f"{source} holds {SIGNATURES[component].description} {len(layouts)} times, under the prefixes {copies}. "
            "Save one of them as a file of its own."
        )
    layout = layouts[0]  # every dialect's signature key is among the keys that require_component requires
    found = {name: _entry_at(specs[at.name].entry, at) for name, at in layout.locations.items()}
    if component == "transformer" and has_computed_positions(found):
        # 2b's table is computed for the video's size at every run. Left in, it would count as a learned table, which 2b
        # does not have: no family would fit.
        del found["patch_embed.pos_embedding"]
    return FoundComponent(files, layout, specs, found, metadata)


def _entry_at(entry: Entry, location: TensorLocation) -> Entry:
    """The entry of those rows of a file's tensor that are at `location`: SAT fuses several of diffusers' weights."""
    if location.parts == 1:
        # DiffSynth's patch embedding, a convolution over one frame at a time: [D, C, 1, p, p].
        flat = len(entry.shape) == 5 and entry.shape[2] == 1 and location.name.endswith("patchify.proj.weight")
        return Entry((*entry.shape[:2], *entry.shape[3:]), entry.dtype) if flat else entry
    rows = entry.shape[0] // location.parts * len(location.indices)
    return Entry((rows, *entry.shape[1:]), entry.dtype)


def check_component(path: Path, component: str) -> list[Path]:
    """The files of `component`; path as in open_component.

    Raises UserError for what open_component would refuse, an entry of a config too. Only headers and configs are read.
    """
    return list(describe_component(path, component)[0].files)


def require_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises UserError where `found` lacks a tensor of `expected`, has another one, or one of another shape.

    ComfyUI's loaders only log such names, and the model would make noise. expected: name -> shape. source: path for
    messages.
    """
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    misshapen = [name for name in expected.keys() & found.keys() if expected[name] != tuple(found[name].shape)]
    problems = [
        f"{what} {', '.join(map(quoted, sorted(names)[:3]))}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(
            f"The weights in {source} do not fit the model: {'; '.join(problems)}. Download the checkpoint again, "
            "or put its own config.json into the folder of its weights."
        )


def read_header(path: Path) -> Header:
    """The tensors of a file of any format by name, without reading them.

    Raises UserError where the file is incomplete, damaged or of an unknown format.
    """
    status = _stat_file(path)
    if time.time() - max(status.st_mtime, status.st_ctime) < _FRESH_S:
        return _find_format(path).read_header(path)
    return _read_header(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


@lru_cache(maxsize=64)
def _read_header(path: Path, state: tuple[int, ...]) -> Header:
    """The header, read again only when the file has another size, time or inode.

    ComfyUI validates a graph several times per run, and each loader node reads its headers for that.
    """
    return _find_format(path).read_header(path)


def _find_format(path: Path) -> FileFormat:
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


def _optional_config(path: Path, component: str) -> dict[str, Any] | None:
    """A component's config.json within the limits of config_limits.py; None where there is no such file."""
    return checked_config(component, read_json(path), str(path)) if path.is_file() else None


def _header_configs(metadata: Mapping[str, str], source: str) -> dict[str, dict[str, Any]]:
    """The configs of all components that a file of this pack carries in its header, within the same limits."""
    configs = json_metadata(metadata, "config")
    return {
        name: checked_config(name, configs[name], f"{source} (the config of {name} in its header)")
        for name in LIMITS.keys() & configs.keys()
    }


def _sibling_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Configs of all components by folder name, where `folder` is a component's folder in a pipeline; {} otherwise."""
    if not is_pipeline(folder.parent):
        return {}
    files = {name: "scheduler_config.json" if name == "scheduler" else "config.json" for name in _SIBLINGS}
    found = {name: _optional_config(folder.parent / name / file, name) for name, file in files.items()}
    return {name: config for name, config in found.items() if config is not None}
