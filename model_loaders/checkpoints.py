"""Open weights on disk: a diffusers folder, one component of it, or a file of any layout."""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import UserError, quoted
from ..host.compat import throw_if_interrupted
from ..host.folders import COMPONENTS, WEIGHT_SUFFIXES
from ..small_files import read_small_text
from .config_limits import LIMITS, checked_config
from .downloads.manifest import require_complete
from .files.gguf_files import looks_like_gguf, open_gguf, read_gguf_header
from .files.headers import MAX_TENSORS, Entry, Header, json_metadata
from .files.key_maps import Layout, TensorLocation, find_layouts
from .files.safetensors_files import looks_like_safetensors, open_safetensors, read_safetensors_header
from .files.tensor_specs import TensorSpec, assemble, check_quantization_notes, collect_specs, split_fused_rows
from .files.torch_files import looks_like_torch, open_torch, read_torch_header
from .variants import SIGNATURES, has_computed_positions, require_component


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
_MAX_JSON_BYTES = 1 << 24  # an index of 100,000 tensors has about 10 MB
_SIBLINGS = ("transformer", "vae", "text_encoder", "scheduler")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")


@dataclass(frozen=True)
class Weights:
    """The memory-mapped tensors of one component under diffusers' names, and the configs found with them.

    state_dict: a value may be a ComfyUI QuantizedTensor of its logical shape (host/quantized.py). config: of this
    component. siblings: configs of the other components of the pipeline, by their folders' names.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    config: dict[str, Any] | None = None
    siblings: dict[str, dict[str, Any]] = field(default_factory=dict)


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
    kind = quoted(str(read_json(path / "model_index.json").get("_class_name", "")))
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
    source = str(path)
    folder = found.files[0].parent
    in_header = _header_configs(found.metadata, source)
    # A single file may be in a folder with files of other models, where a config.json need not be its own. Files that
    # this pack saves carry their configs in the header (save_model.py).
    config = _optional_config(folder / "config.json", component) if path.is_dir() else in_header.get(component)
    siblings = _sibling_configs(folder) or in_header
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
            state_dict[name] = split_fused_rows(assemble(found.specs[at.name], tensors, source), at.parts, at.indices)
    return Weights(folder if path.is_dir() else path, state_dict, config, siblings)


def find_weights(path: Path, component: str) -> FoundComponent:
    """The files and tensors of `component`; path as in open_component. Only the headers of the files are read.

    Raises UserError for what open_component would refuse.
    """
    files = component_files(path, component)
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
    source = str(files[0].parent if path.is_dir() else path)
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
    return FoundComponent(tuple(files), layout, specs, found, metadata)


def _entry_at(entry: Entry, location: TensorLocation) -> Entry:
    """The entry of those rows of a file's tensor that are at `location`: SAT fuses several of diffusers' weights."""
    if location.parts == 1:
        return entry
    rows = entry.shape[0] // location.parts * len(location.indices)
    return Entry((rows, *entry.shape[1:]), entry.dtype)


def check_component(path: Path, component: str) -> list[Path]:
    """The files of `component`; path as in open_component.

    Raises UserError for what open_component would refuse. Only the headers of the files are read.
    """
    return list(find_weights(path, component).files)


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


def component_files(path: Path, component: str) -> list[Path]:
    """The files of `component`; path as in open_component.

    Raises UserError where there are none, or some are missing.
    """
    require_complete(path)
    if path.is_file():
        return _shards(path)
    # exists() follows links, so that a link that leads nowhere would be reported as missing though the user sees it.
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which does not exist. Download the file again.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder. Choose the checkpoint's {component}.")
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Choose an existing file or folder.")
    return weight_files(path / component if (path / component).is_dir() else path)


def weight_files(folder: Path) -> list[Path]:
    """The files of the component in `folder`, as its index lists them if it has one.

    Raises UserError naming every shard that is missing.
    """
    indexes = _without_variant_first(folder, ".index.json")
    if indexes:
        return _indexed_files(folder, indexes[0])
    # DeepSpeed, and therefore SAT, writes the name of the last checkpoint's folder ("1" in THUDM's downloads) into a
    # file "latest"; the weights are one folder below. A larger file of that name is something else and is not read.
    latest = folder / "latest"
    if latest.is_file() and latest.stat().st_size < 100:
        name = Path(latest.read_text(encoding="utf-8", errors="replace").strip()).name
        folder = folder if name == ".." else folder / name
    for suffix in WEIGHT_SUFFIXES:
        found = _without_variant_first(folder, suffix)
        if found:
            return _shards(found[0])
    raise UserError(
        f"{folder} contains no weights ({', '.join(WEIGHT_SUFFIXES)}). Put the component's weights there, or choose "
        "another folder."
    )


def _indexed_files(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    # A downloaded index is data from a stranger: no name in it may lead to a file elsewhere. On Windows, a backslash
    # separates folders.
    outside = [name for name in names if Path(name).name != name or "\\" in name]
    if outside:
        raise UserError(
            f"{index} names {outside[0][:100]!r}, which is not a file of its own folder. Download the checkpoint again."
        )
    missing = [name for name in names if not os.path.isfile(folder / name)]  # also for a name that is too long
    if missing or not names:
        shown = ", ".join(map(quoted, missing[:5])) or "every shard"
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"{folder} lacks {shown}{more}, named in {index.name}: the download is not complete. Download the missing "
            "files again."
        )
    return [folder / name for name in names]


def _shards(path: Path) -> list[Path]:
    """All shards of the set that `path` is one of, or `path` alone. Raises UserError where some are missing."""
    match = _SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if count == 0:
        return [path]
    # The count is taken from a file name, which could announce 99999 shards: that many paths would be looked up.
    names = [f"{match['stem']}-{n:05d}-of-{match['count']}{match['suffix']}" for n in range(1, min(count, 1000) + 1)]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise UserError(
            f"{path.parent} lacks {', '.join(missing[:5])} of {count} parts: the download is not complete. Download "
            "the missing files again."
        )
    return [path.with_name(name) for name in names]


def _without_variant_first(folder: Path, suffix: str) -> list[Path]:
    """Files with `suffix` by name, those without a variant such as ".fp16" first: a variant has one dot more."""
    names = [path for path in folder.glob("*") if path.name.lower().endswith(suffix)] if folder.is_dir() else []
    return sorted(names, key=lambda path: (path.name.count("."), path.name))


def read_header(path: Path) -> Header:
    """The tensors of a file of any format by name, without reading them.

    Raises UserError where the file is incomplete, damaged or of an unknown format.
    """
    status = _stat_file(path)
    return _read_header(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_header(path: Path, size: int, modified_ns: int) -> Header:
    """The header, read again only when size or modification time have changed.

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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where it contains something else."""
    try:
        value = json.loads(read_small_text(path, _MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}. Download it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object. Download it again.")
    return value


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
