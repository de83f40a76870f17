"""One clip: from a text, from a picture, from another video."""

from cogvideox.nano.toy_settings import IMAGE, TEXT
from cogvideox.official_settings import Settings

from .table import (
    ADVANCED,
    BOTH_PROMPTS,
    Column,
    Example,
    Node,
    changed,
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

TEXT_TO_VIDEO = """\
The same seed makes the same video as in diffusers.
"""

_OTHER_CARDS = """\
For a small card choose *CogVideoX-2b* in its *CogVideoX Download*. The largest model is in the template **21 Text to \
video with CogVideoX1.5-5B**.
"""

_STAR = "A big yellow star moves to the right on a gradient from blue to purple."


def text_to_video() -> Example:
    nodes = (*prompts(_STAR, 330), Node("latent", "CogVideoXEmptyLatent", size(TEXT)))
    return Example(
        "text_to_video",
        "Text to video",
        (
            checkpoint("5b", "22 Text to video with CogVideoX-5b", f"{_OTHER_CARDS}\n{TEXT_TO_VIDEO}"),
            Column("2  Prompt and size", 360, nodes),
            Column("3  Sample", 360, (sampler(height=620),)),
            Column("4  Video", 360, (decode(), *save_video())),
        ),
    )


_MOTION = f"**Hardly any motion?** Set *noise_augmentation* {ADVANCED} to 0.05 or so.\n"
IMAGE_TO_VIDEO = f"""\
**Your own picture**: connect *Load Image* to *start_image*, instead of *The first frame*. Describe the whole scene, \
not only what moves.

{_MOTION}"""
IN_AN_APP = f"""\
**Your own picture**: choose it in *Your picture or the example*. Describe the whole scene, not only what moves.

{_MOTION}"""

_SQUARE = "A large red square moves up on a white background."


def image_to_video(note: str = IMAGE_TO_VIDEO) -> Example:
    start = Node(
        "start",
        "CogVideoXImageToVideo",
        size(IMAGE),
        {**BOTH_PROMPTS, "vae": "pipeline.VAE", "start_image": "picture.IMAGE"},
    )
    picture = example("picture", "picture", "The first frame")
    return Example(
        "image_to_video",
        "Image to video",
        (
            checkpoint("5b-I2V", "23 Image to video with CogVideoX-5b-I2V", note),
            Column("2  Prompt and picture", 360, (*prompts(_SQUARE, 250), picture)),
            Column("3  Sample", 360, (start, sampler(links=conditioned("start"), widgets=sampled(IMAGE)))),
            Column("4  Video", 360, (decode(), *save_video())),
        ),
    )


def denoise_note(settings: Settings) -> str:
    """What `denoise` does with the steps of a template."""
    steps, denoise = settings.changing_steps, settings.denoise
    return (
        f"**denoise**: the lower, the more of the video stays. *steps* are really run: {steps} at {denoise:g} are the "
        f"last {steps} of {int(steps / denoise)}, which diffusers calls *strength {denoise:g}*."
    )


_GREEN = "A large green circle moves to the right on a blue background."


def video_to_video() -> Example:
    first = Node("first", "ImageFromBatch", {"length": TEXT.frames}, {"image": "frames.images"}, "The first frames")
    encode = Node(
        "encode",
        "CogVideoXEncodeVideo",
        {"width": TEXT.width, "height": TEXT.height},
        {"vae": "pipeline.VAE", "images": "first.IMAGE"},
    )
    return Example(
        "video_to_video",
        "Video to video",
        (
            checkpoint(
                "5b", "24 Video to video with CogVideoX1.5-5B", f"{denoise_note(TEXT)}\n\n{own_video(TEXT.frames)}"
            ),
            Column("2  A video", 300, (*example_video(), first)),
            Column("3  Prompt and size", 300, (*prompts(_GREEN), encode)),
            Column(
                "4  Sample",
                300,
                (sampler(links={"latent_image": "encode.LATENT"}, widgets=changed(TEXT)),),
            ),
            Column("5  Video", 300, (decode(), *save_video(fps="frames.fps"))),
        ),
    )
