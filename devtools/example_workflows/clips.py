"""One clip: from a text, from a picture, from another video."""

from .table import (
    BOTH_PROMPTS,
    FRAMES,
    HEIGHT,
    SIZE,
    WIDTH,
    Column,
    Example,
    Node,
    checkpoint,
    conditioned,
    decode,
    example,
    example_video,
    prompts,
    sampler,
    save_video,
)

_TEXT_TO_VIDEO = """\
### For real videos
1. Put the whole folder of a checkpoint (it holds `model_index.json`) into `models/diffusers`.
2. Press **R** and choose it above.
3. Set what its authors recommend:

| | 2b | 5b | 1.5-5B |
|---|---|---|---|
| width | 720 | 720 | 1360 |
| height | 480 | 480 | 768 |
| frames | 49 | 49 | 81 |
| steps | 50 | 50 | 50 |
| sampler | ddim | dpm | dpm |
| dynamic_cfg | off | on | on |
| fps | 8 | 8 | 16 |

The same seed makes the same video as in diffusers.
"""

_STAR = "A big yellow star moves to the right on a gradient from blue to purple."


def text_to_video() -> Example:
    nodes = (*prompts(_STAR, 210), Node("latent", "CogVideoXEmptyLatent", SIZE))
    return Example(
        "text_to_video",
        (
            checkpoint("5b", _TEXT_TO_VIDEO),
            Column("2  Prompt and size", 360, nodes),
            Column("3  Sample", 360, (sampler(height=620),)),
            Column("4  Video", 360, (decode(), *save_video(height=450))),
        ),
    )


_IMAGE_TO_VIDEO = """\
### For real videos
1. Put the folder of **CogVideoX-5b-I2V** or **CogVideoX1.5-5B-I2V** into `models/diffusers`. The text to video \
checkpoints do not take pictures.
2. Press **R** and choose it above. Put *Load Image* with your picture in the place of *CogVideoX Example Input*.
3. Describe the whole scene, not only what moves, and set:

| | 5b-I2V | 1.5-5B-I2V |
|---|---|---|
| width | 720 | 1360 |
| height | 480 | 768 |
| frames | 49 | 81 |
| steps | 50 | 50 |
| sampler | dpm | dpm |
| dynamic_cfg | on | on |
| fps | 8 | 16 |

5b-I2V knows this one size. 1.5 takes other shapes, upright ones too: the short side 768, the long one up to 1360.

Hardly any motion? Set `noise_augmentation` to 0.05 or so.
"""

_SQUARE = "A large red square moves up on a white background."


def image_to_video() -> Example:
    start = Node(
        "start",
        "CogVideoXImageToVideo",
        SIZE,
        {**BOTH_PROMPTS, "vae": "pipeline.VAE", "start_image": "picture.IMAGE"},
    )
    picture = example("picture", "picture", "The first frame")
    return Example(
        "image_to_video",
        (
            checkpoint("5b-I2V", _IMAGE_TO_VIDEO),
            Column("2  Prompt and picture", 360, (*prompts(_SQUARE, 150), picture)),
            Column("3  Sample", 360, (start, sampler(links=conditioned("start")))),
            Column("4  Video", 360, (decode(), *save_video())),
        ),
    )


_VIDEO_TO_VIDEO = """\
### For real videos
1. Put the folder of **CogVideoX-5b** (or 2b, or 1.5-5B) into `models/diffusers`, press **R** and choose it above.
2. Put *Load Video* with your own video in the place of *CogVideoX Example Input*, best one of 8 frames a second \
(16 for 1.5).
3. Set:

| | 5b | 1.5-5B |
|---|---|---|
| length | 49 | 81 |
| width | 720 | 1360 |
| height | 480 | 768 |
| steps | 30 | 30 |
| denoise | 0.6 | 0.6 |

**denoise**: the lower, the more of your video stays; diffusers' default is 0.8. `steps` are really run: 30 at 0.6 are \
the last 30 of 50, which diffusers calls `strength=0.6`.

The new video runs as fast as yours.
"""

_GREEN = "A large green circle moves to the right on a blue background."


def video_to_video() -> Example:
    first = Node("first", "ImageFromBatch", {"length": FRAMES}, {"image": "frames.images"}, "The first frames")
    encode = Node(
        "encode",
        "CogVideoXEncodeVideo",
        {"width": WIDTH, "height": HEIGHT},
        {"vae": "pipeline.VAE", "images": "first.IMAGE"},
    )
    return Example(
        "video_to_video",
        (
            checkpoint("5b", _VIDEO_TO_VIDEO),
            Column("2  A video", 340, (*example_video(), first)),
            Column("3  Prompt and size", 340, (*prompts(_GREEN), encode)),
            Column("4  Sample", 340, (sampler(links={"latent_image": "encode.LATENT"}, widgets={"denoise": 0.6}),)),
            Column("5  Video", 340, (decode(), *save_video(fps="frames.fps"))),
        ),
    )
