"""ComfyUI's model folders: the names that the loaders list, and the paths of these names."""

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path, PureWindowsPath

import folder_paths

from ..errors import UserError, quoted
from ..system.file_names import check_file_name
from ..system.inside import is_below, is_inside, is_spelled_inside
from .model_tree import CONFIG, Listed, Tree, start_listing, tree_of, walk
from .toy import CLIPS, CLIPS_FOLDER, check_clips, check_present, find_toy, names_toy

DATASETS = "cogvideox_datasets"  # a key in extra_model_paths.yaml: folders that datasets may be in
DATASETS_VARIABLE = "COGVIDEOX_DATASETS"  # the same, separated as in PATH
COMPONENTS = ("transformer", "vae", "text_encoder")
WEIGHT_SUFFIXES = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth", ".ckpt")  # in order of preference
LORA_SUFFIXES = tuple(suffix for suffix in WEIGHT_SUFFIXES if suffix != ".gguf")
# What the nodes list.
CATEGORIES = (
    "diffusers",
    "diffusion_models",
    "checkpoints",
    "text_encoders",
    "vae",
    "controlnet",
    "loras",
    "vae_approx",
)
PIPELINE_INDEX = "model_index.json"
# The component that is listed for a category, beside those of the pipelines.
_OWN_COMPONENTS = {
    "diffusion_models": "transformer",
    "text_encoders": "text_encoder",
    "vae": "vae",
    "controlnet": "controlnet",
}

Trees = list[Tree]
_known: dict[tuple[str, str], tuple[Trees, list[str]]] = {}


class NoSuchModelError(UserError):
    """No model folder has the name. missing: the name. places: the folders that were looked in, as a list in words."""

    def __init__(self, name: str, places: str):
        super().__init__(f"There is no {name[:100]!r} in {places}. Put it there, or choose another one from the list.")
        self.missing, self.places = name[:100], places

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.missing, self.places)


def list_pipelines() -> list[str]:
    """Folders below models/diffusers with a pipeline, complete or not (the loader says what is missing): at any depth,
    as THUDM/CogVideoX-5b or the snapshot of a hub's cache is."""

    def find_names(trees: Trees) -> set[str]:
        return {path for tree in trees for path, _, folder in walk(tree) if _is_pipeline(folder)}

    return _listed("diffusers", "pipelines", find_names)


def list_components(component: str, category: str) -> list[str]:
    """Names of everything that may contain a `component`: pipelines, and folders of their own in models/diffusers, then
    folders and weight files of `category`."""

    def find_beside(trees: Trees) -> set[str]:
        return {path for tree in trees for path, name, folder in walk(tree) if _holds(folder, name, component)}

    def find_own(trees: Trees) -> set[str]:
        folders = ((path, folder) for tree in trees for path, _, folder in walk(tree))
        return {path for path, folder in folders if path != "." and _is_component(folder, "/" not in path)}

    own = {*_listed(category, "folders", find_own), *list_files(category)}
    return _listed("diffusers", component, find_beside) + sorted(own)


def list_files(category: str, suffixes: tuple[str, ...] = WEIGHT_SUFFIXES) -> list[str]:
    """Weight files of `category`, subfolders included, with / between folders on every system. ComfyUI's own list
    leaves out .gguf."""

    def find_names(trees: Trees) -> set[str]:
        return {
            f"{path}/{name}" if path else name
            for tree in trees
            for path, folder in tree.items()
            for name in folder.files
            if name.lower().endswith(suffixes)
        }

    return _listed(category, " ".join(suffixes), find_names)


def list_control_nets() -> list[str]:
    """Names of everything that may be a control net: those of list_components, and folders below models/diffusers."""
    return sorted(list_components("controlnet", "controlnet"))


def start_listings() -> None:
    """Begin to list the folders that the loaders offer, before ComfyUI's page asks for them."""
    start_listing(*{root for category in CATEGORIES for root in folder_paths.get_folder_paths(category)})


def _listed(category: str, kind: str, find_names: Callable[[Trees], set[str]]) -> list[str]:
    """The names that `find_names` finds in a category's folders, sorted. kind: tells apart what is looked for there.

    Kept as long as nothing has changed: ComfyUI asks for a list again for every input of a prompt.
    """
    trees = [tree_of(root) for root in folder_paths.get_folder_paths(category)]
    known = _known.get((category, kind))
    if known is None or len(known[0]) != len(trees) or any(old is not new for old, new in zip(known[0], trees)):
        known = _known[category, kind] = (trees, sorted(find_names(trees)))
    return list(known[1])


def _is_pipeline(folder: Listed) -> bool:
    return PIPELINE_INDEX in folder.files or any(part in folder.folders for part in COMPONENTS)


def _is_component(folder: Listed, is_first_level: bool) -> bool:
    """Whether a folder of a category holds a component. Deeper ones are taken only with what tells its files apart from
    a collection of models, which the list of files names one by one."""
    if "latest" in folder.files:  # DeepSpeed's, whose weights are one folder below
        return True
    has_weights = any(name.lower().endswith(WEIGHT_SUFFIXES) for name in folder.files)
    is_whole = CONFIG in folder.files or any(name.endswith(".index.json") for name in folder.files)
    return has_weights and (is_first_level or is_whole)


def _holds(folder: Listed, name: str, component: str) -> bool:
    """Whether a folder below models/diffusers is, or has, a `component`."""
    return component in folder.folders if _is_pipeline(folder) else _is_variant(folder, name, component)


def _is_variant(folder: Listed, name: str, component: str) -> bool:
    """Whether a folder below models/diffusers holds a `component` under a name of its own, as transformer_I2V does."""
    is_named = name.startswith(f"{component}_") or (name != component and component in folder.components)
    return is_named and any(child.lower().endswith(WEIGHT_SUFFIXES) for child in folder.files)


def find(name: str, *categories: str, toy: str = "") -> Path:
    """The path of `name` in the first model folder of `categories` that has it. Every name in a list is found, and as
    what it is listed for: where several folders have the name, the first one that the lists have taken it from.

    toy: a key of toy.LISTED: what of CogVideoX-nano the name may be, where no folder has it.

    Raises UserError for a name that no folder has, or that leads out of the model folders; and for a toy whose files
    are damaged.
    """
    # Category by category, and in each of them folder by folder.
    found = [
        (path, category, root, spelling)
        for category in categories
        for root in folder_paths.get_folder_paths(category)
        for spelling in _spellings(name)
        if _exists(path := Path(root, spelling))
    ]
    is_toys = toy != "" and names_toy(name, toy)
    if len(found) > 1 or name == "." or is_toys:
        component = _OWN_COMPONENTS.get(categories[-1], "")
        listed = [entry for entry in found if _is_listed(*entry, component)]
        found = listed or ([] if name == "." or is_toys else found)
    if found:
        if is_toys:
            _say_own(name, found[0][0])
        return found[0][0]
    # By Windows' rules on every system: its names lead out of a folder in more ways than those of other systems.
    whole = PureWindowsPath(name if isinstance(name, str) else "")
    if not whole.parts or whole.anchor or ".." in whole.parts:
        raise UserError(f"{quoted(str(name))!r} is not the name of a model. Choose one from the list.")
    if toy and (of_the_pack := find_toy(name, toy)):
        return of_the_pack
    if toy:
        check_present(name, toy)
    folders = ", ".join(str(root) for category in categories for root in _roots(category)) or "any model folder"
    raise NoSuchModelError(name, folders)


def _spellings(name: str) -> list[str]:
    """The paths below a model folder that a name may stand for on this system, with / between folders.

    A workflow may come from anybody and must not reach files elsewhere: a name that leads out of the folder has none.
    """
    if name == ".":  # a models/diffusers that is a pipeline itself
        return [name]
    found = []
    # As it is written first, for on Linux a name may hold a backslash and a colon. A workflow that was saved on Windows
    # has backslashes between folders.
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))) if isinstance(name, str) else ():
        path = Path(spelling)
        # On Windows "C:x" and "\\x" are no absolute paths and still lead out of the folder: both have an anchor there.
        if path.parts and not path.anchor and ".." not in path.parts:
            found.append(path.as_posix())
    return list(dict.fromkeys(found))


def _is_listed(path: Path, category: str, root: str, name: str, component: str) -> bool:
    """Whether a list has taken `name`, which is at `path`, from the folder `root`. component: what is listed, "" for
    pipelines and files."""
    if not path.is_dir():
        return category != "diffusers" and name.lower().endswith(WEIGHT_SUFFIXES)
    folder = tree_of(root).get("" if name == "." else name, Listed())
    if category != "diffusers":
        return name != "." and _is_component(folder, "/" not in name)
    return _holds(folder, name.rpartition("/")[2], component) if component else _is_pipeline(folder)


def new_file(name: str, category: str, suffix: str) -> Path:
    """The path of a new file `name` in the model folder of `category`; its subfolders are not created yet.

    name: as placeholders.fill_in gives it.

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

    name: relative to one of these folders, or a whole path that lies in one; or that of the toy's clips (toy.CLIPS).

    Raises UserError, which does not tell whether a folder exists outside of them, or that the toy's clips are damaged.
    """
    roots = dataset_roots()
    inner = Path(name.strip().strip('"').replace("\\", "/"))
    for root in roots if inner.parts and ".." not in inner.parts else ():
        path = Path(os.path.abspath(root / inner))  # pathlib drops `root` before a whole path
        # By the spelling first: to look whether //server/share exists would already call that server.
        if is_spelled_inside(path, root) and os.path.isdir(path) and is_in_datasets(path):
            if name == CLIPS:
                _say_own(name, path)
            return path
    if name == CLIPS and CLIPS_FOLDER.is_dir():
        check_clips()
        return CLIPS_FOLDER
    places = " or ".join(str(root) for root in roots)
    raise UserError(
        f"There is no folder {name[:100]!r} in {places}. Put the folder with the clips and their captions there "
        f"(clip.mp4 and clip.txt), or name the folder that it is in: under {DATASETS} in extra_model_paths.yaml, or in "
        f"the environment variable {DATASETS_VARIABLE}."
    )


@cache
def _say_own(name: str, path: Path) -> None:
    """Once: what the user has put there goes before what comes with the pack, and results are not the toy's."""
    logging.warning(
        f"{quoted(name)!r} is read from {path}, where you have put it, and not from the pack, which has something of "
        "that name too. Rename yours to get that."
    )


def dataset_roots() -> list[Path]:
    """The folders that datasets may be in: ComfyUI's input folder, and those that the user has named."""
    listed = folder_paths.folder_names_and_paths.get(DATASETS, ([], set()))[0]
    named = [name for name in os.environ.get(DATASETS_VARIABLE, "").split(os.pathsep) if os.path.isabs(name)]
    return [Path(folder_paths.get_input_directory()), *map(Path, listed), *map(Path, named)]


def dataset_cache(dataset: Path) -> Path | None:
    """Where to keep what is encoded of a dataset; None for the usual place, in its own folder.

    The toy's clips lie in the pack's folder, where nothing is written: ComfyUI's temporary folder takes what is encoded
    of them, and is emptied at its next start.
    """
    return Path(folder_paths.get_temp_directory()) / "cogvideox_nano_clips" if dataset == CLIPS_FOLDER else None


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


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that this file system does not allow
        return False


def _directories(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
