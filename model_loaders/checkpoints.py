"""Open weights on disk: a diffusers folder, one component of it, or a single safetensors file."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import comfy.utils
import torch

from ..host.errors import CheckpointError
from .variants import COMPONENTS, require_component

# how files begin that a failed or half download leaves in the place of weights
_BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for"),
    (b"<", "is a web page, not weights"),
    (b"PK\x03\x04", "is a PyTorch or zip file, not safetensors"),
    (b"GGUF", "is a GGUF file, not safetensors"),
)


@dataclass(frozen=True)
class Weights:
    """Lazily mapped tensors of one component, and what stands beside them."""

    path: Path
    state_dict: dict[str, torch.Tensor]
    config: dict | None = None
    siblings: dict[str, dict] = field(default_factory=dict)  # configs of the other components, by folder


def is_pipeline(folder: Path) -> bool:
    """Whether `folder` is a diffusers pipeline."""
    return (folder / "model_index.json").is_file()


def require_pipeline(folder: Path) -> None:
    """Raises CheckpointError unless `folder` is a complete diffusers pipeline of the CogVideoX family."""
    if not is_pipeline(folder):
        raise CheckpointError(
            f"{folder} has no model_index.json, so it is not a diffusers pipeline. Put the whole repository there "
            "(model_index.json, transformer, vae, text_encoder, tokenizer, scheduler), or load its parts one by one "
            "with the CogVideoX model, text encoder and VAE loaders."
        )
    kind = read_json(folder / "model_index.json").get("_class_name", "")
    if not kind.startswith("CogVideoX"):
        raise CheckpointError(
            f"{folder} is a {kind or 'pipeline of unknown kind'}, not a CogVideoX pipeline. "
            "Choose the folder of a CogVideoX checkpoint."
        )
    missing = [name for name in COMPONENTS if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}: the download is not complete. Fetch the missing folders again."
        )


def open_component(path: Path, component: str) -> Weights:
    """Map the weights of `component` ("transformer", "vae" or "text_encoder").

    path: a pipeline folder, the component's own folder, or one .safetensors file.

    Raises CheckpointError for anything missing, cut short, not safetensors or of another model, naming the file.
    """
    files = check_component(path, component)
    state_dict: dict[str, torch.Tensor] = {}
    for file in files:
        state_dict.update(comfy.utils.load_torch_file(str(file), safe_load=True))
    folder = files[0].parent
    # a lone file may lie among files of other models, whose config.json says nothing about it
    config = _optional_json(folder / "config.json") if path.is_dir() else None
    return Weights(folder if path.is_dir() else path, state_dict, config, _sibling_configs(folder))


def check_component(path: Path, component: str) -> list[Path]:
    """The files that hold `component`; path as in open_component.

    Raises CheckpointError for what open_component would refuse, reading only the files' headers.
    """
    files = component_files(path, component)
    keys = {key: None for file in files for key in read_keys(file)}  # a set in the files' order
    require_component(keys, component, str(files[0].parent if path.is_dir() else path))
    return files


def component_files(path: Path, component: str) -> list[Path]:
    """The safetensors files that hold `component`; path as in open_component.

    Raises CheckpointError where there are none, or not all.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist. Choose a file or folder that is there.")
    return weight_files(path / component if (path / component).is_dir() else path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that together hold the component in `folder`, from its index if it has one.

    Raises CheckpointError naming every shard that is missing.
    """
    indexes = _plainest_first(folder, "*.safetensors.index.json")
    if indexes:
        names = sorted(set(read_json(indexes[0]).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing) or 'every shard'}, named in {indexes[0].name}: "
                "the download is not complete. Fetch the missing files again."
            )
        return [folder / name for name in names]
    single = _plainest_first(folder, "*.safetensors")
    if not single:
        raise CheckpointError(
            f"{folder} holds no .safetensors file. Put the component's weights there, or choose another folder."
        )
    return single[:1]


def _plainest_first(folder: Path, pattern: str) -> list[Path]:
    """Files by name, those without a variant such as ".fp16" first."""
    return sorted(folder.glob(pattern), key=lambda path: (path.name.count("."), path.name))


def read_keys(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file, whose length is compared with what its header promises.

    Raises CheckpointError where the file is cut short, too long or not safetensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        found = next((what for beginning, what in _BEGINNINGS if start.startswith(beginning)), None)
        if found or not size:
            raise CheckpointError(f"{path} {found or 'is empty'} ({size} bytes). Fetch it again.")
        header_size = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        file.seek(8)
        if not 2 <= header_size <= size - 8:
            raise CheckpointError(
                f"{path} is not a safetensors file, or only its beginning ({size} bytes). Fetch it again."
            )
        try:
            header = json.loads(file.read(header_size))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}. Fetch it again.") from error
    expected = 8 + header_size + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"{path} has {size} bytes and should have {expected}: the download was cut short or the file is damaged. "
            "Fetch it again."
        )
    return list(header)


def read_json(path: Path) -> dict:
    """Raises CheckpointError where the file is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object. Fetch it again.")
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
