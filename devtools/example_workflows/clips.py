"""One clip: from a text, from a picture, from another video."""

from .table import (
    BOTH_PROMPTS,
    EDITED,
    FRAMES,
    GIVEN,
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

TEXT_TO_VIDEO = """\
The same seed makes the same video as in diffusers.
"""

_STAR = "A big yellow star moves to the right on a gradient from blue to purple."


def text_to_video() -> Example:
    nodes = (*prompts(_STAR, 210), Node("latent", "CogVideoXEmptyLatent", SIZE))
    return Example(
        "text_to_video",
        "Text to video",
        (
            checkpoint("5b", "Text to video with CogVideoX1.5-5B", TEXT_TO_VIDEO),
            Column("2  Prompt and size", 360, nodes),
            Column("3  Sample", 360, (sampler(height=620),)),
            Column("4  Video", 360, (decode(), *save_video(height=450))),
        ),
    )


IMAGE_TO_VIDEO = """\
**Your own picture**: put *Load Image* in the place of *CogVideoX Example Input*. Describe the whole scene, not only \
what moves.

**Hardly any motion?** Set `noise_augmentation` to 0.05 or so.
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
        "Image to video",
        (
            checkpoint("5b-I2V", "Image to video with CogVideoX-5b-I2V", IMAGE_TO_VIDEO),
            Column("2  Prompt and picture", 360, (*prompts(_SQUARE, 150), picture)),
            Column("3  Sample", 360, (start, sampler(links=conditioned("start"), widgets=GIVEN))),
            Column("4  Video", 360, (decode(), *save_video())),
        ),
    )


VIDEO_TO_VIDEO = """\
**denoise**: the lower, the more of the video stays. `steps` are really run: 30 at 0.6 are the last 30 of 50, which \
diffusers calls `strength=0.6`.

**Your own video**: put *Load Video* in the place of *CogVideoX Example Input*. The new video runs as fast as yours.
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
        "Video to video",
        (
            checkpoint("5b", "Video to video with CogVideoX1.5-5B", VIDEO_TO_VIDEO),
            Column("2  A video", 340, (*example_video(), first)),
            Column("3  Prompt and size", 340, (*prompts(_GREEN), encode)),
            Column(
                "4  Sample",
                340,
                (sampler(links={"latent_image": "encode.LATENT"}, widgets={"denoise": 0.6, **EDITED}),),
            ),
            Column("5  Video", 340, (decode(), *save_video(fps="frames.fps"))),
        ),
    )
