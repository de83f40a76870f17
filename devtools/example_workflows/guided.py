"""Led by another video: a control net, or attention shared with an inverted video."""

from cogvideox.host.toy import LISTED
from cogvideox.nano.toy_settings import GIVEN, TEXT

from .fun import edges
from .table import (
    BOTH_PROMPTS,
    Column,
    Example,
    Node,
    checkpoint,
    decode,
    example_video,
    followed,
    negative_prompt,
    own_video,
    prompt,
    prompts,
    sampled,
    sampler,
    save_video,
    size,
)

CONTROLNET = """\
**Control**: *Canny* goes with a canny control net. For hed or depth put such a preprocessor in its place.

*strength* 0.5 to 1; *end_percent* 0.5 to 0.8 lets the prompt finish freely, and faster.

There are none for 1.5 and for image to video.
"""

_PURPLE = "A large purple circle moves to the right on a yellow background."


def controlnet() -> Example:
    load = Node("net", "CogVideoXLoadControlNet", {"control_net_name": next(iter(LISTED["controlnet"]))})
    apply = Node(
        "apply",
        "CogVideoXApplyControlNet",
        {},
        {**BOTH_PROMPTS, "control_net": "net.CONTROL_NET", "control_video": "edges.IMAGE"},
    )
    latent = Node("latent", "CogVideoXEmptyLatent", size(TEXT))
    hints = f"{CONTROLNET}\n{own_video(TEXT.frames)}"
    guided = {"positive": "apply.positive", "negative": "apply.negative"}
    return Example(
        "controlnet",
        "Video from edges (ControlNet)",
        (
            checkpoint("5b", "31 Edges to video with a ControlNet for CogVideoX-5b", hints),
            Column("2  A video and its edges", 300, (*example_video(), *edges())),
            Column("3  Prompt and size", 300, (*prompts(_PURPLE), apply, latent)),
            Column("4  Control net and sampler", 300, (load, sampler(links=guided, widgets=sampled(GIVEN)))),
            Column("5  Video", 300, (decode(), *save_video(fps="frames.fps"))),
        ),
    )


INVERSION_EDIT = """\
The video is run backwards into noise; while the new one is made, attention looks at the old one too. So layout and \
motion stay, and the prompt says what is seen.

**Prompt**: describe the whole new video, not only the change. The inversion takes an empty prompt.

**More freedom**: raise *start_percent* or lower *end_percent* of *Follow Video*. A step costs about 2.5 times as much \
while the video is followed.
"""

_GREEN = "A large green circle moves to the right on a blue background."


def inversion_edit() -> Example:
    first = Node("first", "ImageFromBatch", {"length": TEXT.frames}, {"image": "frames.images"}, "The first frames")
    encode = Node(
        "encode",
        "CogVideoXEncodeVideo",
        {"width": TEXT.width, "height": TEXT.height},
        {"vae": "pipeline.VAE", "images": "first.IMAGE"},
    )
    invert = Node(
        "invert",
        "CogVideoXInvert",
        {"steps": TEXT.steps},
        {
            "model": "pipeline.MODEL",
            "positive": "negative.CONDITIONING",
            "negative": "negative.CONDITIONING",
            "latent_image": "encode.LATENT",
        },
        height=370,
    )
    texts = (
        prompt("positive", "What the new video shows", _GREEN, 280),
        negative_prompt("Empty: negative, and for the inversion"),
        invert,
    )
    follow = Node("follow", "CogVideoXFollowVideo", {}, {"model": "pipeline.MODEL", "inverted": "invert.latent"})
    new = sampler(
        links={"model": "follow.MODEL", "latent_image": "encode.LATENT"},
        widgets=followed(TEXT),
    )
    return Example(
        "inversion_edit",
        "Edit a video, keep its motion",
        (
            checkpoint("5b", "32 Edit a video with CogVideoX-5b", f"{INVERSION_EDIT}\n{own_video(TEXT.frames)}"),
            Column("2  A video and its size", 300, (*example_video(), first, encode)),
            Column("3  Prompt and inversion", 300, texts),
            Column("4  Sample", 300, (follow, new)),
            Column("5  Video", 300, (decode(), *save_video(fps="frames.fps"))),
        ),
    )
