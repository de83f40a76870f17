"""The commonest workflows in ComfyUI's app mode: a form with the prompt, the input and the settings, and the video.

They are the toy's, so that they run at once; the checkpoint is one of the form's inputs.
"""

from dataclasses import replace

from .clips import image_to_video, text_to_video, video_to_video
from .table import Example, Node

_SETTINGS = (("sample", "steps"), ("sample", "sampler"), ("sample", "dynamic_cfg"), ("sample", "seed"))


def _size(node: str) -> tuple[tuple[str, str], ...]:
    return ((node, "width"), (node, "height"), (node, "frames"))


def text_to_video_app() -> Example:
    return replace(
        text_to_video(),
        name="text_to_video_app",
        title="Text to video as an app",
        app=(("positive", "text"), ("pipeline", "folder"), *_size("latent"), *_SETTINGS, ("video", "fps")),
    )


def image_to_video_app() -> Example:
    """With Load Image, which has a button to upload a picture; ComfyUI comes with example.png."""
    toy = image_to_video()
    picture = Node("picture", "LoadImage", {"image": "example.png"}, {}, "The first frame", 340, later=True)
    columns = tuple(
        replace(column, nodes=tuple(picture if spec.name == "picture" else spec for spec in column.nodes))
        for column in toy.columns
    )
    return replace(
        toy,
        columns=columns,
        name="image_to_video_app",
        title="Image to video as an app",
        app=(
            ("picture", "image"),
            ("positive", "text"),
            ("pipeline", "folder"),
            *_size("start"),
            *_SETTINGS,
            ("video", "fps"),
        ),
    )


def video_to_video_app() -> Example:
    return replace(
        video_to_video(),
        name="video_to_video_app",
        title="Video to video as an app",
        app=(
            ("file", "example"),
            ("positive", "text"),
            ("pipeline", "folder"),
            ("first", "length"),
            ("encode", "width"),
            ("encode", "height"),
            ("sample", "denoise"),
            *_SETTINGS,
        ),
    )


APPS: tuple[Example, ...] = (text_to_video_app(), image_to_video_app(), video_to_video_app())
