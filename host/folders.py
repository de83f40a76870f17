"""ComfyUI's model folders: what they offer to the loaders, and where a chosen name lies."""

import json
import os
from pathlib import Path

import folder_paths

from .errors import CheckpointError

COMPONENTS = ("transformer", "vae", "text_encoder")
CONTROL_NET_CLASS = "CogVideoXControlnet"  # as TheDenk's checkpoints name themselves in config.json


def list_pipelines() -> list[str]:
    """Folders under models/diffusers that hold a pipeline, whole or not (the loader says what is missing)."""
    return sorted(
        {
            entry.name
            for root in _roots("diffusers")
            for entry in _directories(root)
            if (entry / "model_index.json").is_file() or any((entry / part).is_dir() for part in COMPONENTS)
        }
    )


def list_components(component: str, category: str) -> list[str]:
    """What can hold a `component`: pipelines that have it, then folders and .safetensors files of `category`."""
    pipelines = [
        name for name in list_pipelines() if any((root / name / component).is_dir() for root in _roots("diffusers"))
    ]
    own = {
        entry.relative_to(root).as_posix()
        for root in _roots(category)
        for entry in _directories(root)
        if any(entry.glob("*.safetensors"))
    }
    files = {name.replace(os.sep, "/") for name in folder_paths.get_filename_list(category)}
    return pipelines + sorted(own | {name for name in files if name.endswith(".safetensors")})


def list_control_nets() -> list[str]:
    """What can hold a control net: what list_components finds, and folders under models/diffusers that are one."""
    folders = {entry.name for root in _roots("diffusers") for entry in _directories(root) if _is_control_net(entry)}
    return sorted(folders | set(list_components("controlnet", "controlnet")))


def find(name: str, *categories: str) -> Path:
    """Where `name` lies: the first of the model folders of `categories` that has it.

    Raises CheckpointError for a name that is nowhere, or that leads out of the model folders.
    """
    parts = Path(name.replace("\\", "/")).parts if isinstance(name, str) else ()
    if not parts or Path(name).is_absolute() or ".." in parts or ":" in parts[0]:
        raise CheckpointError(f"{name!r} is not the name of a model. Choose one from the list.")
    for category in categories:
        for root in _roots(category):
            if _exists(root / name):
                return root / name
    folders = ", ".join(str(root) for category in categories for root in _roots(category)) or "any model folder"
    raise CheckpointError(f"There is no {name[:100]!r} in {folders}. Put it there, or choose another from the list.")


def _roots(category: str) -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(category) if os.path.isdir(root)]


def _is_control_net(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == CONTROL_NET_CLASS


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name that this file system could have
        return False


def _directories(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
