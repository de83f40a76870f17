"""What the templates of real checkpoints have in common: the loaders with their note, and a toy's workflow with other
loaders, sizes and settings.

A loader of single files names, in `properties.models`, where each is published, and ComfyUI offers to download what is
missing. A whole folder is downloaded by CogVideoX Download, which is bypassed until the user switches it on.
"""

from collections.abc import Mapping
from dataclasses import replace

from cogvideox.model_loaders.downloads.repositories import SingleFile, find_repository
from cogvideox.official_settings import Settings

from .downloads_named import names, needs, words
from .model_files import T5_FP8, T5_FP16, VAE
from .table import WATCH, Column, Example, Node, note, prompt_height

# Of the first group, in px. A loader has room for the sentence that it shows where its file is missing: where to press,
# and into which folder the file goes. In wider nodes that is fewer lines, and the notes are lower.
_WIDTH, _LOADER_HEIGHT = 500, 176


def loaders(transformer: SingleFile, *others: SingleFile) -> tuple[Node, ...]:
    """One file each for the transformer, T5 and the VAE. others: transformers that fit in its place."""
    chosen = (
        Node("model", "CogVideoXLoadModel", {"model_name": transformer.name}, models=names(transformer, *others)),
        Node("clip", "CogVideoXLoadTextEncoder", {"text_encoder_name": T5_FP16.name}, models=names(T5_FP16, T5_FP8)),
        Node("vae", "CogVideoXLoadVAE", {"vae_name": VAE.name}, models=names(VAE)),
    )
    return tuple(replace(node, height=_LOADER_HEIGHT) for node in chosen)


_PART_OF = {"pipeline.MODEL": "model.MODEL", "pipeline.CLIP": "clip.CLIP", "pipeline.VAE": "vae.VAE"}


def single_files(
    hints: str,
    transformer: SingleFile,
    *others: SingleFile,
    folders: int = 0,
    further: tuple[SingleFile, ...] = (),
) -> tuple[Node, ...]:
    """The loaders, and the note that says where the files go.

    others: as for loaders. folders: how many are needed beside the files. further: files that nodes of the other groups
    load.
    """
    files = (transformer, T5_FP16, VAE, *further)
    rows = [f"| {file.name} | {file.directory} |" for file in files]
    count, gigabytes = words(files, folders=folders)
    text = "\n".join(
        [
            f"### {count.capitalize()}, once",
            f"ComfyUI says that they are missing. **View details** lists the files, each with a button that downloads "
            f"it ({gigabytes} together). A browser saves them in a place of its own: move each into its folder below "
            "*models*, and press **R**.",
            "",
            "| file | folder |",
            "|---|---|",
            *rows,
            "",
            f"With less memory choose *{T5_FP8.name}* as the text encoder, and *int8* as the model's *weight_dtype*.",
        ]
    )
    last = note("\n\n".join([text, hints.strip(), WATCH]), "Before the first run")
    return (*loaders(transformer, *others), last)


def folder(hints: str, name: str) -> tuple[Node, ...]:
    """The download of a whole checkpoint, its loader, and the note that says how to press it."""
    gigabytes = words([find_repository(name)])[1]
    text = (
        "### One folder, once: select the violet download node above and press Ctrl+B\n"
        "It is *CogVideoX Download*, bypassed so that nothing is fetched unasked. "
        f"**Run** then downloads {name} ({gigabytes}) into *models/diffusers*, checks every file and makes the video. "
        "It goes on where it was interrupted, and has nothing to do the next time.\n\nIf you have a folder under "
        "another name: delete the download, press **R** and choose yours in the loader."
    )
    return (
        Node("download", "CogVideoXDownload", {"checkpoint": name}, bypassed=True),
        # As high as it becomes where Run is pressed too early: what it then says lay over the note.
        Node("pipeline", "CogVideoXLoadPipeline", {"folder": name}, {"folder": "download.folder"}, "", 290, later=True),
        note("\n\n".join([text, hints.strip(), WATCH]), "Before the first run"),
    )


def derive(
    toy: Example,
    name: str,
    title: str,
    first: tuple[Node, ...],
    widgets: Mapping[str, Mapping[str, object]],
    model: str,
    made: str,
    fps: float,
    instead: Mapping[str, Node] | None = None,
) -> Example:
    """A toy's workflow for a real checkpoint. first: the nodes of its first group. widgets: node name -> values that
    differ. model, made: what the card calls the model, and says of the video. instead: node name -> the node in its
    place. Raises KeyError for a node that the workflow does not have.
    """
    instead, widgets = dict(instead or {}), dict(widgets)
    if any(spec.type == "CreateVideo" and "fps" not in spec.links for spec in _nodes(toy)):
        widgets["video"] = {**widgets.get("video", {}), "fps": fps}
    single = any(spec.name == "model" for spec in first)

    def changed_node(spec: Node, width: int) -> Node:
        spec = instead.pop(spec.name, spec)
        links = {to: _PART_OF.get(source, source) if single else source for to, source in spec.links.items()}
        values = {**spec.widgets, **widgets.pop(spec.name, {})}
        height = max(spec.height, prompt_height(str(values["text"]), width)) if "text" in values else spec.height
        return replace(spec, widgets=values, links=links, height=height)

    rest = tuple(
        replace(column, nodes=tuple(changed_node(spec, column.width) for spec in column.nodes))
        for column in toy.columns[1:]
    )
    if instead or widgets:
        raise KeyError(f"{toy.name} has no node {', '.join([*instead, *widgets])}")
    columns = (Column("1  Checkpoint", _WIDTH if single else 360, first), *rest)
    return Example(name, title, columns, needs=needs(model, columns, made), fps=fps)


def _nodes(example: Example) -> list[Node]:
    return [spec for column in example.columns for spec in column.nodes]


def picture(name: str, title: str) -> Node:
    """Load Image with the picture that every ComfyUI has."""
    return Node(name, "LoadImage", {"image": "example.png"}, {}, title, 340, later=True)


def first_frames(settings: Settings) -> dict[str, dict[str, object]]:
    """As many frames of a given video as the checkpoint was trained on, in its size."""
    return {
        "first": {"length": settings.frames},
        "encode": {"width": settings.width, "height": settings.height},
    }


def texts(positive: str, *more: str) -> dict[str, dict[str, object]]:
    """The widgets of the prompt, and of the nodes called `more` with the same text."""
    return {name: {"text": positive} for name in ("positive", *more)}
