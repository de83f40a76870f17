"""ComfyUI's model folders: the names that the loaders list, and the paths of these names."""

import json
import os
from pathlib import Path, PureWindowsPath

import folder_paths

from ..errors import UserError, quoted
from ..small_files import read_small_text
from .file_names import check_file_name
from .inside import is_below, is_inside, is_spelled_inside

DATASETS = "cogvideox_datasets"  # a key in extra_model_paths.yaml: folders that datasets may be in
DATASETS_VARIABLE = "COGVIDEOX_DATASETS"  # the same, separated as in PATH
COMPONENTS = ("transformer", "vae", "text_encoder")
WEIGHT_SUFFIXES = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth", ".ckpt")  # in order of preference
CONTROL_NET_CLASS = "CogVideoXControlnet"  # _class_name in the config.json of TheDenk's checkpoints


def list_pipelines() -> list[str]:
    """Folders under models/diffusers with a pipeline, complete or not (the loader says what is missing)."""
    return sorted(
        {
            entry.name
            for root in _roots("diffusers")
            for entry in _directories(root)
            if (entry / "model_index.json").is_file() or any((entry / part).is_dir() for part in COMPONENTS)
        }
    )


def list_components(component: str, category: str) -> list[str]:
    """Names of everything that may contain a `component`: pipelines, then folders and weight files of `category`."""
    pipelines = [
        name for name in list_pipelines() if any((root / name / component).is_dir() for root in _roots("diffusers"))
    ]
    own = {
        entry.relative_to(root).as_posix()
        for root in _roots(category)
        for entry in _directories(root)
        if any(path.name.lower().endswith(WEIGHT_SUFFIXES) for path in entry.iterdir())
    }
    return pipelines + sorted(own | set(list_files(category)))


def list_files(category: str) -> list[str]:
    """Weight files of `category`, subfolders included. ComfyUI's own list leaves out .gguf."""
    names = set(folder_paths.get_filename_list(category))
    for root in _roots(category):
        names |= {name for name in _walk(str(root)) if name.endswith(".gguf")}
    return sorted(name.replace(os.sep, "/") for name in names if name.lower().endswith(WEIGHT_SUFFIXES))


# root -> (its files, the modification time of each of its folders when they were listed)
_walked: dict[str, tuple[list[str], dict[str, float]]] = {}


def _walk(root: str) -> list[str]:
    """All files below `root`, as paths relative to it.

    ComfyUI asks for the lists at every page load. The folder is walked again only after the modification time of a
    folder has changed, as it does when a file is added, removed or renamed.
    """
    if root not in _walked or any(_changed(folder) != when for folder, when in _walked[root][1].items()):
        _walked[root] = folder_paths.recursive_search(root, [".git"])
    return _walked[root][0]


def _changed(folder: str) -> float | None:
    try:
        return os.path.getmtime(folder)
    except OSError:
        return None


def list_control_nets() -> list[str]:
    """Names of everything that may be a control net: those of list_components, and folders under models/diffusers."""
    folders = {entry.name for root in _roots("diffusers") for entry in _directories(root) if _is_control_net(entry)}
    return sorted(folders | set(list_components("controlnet", "controlnet")))


def find(name: str, *categories: str) -> Path:
    """The path of `name` in the first model folder of `categories` that has it.

    Raises UserError for a name that no folder has, or that leads out of the model folders.
    """
    parts = Path(name.replace("\\", "/")).parts if isinstance(name, str) else ()
    # A workflow may come from anybody and must not reach files elsewhere. On Windows "C:x" and
    # "\\x" are no absolute paths and still lead out of the folder.
    whole = PureWindowsPath(name if parts else "")
    if not parts or parts[0] == "/" or whole.drive or whole.root or ".." in parts:
        raise UserError(f"{quoted(str(name))!r} is not the name of a model. Choose one from the list.")
    for category in categories:
        for root in _roots(category):
            if _exists(root / name):
                return root / name
    folders = ", ".join(str(root) for category in categories for root in _roots(category)) or "any model folder"
    raise UserError(f"There is no {name[:100]!r} in {folders}. Put it there, or choose another one from the list.")


def new_file(name: str, category: str, suffix: str) -> Path:
    """The path of a new file `name` in the model folder of `category`; its subfolders are not created yet.

    Raises UserError for a name that leads out of the model folder, through a link inside it too, or that cannot be a
    file's.
    """
    plain = check_file_name(name, "CogVideoX/my_model")
    root = first_root(category)
    path = root / (plain if plain.endswith(suffix) else plain + suffix)
    if not is_inside(path.parent, root):
        raise UserError(f"{quoted(name)!r} leads out of {root}, through a link. Choose a name in another folder.")
    return path


def find_dataset(name: str) -> Path:
    """The folder of a dataset: below ComfyUI's input folder, or below a folder that the user has named for datasets, in
    extra_model_paths.yaml or in the environment. A workflow file may come from a stranger and must not read elsewhere.

    name: relative to one of these folders, or a whole path that lies in one.

    Raises UserError, which does not tell whether a folder exists outside of them.
    """
    roots = dataset_roots()
    inner = Path(name.strip().strip('"').replace("\\", "/"))
    for root in roots if inner.parts and ".." not in inner.parts else ():
        path = Path(os.path.abspath(root / inner))  # pathlib drops `root` before a whole path
        # By the spelling first: to look whether //server/share exists would already call that server.
        if is_spelled_inside(path, root) and os.path.isdir(path) and is_in_datasets(path):
            return path
    places = " or ".join(str(root) for root in roots)
    raise UserError(
        f"There is no folder {name[:100]!r} in {places}. Put the folder with the clips and their captions there "
        f"(clip.mp4 and clip.txt), or name the folder that it is in: under {DATASETS} in extra_model_paths.yaml, or in "
        f"the environment variable {DATASETS_VARIABLE}."
    )


def dataset_roots() -> list[Path]:
    """The folders that datasets may be in: ComfyUI's input folder, and those that the user has named."""
    listed = folder_paths.folder_names_and_paths.get(DATASETS, ([], set()))[0]
    named = [name for name in os.environ.get(DATASETS_VARIABLE, "").split(os.pathsep) if os.path.isabs(name)]
    return [Path(folder_paths.get_input_directory()), *map(Path, listed), *map(Path, named)]


def list_datasets() -> list[Path]:
    """The folders right below dataset_roots: every dataset is one of them, or lies in one. Files beside them, such as
    pictures that were uploaded, belong to none."""
    roots = [root for root in dataset_roots() if os.path.isdir(root)]
    return sorted({entry for root in roots for entry in _directories(root)})


def is_in_datasets(path: Path) -> bool:
    """Whether `path`, links followed, is below one of dataset_roots."""
    return any(is_below(path, root) for root in dataset_roots())


def first_root(category: str) -> Path:
    """The model folder of `category` for new files: the one with the category's name, where there are several."""
    # ComfyUI lists old folders first: models/unet before models/diffusion_models.
    roots = [Path(root) for root in folder_paths.get_folder_paths(category)]
    return next((root for root in roots if root.name == category), roots[0])


def _roots(category: str) -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths(category) if os.path.isdir(root)]


def _is_control_net(folder: Path) -> bool:
    try:
        config = json.loads(read_small_text(folder / "config.json", 1 << 20))
    except (OSError, ValueError, RecursionError, UserError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == CONTROL_NET_CLASS


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that this file system does not allow
        return False


def _directories(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
