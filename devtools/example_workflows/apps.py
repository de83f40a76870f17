"""The commonest workflows in ComfyUI's app mode: a form with the prompt, the input and the settings, and the video.

They are the toy's, so that they run at once; the checkpoint is one of the form's inputs.
"""

from dataclasses import replace

from cogvideox.nano.toy_settings import IMAGE
from cogvideox.official_settings import Settings

from .clips import IN_AN_APP, image_to_video, text_to_video, video_to_video
from .table import Example, Node, size

_Inputs = tuple[tuple[str, str, str], ...]
_PROMPT = ("positive", "text", "Prompt")
_CHECKPOINT = ("pipeline", "folder", "Checkpoint")
_FPS = ("video", "fps", "Frames per second")
_SETTINGS: _Inputs = (
    ("sample", "steps", "Steps"),
    ("sample", "sampler", "Sampler"),
    ("sample", "dynamic_cfg", "Dynamic guidance (dynamic_cfg)"),
    ("sample", "seed", "Seed"),
)


def _size(node: str, only: Settings | None = None) -> _Inputs:
    """only: the one size that the form's checkpoint takes: the form has no note that could say it."""
    names = ("width", "height", "frames")
    takes = {name: f" (this toy: {size(only)[name]})" for name in names} if only else dict.fromkeys(names, "")
    return tuple((node, name, name.capitalize() + takes[name]) for name in names)


def text_to_video_app() -> Example:
    return replace(
        text_to_video(),
        name="text_to_video_app",
        title="Text to video as an app",
        app=(_PROMPT, _CHECKPOINT, *_size("latent"), *_SETTINGS, _FPS),
    )


def _beside_an_own_picture(spec: Node) -> Node:
    """The node of the toy's graph, in that of the app. The example's node may grow out of sight, behind the form."""
    if spec.name == "start":
        return replace(spec, links={**spec.links, "start_image": "own.IMAGE"})
    return replace(spec, height=460) if spec.name == "picture" else spec


def image_to_video_app() -> Example:
    """The example picture, of which the prompt speaks, or a picture of one's own. It runs before one is uploaded."""
    own = Node(
        "own", "CogVideoXOwnImage", {"image": ""}, {"otherwise": "picture.IMAGE"}, "Your picture or the example", 340
    )
    toy = image_to_video(IN_AN_APP)
    columns = []
    for column in toy.columns:
        nodes = [_beside_an_own_picture(spec) for spec in column.nodes]
        if any(spec.name == "picture" for spec in nodes):
            nodes.append(own)
        columns.append(replace(column, nodes=tuple(nodes)))
    return replace(
        toy,
        columns=tuple(columns),
        name="image_to_video_app",
        title="Image to video as an app",
        app=(
            ("own", "image", "Your picture (empty: example)"),
            _PROMPT,
            _CHECKPOINT,
            *_size("start", IMAGE),
            *_SETTINGS,
            _FPS,
        ),
    )


def video_to_video_app() -> Example:
    return replace(
        video_to_video(),
        name="video_to_video_app",
        title="Video to video as an app",
        app=(
            ("file", "example", "Example video"),
            _PROMPT,
            _CHECKPOINT,
            ("first", "length", "Frames"),
            ("encode", "width", "Width"),
            ("encode", "height", "Height"),
            ("sample", "denoise", "How much is made new (denoise)"),
            *_SETTINGS,
        ),
    )


APPS: tuple[Example, ...] = (text_to_video_app(), image_to_video_app(), video_to_video_app())
