"""Open weights on disk: a diffusers folder, one component of it, or a file of any layout."""

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from ..errors import UserError
from ..host.folders import COMPONENTS, WEIGHT_SUFFIXES
from .downloads.manifest import require_complete
from .files.gguf_files import looks_like_gguf, open_gguf, read_gguf_header
from .files.headers import Entry, Header, json_metadata
from .files.key_maps import Layout, find_component
from .files.safetensors_files import looks_like_safetensors, open_safetensors, read_safetensors_header
from .files.stored import Stored, check_formats, collect, put_together, take_rows
from .files.torch_files import looks_like_torch, open_torch, read_torch_header
from .variants import is_fixed_table, require_component

# (looks like, header, tensors) of every format; a file's content tells which it is, not its name
_FORMATS = (
    (looks_like_gguf, read_gguf_header, open_gguf),
    (looks_like_safetensors, read_safetensors_header, open_safetensors),
    (looks_like_torch, read_torch_header, open_torch),
)
# how files begin that a failed or half download leaves in the place of weights
_BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for"),
    (b"<", "is a web page, not weights"),
)
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")


@dataclass(frozen=True)
class Weights:
    """Lazily mapped tensors of one component in diffusers' names, and what stands beside them.

    A tensor may be a ComfyUI QuantizedTensor of its logical shape (host/quantized.py).
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    config: dict | None = None
    siblings: dict[str, dict] = field(default_factory=dict)  # configs of the other components, by folder


@dataclass(frozen=True)
class Found:
    """A component as the headers of its files tell it: which tensors lie where."""

    files: tuple[Path, ...]
    layout: Layout
    stored: Mapping[str, Stored]  # by name in the files
    entries: Mapping[str, Entry]  # by diffusers' name
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
            "(model_index.json, transformer, vae, text_encoder, tokenizer, scheduler), or load its parts one by one "
            "with the CogVideoX model, text encoder and VAE loaders."
        )
    kind = str(read_json(path / "model_index.json").get("_class_name", ""))
    if not kind.startswith("CogVideoX"):
        raise UserError(
            f"{path} is a {kind or 'pipeline of unknown kind'}, not a CogVideoX pipeline. "
            "Choose the folder of a CogVideoX checkpoint."
        )
    missing = [name for name in COMPONENTS if not (path / name).is_dir()]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}: the download is not complete. Fetch the missing folders again."
        )


def open_component(path: Path, component: str) -> Weights:
    """Map the weights of `component` ("transformer", "vae", "text_encoder" or "controlnet").

    path: a pipeline folder, the component's own folder, or one file; of any layout and any dialect (key_maps.py).

    Raises UserError for anything missing, cut short, unreadable or of another model, naming the file.
    """
    found = find_weights(path, component)
    source = str(path)
    tensors: dict[str, torch.Tensor] = {}
    for file in found.files:
        tensors.update(_format(file)[2](file))
    check_formats(found.stored, tensors, source)
    state_dict = {
        name: take_rows(put_together(found.stored[at.name], tensors, source), at.parts, at.taken)
        for name, at in found.layout.sources.items()
        if name in found.entries
    }
    folder = found.files[0].parent
    configs = json_metadata(found.metadata, "config")
    # a lone file may lie among files of other models, whose config.json says nothing about it
    config = _optional_json(folder / "config.json") if path.is_dir() else configs.get(component)
    siblings = _sibling_configs(folder) or {name: c for name, c in configs.items() if isinstance(c, dict)}
    return Weights(folder if path.is_dir() else path, state_dict, config, siblings)


def find_weights(path: Path, component: str) -> Found:
    """Where `component` lies; path as in open_component. Only the files' headers are read.

    Raises UserError for what open_component would refuse.
    """
    files = component_files(path, component)
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = read_header(file)
        twice = entries.keys() & header.entries.keys()
        if twice:
            raise UserError(f"{file} repeats {min(twice)} of another shard. Fetch these files again.")
        entries |= header.entries
        metadata |= header.metadata
    source = str(files[0].parent if path.is_dir() else path)
    stored = collect(Header(entries, metadata), source)
    layout = find_component(stored, component)
    require_component(stored if layout is None else layout.sources, component, source)
    shapes = {name: _rows(stored[at.name].entry, at.parts, len(at.taken)) for name, at in layout.sources.items()}
    if component == "transformer" and is_fixed_table(shapes):
        del shapes["patch_embed.pos_embedding"]
    return Found(tuple(files), layout, stored, shapes, metadata)


def _rows(entry: Entry, parts: int, taken: int) -> Entry:
    if parts == 1:
        return entry
    return Entry((entry.shape[0] // parts * taken, *entry.shape[1:]), entry.dtype)


def check_component(path: Path, component: str) -> list[Path]:
    """The files that hold `component`; path as in open_component.

    Raises UserError for what open_component would refuse, reading only the files' headers.
    """
    return list(find_weights(path, component).files)


def require_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises UserError naming what of `expected`, shapes by name, is missing in `found`, left over or of another
    shape; half a model must not load as noise.

    source: path for messages.
    """
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    misshapen = [name for name in expected.keys() & found.keys() if expected[name] != tuple(found[name].shape)]
    problems = [
        f"{what} {', '.join(sorted(names)[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(
            f"The weights in {source} do not fit the model: {'; '.join(problems)}. Fetch the checkpoint again, or "
            "put its own config.json beside it."
        )


def component_files(path: Path, component: str) -> list[Path]:
    """The files that hold `component`; path as in open_component.

    Raises UserError where there are none, or not all.
    """
    require_complete(path)
    if path.is_file():
        return _shards(path) if _SHARD.match(path.name) else [path]
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which is gone. Fetch the file again.")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder. Choose the checkpoint's {component}.")
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Choose a file or folder that is there.")
    return weight_files(path / component if (path / component).is_dir() else path)


def weight_files(folder: Path) -> list[Path]:
    """The files that together hold the component in `folder`, from its index if it has one.

    Raises UserError naming every shard that is missing.
    """
    indexes = _plainest_first(folder, ".index.json")
    if indexes:
        return _indexed(folder, indexes[0])
    # DeepSpeed, and with it SAT, names the folder of the last checkpoint in a file
    latest = folder / "latest"
    if latest.is_file() and latest.stat().st_size < 100:
        folder = folder / Path(latest.read_text(encoding="utf-8", errors="replace").strip()).name
    for suffix in WEIGHT_SUFFIXES:
        found = _plainest_first(folder, suffix)
        if found:
            return _shards(found[0]) if _SHARD.match(found[0].name) else found[:1]
    raise UserError(
        f"{folder} holds no weights ({', '.join(WEIGHT_SUFFIXES)}). Put the component's weights there, or choose "
        "another folder."
    )


def _indexed(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    strange = [name for name in names if Path(name).name != name or "\\" in name]
    if strange:
        raise UserError(
            f"{index} names {strange[0][:100]!r}, which is no file of its own folder. Fetch the checkpoint again."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{folder} lacks {', '.join(missing) or 'every shard'}, named in {index.name}: the download is not "
            "complete. Fetch the missing files again."
        )
    return [folder / name for name in names]


def _shards(path: Path) -> list[Path]:
    """All files of the set that `path` is one of."""
    match = _SHARD.match(path.name)
    count = int(match["count"])
    # a hostile name could promise very many
    names = [f"{match['stem']}-{n:05d}-of-{match['count']}{match['suffix']}" for n in range(1, min(count, 1000) + 1)]
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise UserError(
            f"{path.parent} lacks {', '.join(missing[:5])} of {count} parts: the download is not complete. Fetch the "
            "missing files again."
        )
    return [path.with_name(name) for name in names]


def _plainest_first(folder: Path, suffix: str) -> list[Path]:
    """Files by name, those without a variant such as ".fp16" first."""
    names = [path for path in folder.glob("*") if path.name.lower().endswith(suffix)] if folder.is_dir() else []
    return sorted(names, key=lambda path: (path.name.count("."), path.name))


def read_header(path: Path) -> Header:
    """The tensors of a file of any format by name, without reading them.

    Raises UserError where the file is not whole or of no known format.
    """
    status = _regular(path)
    return _read_header(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_header(path: Path, size: int, modified_ns: int) -> Header:
    """Read again only when the file has changed; validation asks several times for each run."""
    return _format(path)[1](path)


def _format(path: Path) -> tuple:
    size = _regular(path).st_size
    with path.open("rb") as file:
        start = file.read(32)
    for reader in _FORMATS:
        if reader[0](path):
            return reader
    # afterwards: the length with which a .safetensors file begins may have any bytes, "<" too
    what = next((what for beginning, what in _BEGINNINGS if start.startswith(beginning)), None)
    if what or not size:
        raise UserError(f"{path} {what or 'is empty'} ({size} bytes). Fetch it again.")
    raise UserError(
        f"{path} is no weight file that this version reads (safetensors, PyTorch, GGUF), or only the beginning of one "
        f"({size} bytes). Fetch it again."
    )


def _regular(path: Path) -> "stat.os.stat_result":
    """The file's status. Links are followed, for many people keep their models on another disk."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}. Fetch it again.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not an ordinary file. Choose a file with weights.")
    return status


def read_json(path: Path) -> dict:
    """Raises UserError where the file is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object. Fetch it again.")
    return value


def _optional_json(path: Path) -> dict | None:
    return read_json(path) if path.is_file() else None


def _sibling_configs(folder: Path) -> dict[str, dict]:
    """Configs of the other components, where `folder` is a part of a whole pipeline."""
    if not is_pipeline(folder.parent):
        return {}
    files = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "scheduler": "scheduler_config.json",
    }
    found = {name: _optional_json(folder.parent / name / file) for name, file in files.items()}
    return {name: config for name, config in found.items() if config is not None}
