"""Open weights on disk: a diffusers folder, one component of it, or a file of any layout."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, quoted
from ..host.compat import throw_if_interrupted
from ..host.folders import COMPONENTS
from ..host.toy import part_folder
from .component_files import FoundComponent, component_folder, find_format, find_weights
from .config_conflicts import config_conflict
from .config_limits import LIMITS, checked_config
from .downloads.manifest import require_complete
from .files.headers import json_metadata
from .files.tensor_specs import assemble, check_quantization_notes, split_fused_rows
from .side_configs import config_differences, is_of_another_kind, is_of_this_kind
from .variants import HasShape
from .weight_files import read_json

_SIBLINGS = ("transformer", "vae", "text_encoder", "scheduler")


@dataclass(frozen=True)
class Weights:
    """The memory-mapped tensors of one component under diffusers' names, and the configs found with them.

    state_dict: a value may be a ComfyUI QuantizedTensor of its logical shape (host/quantized.py). config: of this
    component. siblings: configs of the other components of the pipeline, by their folders' names. hint: what the
    checkpoint calls the model: the name in a file's header, or the class in the pipeline's index. is_config_in_header:
    whether the config stands in the header of the weights' file.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    config: dict[str, Any] | None = None
    siblings: dict[str, dict[str, Any]] = field(default_factory=dict)
    hint: str = ""
    is_config_in_header: bool = False


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
    missing = [name for name in COMPONENTS if not part_folder(path, name).is_dir()]
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
        tensors.update(find_format(file).open(file))
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
    folder = component_folder(path, component) if path.is_dir() else path.parent
    pipeline = path if path.is_dir() and folder != path else folder.parent
    in_header = _header_configs(found.metadata, str(path))
    beside = _side_config(path, folder, component, found, component in in_header)
    config = beside or in_header.get(component)
    siblings = _sibling_configs(pipeline) or in_header
    hint = found.metadata.get("modelspec.architecture", "") or _hinted_class(pipeline)
    is_config_in_header = not beside and config is not None
    return Weights(folder if path.is_dir() else path, {}, config, siblings, hint, is_config_in_header)


def _hinted_class(folder: Path) -> str:
    """The class that the index of a pipeline names; "" for any other folder, and where the index is damaged."""
    try:
        return _pipeline_class(folder) if is_pipeline(folder) else ""
    except UserError:
        return ""


def _pipeline_class(pipeline: Path) -> str:
    return quoted(str(read_json(pipeline / "model_index.json").get("_class_name", "")))


def _side_config(
    path: Path, folder: Path, component: str, found: FoundComponent, is_in_header: bool
) -> dict[str, Any] | None:
    """The config.json beside the weights, where it is theirs; None without one.

    In a folder of weights it is, unless it says that it is another component's. A chosen file may lie in a folder with
    files of other models: its own header goes first, and the config.json counts where it describes these very weights.

    Raises UserError for an entry that is beyond the limits of config_limits.py.
    """
    places = (folder, found.files[0].parent)  # the second below the first, where DeepSpeed's "latest" names it
    place = next((place / "config.json" for place in places if (place / "config.json").is_file()), None)
    if place is None or (path.is_file() and is_in_header):
        return None
    if path.is_dir():
        config = read_json(place)
        return None if is_of_another_kind(component, config) else checked_config(component, config, str(place))
    try:
        config = read_json(place)
    except UserError as error:  # of a file that need not be this model's
        logging.info(f"{place} is not read for {found.files[0].name}: {error}")
        return None
    try:
        config = checked_config(component, config, str(place))
        differences = config_differences(component, config, found.entries, str(place))
    except UserError as error:
        # One that names this component's class is not passed over for an entry that cannot be followed: the weights
        # would load as those of another model.
        if is_of_this_kind(component, config):
            raise
        differences = [str(error)]
    if differences:
        logging.info(f"{place} is not read for {found.files[0].name}: {'; '.join(differences)}.")
    return None if differences else config


def check_component(path: Path, component: str) -> list[Path]:
    """The files of `component`; path as in open_component.

    Raises UserError for what open_component would refuse, an entry of a config too, and for a config that the weights
    contradict. Only headers and configs are read.
    """
    found, described = describe_component(path, component)
    source = str(described.path)
    config = described.config
    differences = [] if config is None else config_differences(component, config, found.entries, source)
    if differences:
        raise config_conflict(differences, source, component.replace("_", " "), described.is_config_in_header)
    return list(found.files)


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(quoted, sorted(names)[:3]))}{more}"


def require_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, HasShape], source: str) -> None:
    """Raises UserError where `found` lacks a tensor of `expected`, has another one, or one of another shape.

    ComfyUI's loaders only log such names, and the model would make noise. expected: name -> shape. source: path for
    messages.
    """
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    misshapen = [name for name in expected.keys() & found.keys() if expected[name] != tuple(found[name].shape)]
    problems = [f"missing {_some(missing)}"] if missing else []
    problems += [f"unknown {_some(unexpected)}"] if unexpected else []
    problems += [f"of another shape {_some(misshapen)}"] if misshapen else []
    if problems:
        raise UserError(
            f"The weights in {source} do not fit the model: {'; '.join(problems)}. Download the checkpoint again, "
            "or put its own config.json into the folder of its weights."
        )


def _optional_config(path: Path, component: str) -> dict[str, Any] | None:
    """A component's config.json within the limits of config_limits.py; None where there is no such file."""
    return checked_config(component, read_json(path), str(path)) if path.is_file() else None


def _header_configs(metadata: Mapping[str, str], source: str) -> dict[str, dict[str, Any]]:
    """The configs of all components that a file of this pack carries in its header, within the same limits."""
    # Other programs may keep a text of another kind under this name, such as the name of a file.
    is_ours = metadata.get("config", "").lstrip().startswith("{")
    configs = json_metadata(metadata, "config", source) if is_ours else {}
    return {
        name: checked_config(name, configs[name], f"{source} (the config of {name} in its header)")
        for name in LIMITS.keys() & configs.keys()
    }


def _sibling_configs(pipeline: Path) -> dict[str, dict[str, Any]]:
    """Configs of all components by folder name, where the folder `pipeline` is one; {} otherwise."""
    if not is_pipeline(pipeline):
        return {}
    files = {name: "scheduler_config.json" if name == "scheduler" else "config.json" for name in _SIBLINGS}
    found = {name: _optional_config(part_folder(pipeline, name) / file, name) for name, file in files.items()}
    return {name: config for name, config in found.items() if config is not None}
