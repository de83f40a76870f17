"""The CogVideoX-Fun models: frames or regions that are given, or a control video."""

from ..example_media import MASK, PICTURE
from .table import (
    BOTH_PROMPTS,
    SIZE,
    Column,
    Example,
    Node,
    checkpoint,
    conditioned,
    decode,
    load_video,
    prompts,
    sampler,
    save_video,
)

_SETTINGS = """\
| | V1, V1.1 | V1.5 |
|---|---|---|
| width | 672 | 672 |
| height | 384 | 384 |
| frames | 49 | 85 |
| steps | 50 | 50 |
| fps | 8 | 8 |

Other shapes and larger sizes (up to about 1024 x 1024) work as well, in multiples of 16."""
_INPAINT_LINKS = {**BOTH_PROMPTS, "vae": "pipeline.VAE"}

_START_END_FRAME = f"""\
### For real videos
1. Put the folder of a **CogVideoX-Fun InP** checkpoint (CogVideoX-Fun-V1.1-5b-InP, ...) into `models/diffusers`, \
press **R** and choose it above.
2. Choose your two pictures. One twice makes a loop.
3. Set:

{_SETTINGS}

Leave out the end image, or the start image, and the model generates that end.

The official I2V checkpoints were not trained for an end image, though *CogVideoX Image to Video* has an input \
for one: use Fun InP.
"""

_BREEZE = (
    "A child's drawing comes to life: the wind gets up, clouds race across the blue sky, and all comes to rest again. "
    "Flat colours on paper, the camera stands still."
)


def start_end_frame() -> Example:
    pictures = (
        Node("first", "LoadImage", {"image": PICTURE}, {}, "The first frame", 340),
        Node("last", "LoadImage", {"image": PICTURE}, {}, "The last frame", 340),
    )
    known = Node(
        "known",
        "CogVideoXFunInpaint",
        SIZE,
        _INPAINT_LINKS | {"start_image": "first.IMAGE", "end_image": "last.IMAGE"},
    )
    return Example(
        "start_end_frame",
        "Fun-5b-InP",
        (
            checkpoint("Fun-5b-InP", _START_END_FRAME),
            Column("2  Two pictures", 320, pictures),
            Column("3  Prompt and size", 340, (*prompts(_BREEZE), known)),
            Column("4  Sample", 340, (sampler(links=conditioned("known"), widgets=_DDIM),)),
            Column("5  Video", 340, (decode(), *save_video())),
        ),
    )


_FUN_INPAINT = f"""\
### For real videos
1. Put the folder of a **CogVideoX-Fun InP** checkpoint (CogVideoX-Fun-V1.1-5b-InP, ...) into `models/diffusers`, \
press **R** and choose it above.
2. Choose your video, at least as long as the clip, and a mask: white is regenerated, black is kept.
3. Set:

{_SETTINGS}

**The mask** has your video's size or the clip's. A picture of it is one mask for all frames. To paint one, load a \
frame with *Load Image*, open the mask editor from its menu, and use that node's MASK. A mask that moves has one \
picture for each frame.
"""

_BIRD = (
    "A large white paper bird flies across a blue sky over green hills. Its wings move slowly, clouds drift by. Flat "
    "colours, the camera stands still."
)


def fun_inpaint() -> Example:
    mask = Node("mask", "LoadImageMask", {"image": MASK, "channel": "red"}, {}, "What is regenerated (white)", 340)
    known = Node("known", "CogVideoXFunInpaint", SIZE, _INPAINT_LINKS | {"video": "frames.images", "mask": "mask.MASK"})
    return Example(
        "fun_inpaint",
        "Fun-5b-InP",
        (
            checkpoint("Fun-5b-InP", _FUN_INPAINT),
            Column("2  Your video and a mask", 340, (*load_video(), mask)),
            Column("3  Prompt and size", 340, (*prompts(_BIRD), known)),
            Column("4  Sample", 340, (sampler(links=conditioned("known"), widgets=_DDIM),)),
            Column("5  Video", 340, (decode(), *save_video(fps="frames.fps"))),
        ),
    )


_FUN_CONTROL = f"""\
### For real videos
1. Put the folder of a **CogVideoX-Fun Control** checkpoint (CogVideoX-Fun-V1.1-5b-Control, ...) into \
`models/diffusers`, press **R** and choose it above.
2. Choose your video, at least as long as the clip.
3. Set:

{_SETTINGS}

**Control**: these models were trained with Canny edges, depth, poses and straight lines (MLSD), the Pose models with \
poses alone. *Canny* comes with ComfyUI; for the others put a preprocessor in its place.

`strength` below 1 or `end_percent` below 1 leave more to the prompt.
"""

_LANTERN = (
    "A glowing paper lantern floats over dark hills under a starry sky. Thin clouds drift by, the lantern sways a "
    "little. Night, warm light, sharp detail."
)


def fun_control() -> Example:
    control = Node(
        "control",
        "CogVideoXFunControl",
        SIZE,
        {**BOTH_PROMPTS, "vae": "pipeline.VAE", "control_video": "edges.IMAGE"},
    )
    return Example(
        "fun_control",
        "Fun-5b-Control",
        (
            checkpoint("Fun-5b-Control", _FUN_CONTROL),
            Column("2  Your video and its edges", 340, (*load_video(), *edges())),
            Column("3  Prompt and size", 340, (*prompts(_LANTERN), control)),
            Column("4  Sample", 340, (sampler(links=conditioned("control"), widgets=_DDIM),)),
            Column("5  Video", 340, (decode(), *save_video(fps="frames.fps"))),
        ),
    )


def edges() -> tuple[Node, Node]:
    """Canny edges of the video's "frames", and a look at them."""
    return (
        Node("edges", "Canny", {"low_threshold": 0.1, "high_threshold": 0.3}, {"image": "frames.images"}),
        Node("look", "PreviewImage", {}, {"images": "edges.IMAGE"}, "The edges", 280),
    )


_DDIM = {"sampler": "ddim", "dynamic_cfg": False}
