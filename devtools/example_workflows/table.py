"""The parts of an example workflow, and the nodes that nearly all of them have.

They use CogVideoX-nano, which comes with the pack and paints what the prompt says. Sizes are the toy's; a note says
what to set for real videos.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cogvideox.host.toy import INPUT_FPS, NAME
from cogvideox.nano.toy_settings import TEXT
from cogvideox.official_settings import Settings

POSITIVE, NEGATIVE = "#232", "#322"  # colours of the prompts
BOTH_PROMPTS = {"positive": "positive.CONDITIONING", "negative": "negative.CONDITIONING"}


@dataclass(frozen=True)
class Node:
    """One node. name: what `links` call it. widgets: values by widget name, the others keep their default.

    links: input name -> "node name.output name". height: at least so many px. bypassed: switched off until the user
    switches it on. models: what the frontend offers to download where a file that a widget names is missing. later: the
    value of a combo that no fresh install lists, because it is downloaded first.
    """

    name: str
    type: str
    widgets: Mapping[str, object] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    height: int = 0
    color: str = ""
    bypassed: bool = False
    models: tuple[Mapping[str, str], ...] = ()
    later: bool = False


@dataclass(frozen=True)
class Column:
    """Nodes below one another in a group. width: of each node, in px. is_below: the group stands below the one before
    it, and not beside it: a graph that is too wide opens too small to be read."""

    title: str
    width: int
    nodes: tuple[Node, ...]
    color: str = "#3f789e"
    is_below: bool = False


@dataclass(frozen=True)
class Example:
    """A workflow. name: for the commands. title: what its card in ComfyUI says, the file's name after a number.

    app: (node name, widget name, label) of the inputs that ComfyUI's app mode shows; none opens it as a graph. needs:
    what has to be downloaded, for the card of a template that does not run without. fps: of its video, frames per
    second.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    app: tuple[tuple[str, str, str], ...] = ()
    needs: str = ""
    fps: float = INPUT_FPS


# Of an input that is rarely changed: Vue nodes fold it away, and the classic ones, which a new user has, show it.
ADVANCED = "(if you do not see it: under *Show advanced inputs*)"
WATCH = "**To see it while it is sampled**: *Settings → Comfy → Execution → Live preview method*, set to *auto*."


def size(settings: Settings) -> dict[str, object]:
    """The widgets of a node for a video's size and length."""
    return {"width": settings.width, "height": settings.height, "frames": settings.frames}


def sampled(settings: Settings) -> dict[str, object]:
    """The widgets of CogVideoX Sampler."""
    return {
        "steps": settings.steps,
        "cfg": settings.cfg,
        "sampler": settings.sampler,
        "dynamic_cfg": settings.dynamic_cfg,
    }


def changed(settings: Settings) -> dict[str, object]:
    """The same where a video is changed."""
    return sampled(settings) | {
        "steps": settings.changing_steps,
        "cfg": settings.changing_cfg,
        "denoise": settings.denoise,
    }


def followed(settings: Settings) -> dict[str, object]:
    """The same where an inverted video is followed: from noise, by ddim, with which it was inverted."""
    return sampled(settings) | {"cfg": settings.changing_cfg, "sampler": "ddim", "dynamic_cfg": False}


def own_video(frames: int) -> str:
    """How a note says what to do for another video than the example. frames: as many as are taken of it."""
    return (
        "**Your own video**: connect *Load Video* to *Get Video Components*, instead of *The video*. Its first "
        f"{frames} frames are taken, and the new video runs as fast as yours."
    )


def note(text: str, title: str) -> Node:
    """A note in Markdown. Its height is measured."""
    return Node("note", "MarkdownNote", {"text": text}, {}, title)


def checkpoint(
    variant: str, real: str, hints: str, *more: Node, title: str = "Ready to run", width: int = 350
) -> Column:
    """The loader, set to the toy's `variant`, `more` loaders, and a note.

    real: the file name of the template for a real checkpoint. hints: what the task's settings do, in Markdown.
    """
    name = f"{NAME} {variant}"
    ready = (
        f"**{name}** is a toy: it was trained on coloured shapes that move, and on nothing else. Write a size, a "
        "colour, a shape (circle, square, triangle, star), where it moves and its background, and press **Run**."
    )
    further = f"### For real videos\nOpen the template **{real}**. It has the settings and says how to download."
    loader = Node("pipeline", "CogVideoXLoadPipeline", {"folder": name})
    text = "\n\n".join(part for part in (ready, further, hints.strip(), WATCH) if part)
    return Column("1  Checkpoint", width, (loader, *more, note(text, title)))


def prompt(name: str, title: str, text: str, height: int) -> Node:
    """height: with room for what the node says of a prompt that is too long, or has words that the toy does not know: a
    node with a text grows down to the next one."""
    return Node(name, "CogVideoXEncodeText", {"text": text}, {"clip": "pipeline.CLIP"}, title, height, POSITIVE)


def negative_prompt(title: str = "Negative prompt") -> Node:
    """An empty one, with room for three lines of what the node says."""
    return replace(prompt("negative", title, "", 190), color=NEGATIVE)


def prompt_height(text: str, width: int) -> int:
    """How high a prompt's node has to be to show all of its text in both renderers. Both in px."""
    letters_a_line = (width - 60) // 6  # of a font whose letters are all 6 px wide
    return 116 + 16 * len(textwrap.wrap(text, letters_a_line))


def prompts(text: str, height: int = 280) -> tuple[Node, Node]:
    """What the video shows, and an empty negative prompt."""
    return prompt("positive", "What the video shows", text, height), negative_prompt()


def example(name: str, shows: str, title: str, height: int = 360) -> Node:
    """An example input. shows: a key of toy.INPUTS. height: with the picture that it shows, in either renderer."""
    return Node(name, "CogVideoXExample", {"example": shows}, {}, title, height)


def example_video() -> tuple[Node, Node]:
    """The example video and, as "frames", its pictures."""
    return (
        example("file", "video", "The video"),
        Node("frames", "GetVideoComponents", {}, {"video": "file.VIDEO"}),
    )


def sampler(
    name: str = "sample",
    links: Mapping[str, str] | None = None,
    widgets: Mapping[str, object] | None = None,
    title: str = "",
    height: int = 500,
) -> Node:
    """A CogVideoX Sampler as it suits the toy and a text; links and widgets change that. height: room for a preview."""
    wired = {"model": "pipeline.MODEL", **BOTH_PROMPTS, "latent_image": "latent.LATENT"}
    settings = {"seed": 42, "control_after_generate": "fixed", **sampled(TEXT)}
    return Node(name, "CogVideoXSample", settings | dict(widgets or {}), wired | dict(links or {}), title, height)


def decode(name: str = "decode", samples: str = "sample.LATENT", title: str = "") -> Node:
    return Node(name, "CogVideoXDecode", {}, {"vae": "pipeline.VAE", "samples": samples}, title)


def save_video(images: str = "decode.IMAGE", fps: str | None = None, height: int = 450) -> tuple[Node, Node]:
    """fps: the output it comes from; None for that of the models before 1.5. height: room for the video.

    Its file's name is set by saved_under_its_title."""
    links = {"images": images} | ({"fps": fps} if fps else {})
    return (
        Node("video", "CreateVideo", {"fps": INPUT_FPS}, links),
        Node("save", "SaveVideo", {}, {"video": "video.VIDEO"}, height=height),
    )


def conditioned(name: str) -> dict[str, str]:
    """A sampler's links to a node that gives positive, negative and latent."""
    return {"positive": f"{name}.positive", "negative": f"{name}.negative", "latent_image": f"{name}.latent"}


def saved_under_its_title(example: Example) -> Example:
    """`example`, whose video is called as the template is: all in one row of numbers, nobody knows which was which."""
    plain = re.sub(r"[^\w .-]", "", example.title)
    name = plain if "CogVideoX" in plain else f"CogVideoX {plain[0].lower()}{plain[1:]}"

    def renamed(spec: Node) -> Node:
        return replace(spec, widgets={"filename_prefix": f"video/{name}"}) if spec.type == "SaveVideo" else spec

    columns = (replace(column, nodes=tuple(map(renamed, column.nodes))) for column in example.columns)
    return replace(example, columns=tuple(columns))
