"""CogVideoX-nano, the toy models that come with the pack: what the loaders list of them, and where their files lie.

They are read where they lie, in the pack's own folder, and nothing is written there. A pipeline has a folder of its
own; what all pipelines share (VAE, text encoder, tokenizer, scheduler) lies once, beside these folders.

Not in ComfyUI's model folders: other packs write previews and notes beside the files of these, and the lists of every
other model's loaders would begin to show a toy.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..errors import UserError
from ..system.published_files import check_published, files_below, published_below, read_sums

NAME = "CogVideoX-nano"
WEIGHTS = Path(__file__).resolve().parent.parent / "nano" / "weights"
EXAMPLES = WEIGHTS.parent / "examples"
SHARED = ("vae", "text_encoder", "tokenizer", "scheduler")
_COMPONENTS = ("transformer", "vae", "text_encoder")
_WEIGHTS_SUFFIX, _CONFIG_SUFFIX, _INDEX = ".safetensors", ".json", "model_index.json"

# The folders of the pipelines below WEIGHTS, in the order of the lists.
MODELS = ("5b", "5b-I2V", "1.5-5B", "1.5-5B-I2V", "2b", "Fun-5b-InP", "Fun-5b-Control")
_PIPELINES = {f"{NAME} {model}": model for model in MODELS}
# What a loader loads -> its names in the list -> the path below WEIGHTS. A shared part is listed once.
LISTED: Mapping[str, Mapping[str, str]] = {
    "pipeline": _PIPELINES,
    "transformer": _PIPELINES,
    "text_encoder": {NAME: "5b"},
    "vae": {NAME: "5b"},
    "controlnet": {f"{NAME} edges": "controlnet-edges"},
    "lora": {f"{NAME} pink": "pink.safetensors"},
}

# What it was trained on; twice that is still worth a look.
SIDES_PX, FRAMES = (64, 96), (9, 49)
KNOWS = (
    "It knows coloured shapes that move, and nothing else: a size (small, large), a colour (red, green, blue, yellow, "
    "orange, purple, cyan, white), a shape (circle, square, triangle, star), a motion (to the left, to the right, up, "
    "down, bouncing, rotating, growing) and a background, as in “a small green star moves down on a white background”."
)

# The example inputs: what a list calls them -> the file below EXAMPLES, a picture or an animated one, beside which lies
# a mask of its size ("video.png", "video_mask.png").
INPUTS: Mapping[str, str] = {"picture": "picture.png", "last picture": "last_picture.png", "video": "video.png"}
MASK_SUFFIX = "_mask.png"
INPUT_FRAMES, INPUT_FPS = 17, 8.0  # of the video
CLIPS = f"{NAME} clips"  # the name of a dataset: pink shapes, a colour that no model was trained on, with captions
CLIPS_FOLDER = EXAMPLES / "clips"


def with_toy(names: list[str], kind: str) -> list[str]:
    """The user's own `names`, then those of the toy that are there; one that the user has too is the user's.

    kind: a key of LISTED.
    """
    return names + [name for name, path in LISTED[kind].items() if name not in names and _is_there(WEIGHTS / path)]


def find_toy(name: str, kind: str) -> Path | None:
    """The path of a name in the list; None for any other. A pipeline's path stands for its parts as well (part_folder).

    Raises UserError for damaged files.
    """
    path = _path_of(name, kind)
    if path is not None:
        check_files(path, kind)
    return path


def check_present(name: str, kind: str) -> None:
    """Raises UserError for a name of the toy whose files the pack's folder has not."""
    inner = _inner_path(name, kind)
    if inner is not None and not (WEIGHTS / inner).exists():
        raise UserError(
            f"{name} is a part of the pack, and {WEIGHTS / inner} is missing. Install the pack again, or run `git "
            "checkout -- nano/weights` in its folder. Or choose another model."
        )


def names_toy(name: str, kind: str) -> bool:
    """Whether find_toy knows a name."""
    return _path_of(name, kind) is not None


def _path_of(name: str, kind: str) -> Path | None:
    inner = _inner_path(name, kind)
    return WEIGHTS / inner if inner is not None and (WEIGHTS / inner).exists() else None


def _inner_path(name: str, kind: str) -> str | None:
    """Where a toy of this name lies below WEIGHTS."""
    if not isinstance(name, str):  # a workflow may hold anything
        return None
    known = {**LISTED[kind], **(_PIPELINES if kind in _COMPONENTS else {})}
    # As `python3 dev.py serve` called the copies that it made before the toy was in the lists.
    return known.get(name) or known.get(name.replace(f"{NAME}-", f"{NAME} ", 1))


def is_toy(path: Path) -> bool:
    """Whether `path` is one of the toy's files or folders, where they lie in the pack."""
    return path.is_relative_to(WEIGHTS)


def part_folder(pipeline: Path, part: str) -> Path:
    """The folder of a part of any pipeline, such as "vae"; for the toy's, of a shared part that it has not itself."""
    own = pipeline / part
    return WEIGHTS / part if part in SHARED and pipeline.parent == WEIGHTS and not own.is_dir() else own


def weights_folder(folder: Path) -> Path:
    """The folder of a part's weights: another one than its config's where a pipeline of the toy has a config of its own
    for weights that all share."""
    is_toys = folder.parent.parent == WEIGHTS and folder.name in SHARED
    is_config_alone = is_toys and not published_below(folder, _WEIGHTS_SUFFIX)
    return WEIGHTS / folder.name if is_config_alone else folder


def check_files(path: Path, kind: str) -> None:
    """Raises UserError where a file that loading reads is not the one that was published: weights, configs, tokenizer.

    A changed config is as silent as a changed weight: another scale or schedule makes worse videos and no error. The
    configs of a pipeline are read together, whichever of its parts is loaded.

    path, kind: as find_toy gives and takes them.
    """
    parts = _COMPONENTS if kind == "pipeline" else (kind,) if kind in _COMPONENTS else ()
    weights = [weights_folder(part_folder(path, part)) for part in parts] or [path]
    configs = [part_folder(path, part) for part in ("transformer", *SHARED)] if parts else [path]
    listed = read_sums(WEIGHTS)
    files = {path / _INDEX} if parts else set() if path.is_dir() else {path}
    for places, suffix in ((weights, _WEIGHTS_SUFFIX), (configs, _CONFIG_SUFFIX)):
        files |= {file for place in places for file in files_below(WEIGHTS, place, suffix, listed)}
    check_published(WEIGHTS, files, listed)


def check_clips() -> None:
    """Raises UserError where a clip of CLIPS_FOLDER, or a caption, is not the one that was published."""
    listed = read_sums(EXAMPLES)
    files = (files_below(EXAMPLES, CLIPS_FOLDER, suffix, listed) for suffix in (".mp4", ".txt"))
    check_published(EXAMPLES, {file for several in files for file in several}, listed)


def published_files(folder: Path) -> list[Path]:
    """The files below a folder such as WEIGHTS that loading may read."""
    return [file for suffix in (_WEIGHTS_SUFFIX, _CONFIG_SUFFIX) for file in published_below(folder, suffix)]


@cache
def _is_there(path: Path) -> bool:
    """Looked up once: lists are made on ComfyUI's event loop, and the pack's files are those of its code."""
    return path.exists()
