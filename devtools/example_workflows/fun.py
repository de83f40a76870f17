"""The CogVideoX-Fun models: frames or regions that are given, or a control video."""

from cogvideox.nano.toy_settings import CONTROL, INPAINT

from .table import (
    BOTH_PROMPTS,
    Column,
    Example,
    Node,
    checkpoint,
    conditioned,
    decode,
    example,
    example_video,
    own_video,
    prompts,
    sampled,
    sampler,
    save_video,
    size,
)

_INPAINT_LINKS = {**BOTH_PROMPTS, "vae": "pipeline.VAE"}

TWO_PICTURES = """\
One picture twice makes a loop. Without *end_image*, or without *start_image*, the model generates that end.

The official I2V checkpoints were not trained for an end image, though *CogVideoX Image to Video* has an input for one.
"""
_START_END_FRAME = f"""\
**Your own pictures**: connect two *Load Image* to *start_image* and *end_image*, instead of the two examples. \
{TWO_PICTURES}"""

_SQUARE = "A large red square moves up on a white background."


def start_end_frame() -> Example:
    pictures = (
        example("first", "picture", "The first frame"),
        example("last", "last picture", "The last frame"),
    )
    known = Node(
        "known",
        "CogVideoXFunInpaint",
        size(INPAINT),
        _INPAINT_LINKS | {"start_image": "first.IMAGE", "end_image": "last.IMAGE"},
    )
    return Example(
        "start_end_frame",
        "Video from first and last frame",
        (
            checkpoint("Fun-5b-InP", "28 First and last frame with CogVideoX-Fun", _START_END_FRAME),
            Column("2  Two pictures", 300, pictures),
            Column("3  Prompt and size", 300, (*prompts(_SQUARE), known)),
            Column("4  Sample", 300, (sampler(links=conditioned("known"), widgets=sampled(INPAINT)),)),
            Column("5  Video", 300, (decode(), *save_video())),
        ),
    )


FUN_INPAINT = """\
**The mask**: what is white is regenerated, what is black is kept. It has your video's size or the clip's. A picture \
is one mask for all frames; a mask that moves has one picture for each frame.

**Your own**: connect *Load Video* to *Get Video Components*, and *Load Image (as Mask)* to *mask*, instead of *The \
video*. To paint a mask, load a frame with *Load Image*, open the mask editor from its menu, and connect its MASK.
"""

_STAR = "A large white star moves to the right on a blue background."


def fun_inpaint() -> Example:
    mask = Node("mask", "MaskPreview", {}, {"mask": "file.MASK"}, "What is regenerated (white)", 340)
    known = Node(
        "known", "CogVideoXFunInpaint", size(INPAINT), _INPAINT_LINKS | {"video": "frames.images", "mask": "file.MASK"}
    )
    return Example(
        "fun_inpaint",
        "Inpaint a region of a video",
        (
            checkpoint("Fun-5b-InP", "29 Inpaint a region with CogVideoX-Fun", FUN_INPAINT),
            Column("2  A video and a mask", 300, (*example_video(), mask)),
            Column("3  Prompt and size", 300, (*prompts(_STAR), known)),
            Column("4  Sample", 300, (sampler(links=conditioned("known"), widgets=sampled(INPAINT)),)),
            Column("5  Video", 300, (decode(), *save_video(fps="frames.fps"))),
        ),
    )


FUN_CONTROL = """\
**Control**: these models were trained with Canny edges, depth, poses and straight lines (MLSD), the Pose models with \
poses alone. *Canny* comes with ComfyUI; for the others put a preprocessor in its place.

*strength* below 1 or *end_percent* below 1 leave more to the prompt.
"""

_PURPLE = "A large purple circle moves to the right on a yellow background."


def fun_control() -> Example:
    control = Node(
        "control",
        "CogVideoXFunControl",
        size(CONTROL),
        {**BOTH_PROMPTS, "vae": "pipeline.VAE", "control_video": "edges.IMAGE"},
    )
    hints = f"{FUN_CONTROL}\n{own_video(CONTROL.frames)}"
    return Example(
        "fun_control",
        "Video from edges (Fun Control)",
        (
            checkpoint("Fun-5b-Control", "30 Edges to video with CogVideoX-Fun Control", hints),
            Column("2  A video and its edges", 300, (*example_video(), *edges())),
            Column("3  Prompt and size", 300, (*prompts(_PURPLE), control)),
            Column("4  Sample", 300, (sampler(links=conditioned("control"), widgets=sampled(CONTROL)),)),
            Column("5  Video", 300, (decode(), *save_video(fps="frames.fps"))),
        ),
    )


def edges() -> tuple[Node, Node]:
    """Canny edges of the video's "frames", and a look at them."""
    return (
        Node("edges", "Canny", {"low_threshold": 0.1, "high_threshold": 0.3}, {"image": "frames.images"}),
        Node("look", "PreviewImage", {}, {"images": "edges.IMAGE"}, "The edges", 280),
    )
