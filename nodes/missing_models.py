"""Models that are not there: what a loader's list says then, and the next click for who has chosen one of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, shortened
from ..host import folders
from ..host.queued_workflow import bypassed_downloads
from ..host.toy import LISTED, with_toy
from ..model_loaders.downloads.repositories import REPOSITORIES, Repository, find_file
from ..model_loaders.load_tiny_decoder import TINY_FOLDER

_DOWNLOAD = "CogVideoX Download"
_MOST_LETTERS = 100  # of a name in a message
# Whole sentences: each language has titles of its own for them.
_TEXT_TO_VIDEO = "The template “01 Text to video” runs without a download, with CogVideoX-nano."
_FROM_EDGES = "The template “09 Video from edges (ControlNet)” runs without a download, with CogVideoX-nano."
_ANOTHER, _OR_ANOTHER = "Choose another one from the list.", "Or choose another one from the list."


class Kind(NamedTuple):
    """What one list of a loader holds.

    what: it in words. categories: ComfyUI's model folders, in which its names are looked up. own: what of one's own
    goes into which folder. published: whether CogVideoX Download gets it. trial: which template shows it on
    the toy, in a sentence, "" for none.
    """

    what: str
    categories: tuple[str, ...]
    own: str
    published: bool = False
    trial: str = ""


KINDS: Mapping[str, Kind] = {
    "pipeline": Kind(
        "checkpoint",
        ("diffusers", "checkpoints"),
        "a checkpoint's whole folder into models/diffusers, or one file with all parts into models/checkpoints",
        published=True,
        trial=_TEXT_TO_VIDEO,
    ),
    "transformer": Kind(
        "model",
        ("diffusers", "diffusion_models"),
        "a checkpoint's whole folder into models/diffusers, or a transformer's file into models/diffusion_models",
        published=True,
        trial=_TEXT_TO_VIDEO,
    ),
    "text_encoder": Kind(
        "text encoder",
        ("diffusers", "text_encoders"),
        "a checkpoint's whole folder into models/diffusers, or a T5-XXL file into models/text_encoders",
        published=True,
        trial=_TEXT_TO_VIDEO,
    ),
    "vae": Kind(
        "VAE",
        ("diffusers", "vae"),
        "a checkpoint's whole folder into models/diffusers, or a VAE's file into models/vae",
        published=True,
        trial=_TEXT_TO_VIDEO,
    ),
    "controlnet": Kind(
        "control net",
        ("diffusers", "controlnet"),
        "a control net's folder or file into models/controlnet",
        trial=_FROM_EDGES,
    ),
    "lora": Kind("LoRA", ("loras",), "a LoRA's file into models/loras"),
    "decoder": Kind("tiny decoder", (TINY_FOLDER,), f"a taecvx file into models/{TINY_FOLDER}"),
}


# The nodes whose first widget is such a list.
LOADERS = {
    "CogVideoXLoadPipeline": "pipeline",
    "CogVideoXLoadModel": "transformer",
    "CogVideoXLoadTextEncoder": "text_encoder",
    "CogVideoXLoadVAE": "vae",
    "CogVideoXLoadControlNet": "controlnet",
    "CogVideoXApplyLora": "lora",
}


def offer(own: list[str], kind: str) -> list[str]:
    """The list of a loader: the user's `own` models, the toy's, and without any of the user's a line that says so.

    kind: a key of KINDS.
    """
    listed = with_toy(own, kind) if kind in LISTED else list(own)
    return listed if own else [*listed, say_empty(kind)]


def say_empty(kind: str) -> str:
    """The last line of a list in which nothing is the user's own. To choose it is to choose nothing."""
    known = KINDS[kind]
    step = f"queue {_DOWNLOAD}" if known.published else f"put one into models/{known.categories[-1]}"
    return f"(no {known.what} of your own yet: {step})"


def find(name: str, kind: str) -> Path:
    """The path of a name in the list of a loader.

    Raises UserError, which names the next click, where nothing is chosen or no folder has the name.
    """
    known = KINDS[kind]
    if name in (None, "", say_empty(kind)):
        raise UserError(f"No {known.what} is chosen: choose one from the list. {_next_click(known)}")
    try:
        return folders.find(name, *known.categories, toy=kind if kind in LISTED else "")
    except folders.NoSuchModelError as error:
        # What to do comes first: a node and a toast show few lines. The toast ends at the line break.
        lines = _missing(error.missing, known, bypassed_downloads()), f"It was looked for in {error.places}."
        raise UserError("\n".join(lines)) from error


def describe_missing(name: str, node_type: str, bypassed: frozenset[str]) -> str | None:
    """The first line of what `find` would say of a name in a graph that is opened; None for a node that lists none.

    name: of a model that the page's list lacks. bypassed: the checkpoints of the nodes CogVideoX Download that are
    there and bypassed.
    """
    kind = LOADERS.get(node_type)
    return None if kind is None else _missing(shortened(name, _MOST_LETTERS), KINDS[kind], bypassed).split("\n")[0]


def _missing(name: str, kind: Kind, bypassed: frozenset[str]) -> str:
    return f"There is no {name!r}. {_download_of(name, kind, bypassed)}"


def _next_click(kind: Kind) -> str:
    """Where to get something of a kind, and how to try the graph without it."""
    download = f"Add the node {_DOWNLOAD}, choose a checkpoint and queue it; or put {kind.own}."
    steps = [download if kind.published else f"Put {kind.own}.", "Then press R and choose it."]
    if kind.trial:
        steps.append(kind.trial)
    return " ".join(steps)


def _download_of(name: str, kind: Kind, bypassed: frozenset[str]) -> str:
    """Where to get what has this name, and what else to do. bypassed: as for describe_missing."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    entry = _published(last)
    if entry is not None and kind.published:
        if entry.name in bypassed:
            # The loader has its folder from that node, and no list to choose from.
            return f"Select {_DOWNLOAD}, the violet node, press Ctrl+B, then Run ({entry.gigabytes:.0f} GB)."
        step = f"Add the node {_DOWNLOAD}, choose {entry.name} and queue it ({entry.gigabytes:.0f} GB); then press R."
        return f"{step} {_OR_ANOTHER}"
    file = find_file(last)
    if file is not None and file.directory == kind.categories[-1]:
        step = (
            f"Press View details and, under Missing Models, Download ({file.gigabytes:.1f} GB); move the file into "
            f"models/{file.directory} and press R."
        )
        return "\n".join((f"{step} {_OR_ANOTHER}", f"Its address is {file.url}."))
    return f"{_ANOTHER} {_next_click(kind)}"


def _published(name: str) -> Repository | None:
    return next((entry for entry in REPOSITORIES if entry.name.lower() == name.lower()), None)
