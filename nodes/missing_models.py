"""Models that are not there: what a loader's list says then, and the next click for who has chosen one of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import JoinableError, shortened
from ..host import folders
from ..host.queued_workflow import bypassed_downloads
from ..host.toy import LISTED, with_toy
from ..model_loaders.downloads.repositories import REPOSITORIES, Repository, SingleFile, find_file
from ..model_loaders.load_tiny_decoder import TINY_FOLDER

_DOWNLOAD = "CogVideoX Download"
_MOST_LETTERS, _MOST_NAMES = 100, 3  # of a name in a message, and in one that joins several
# Whole sentences: each language has titles of its own for them.
_TEXT_TO_VIDEO = "The template “01 Text to video” runs without a download, with CogVideoX-nano."
_FROM_EDGES = "The template “09 Video from edges (ControlNet)” runs without a download, with CogVideoX-nano."
_RUN_TELLS = "Press Run, and each of these nodes says what to do."
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


class Missing(NamedTuple):
    """A model that a loader lacks. name: "" where none is chosen. bypassed: as for describe_missing."""

    name: str
    kind: Kind
    bypassed: frozenset[str] = frozenset()

    def message(self) -> str:
        """What is missing and what to do; addresses stand in further lines."""
        if not self.name:
            return f"No {self.kind.what} is chosen: choose one from the list. {_next_click(self.kind)}"
        return f"There is no {self.name!r}. {self.step()}"

    def step(self) -> str:
        """Where to get it, and what else to do; an address stands in a further line."""
        entry = _published(_last_part(self.name))
        if entry is not None and self.kind.published:
            if entry.name in self.bypassed:
                # The loader has its folder from that node, and no list to choose from.
                return f"Select {_DOWNLOAD}, the violet node, press Ctrl+B, then Run ({entry.gigabytes:.0f} GB)."
            step = (
                f"Add the node {_DOWNLOAD}, choose {entry.name} and queue it ({entry.gigabytes:.0f} GB); then press R."
            )
            return f"{step} {_OR_ANOTHER}"
        file = self.file()
        if file is None:
            return f"{_ANOTHER} {_next_click(self.kind)}"
        step = (
            f"Press View details and, under Missing Models, Download ({file.gigabytes:.1f} GB); move the file into "
            f"models/{file.directory} and press R."
        )
        return "\n".join((f"{step} {_OR_ANOTHER}", f"Its address is {file.url}."))

    def file(self) -> SingleFile | None:
        """The published file that ComfyUI itself offers to download, if it is one of this kind."""
        file = find_file(_last_part(self.name))
        return file if file is not None and file.directory == self.kind.categories[-1] else None


class MissingModelError(JoinableError):
    """A loader's model that is not chosen or not there."""

    missing: Missing | None = None

    def joined(self, others: Sequence[JoinableError]) -> str:
        """One message that names all models."""
        errors = [error for error in (self, *others) if isinstance(error, MissingModelError)]
        return describe_all((error.missing for error in errors if error.missing is not None), are_told=True)


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

    Raises MissingModelError, which names the next click, where nothing is chosen or no folder has the name.
    """
    known = KINDS[kind]
    if name in (None, "", say_empty(kind)):
        raise _error(Missing("", known))
    try:
        return folders.find(name, *known.categories, toy=kind if kind in LISTED else "")
    except folders.NoSuchModelError as error:
        # What to do comes first: a node and a toast show few lines. The toast ends at the line break.
        missing = Missing(error.missing, known, bypassed_downloads())
        raise _error(missing, f"It was looked for in {error.places}.") from error


def _error(missing: Missing, *lines: str) -> MissingModelError:
    error = MissingModelError("\n".join((missing.message(), *lines)))
    error.missing = missing
    return error


def describe_missing(name: str, node_type: str, bypassed: frozenset[str]) -> Missing | None:
    """What `find` would miss in a graph that is opened; None for a node that lists no models.

    name: of a model that the page's list lacks. bypassed: the checkpoints of the nodes CogVideoX Download that are
    there and bypassed.
    """
    kind = LOADERS.get(node_type)
    return None if kind is None else Missing(shortened(name, _MOST_LETTERS), KINDS[kind], bypassed)


def describe_all(missing: Iterable[Missing], are_told: bool) -> str:
    """One line for all that is missing in a graph, "" for nothing: the names, and one next step.

    are_told: whether each node says on itself what it lacks, as those of a refused prompt do.
    """
    by_message = {one.message().split("\n")[0]: one for one in missing}
    if len(by_message) < 2:
        return next(iter(by_message), "")
    several = list(by_message.values())
    names = list(dict.fromkeys(repr(one.name) if one.name else one.kind.what for one in several))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"Models are missing: {', '.join(names[:_MOST_NAMES])}{more}. {_common_step(several, are_told)}"


def _common_step(missing: Sequence[Missing], are_told: bool) -> str:
    steps = {one.step().split("\n")[0] for one in missing}
    if len(steps) == 1:
        return steps.pop()
    files = [one.file() for one in missing]
    if None not in files:
        sizes = {file.name: file.gigabytes for file in files if file is not None}
        # Short enough for a toast, beside the names of a template's three files.
        step = f"Press View details and each Download under Missing Models ({sum(sizes.values()):.1f} GB in all)."
        folder = "Each node names its file's folder."
        return f"{step} {folder if are_told else _RUN_TELLS}"
    return "Each of these nodes says what to do." if are_told else _RUN_TELLS


def _next_click(kind: Kind) -> str:
    """Where to get something of a kind, and how to try the graph without it."""
    download = f"Add the node {_DOWNLOAD}, choose a checkpoint and queue it; or put {kind.own}."
    steps = [download if kind.published else f"Put {kind.own}.", "Then press R and choose it."]
    if kind.trial:
        steps.append(kind.trial)
    return " ".join(steps)


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _published(name: str) -> Repository | None:
    return next((entry for entry in REPOSITORIES if entry.name.lower() == name.lower()), None)
