"""What the notes and cards of the templates for real checkpoints say, in Markdown."""

from cogvideox.host.toy import INPUT_FPS, INPUT_FRAMES
from cogvideox.official_settings import OFFICIAL, Settings

from .model_files import I2V_1_5
from .table import ADVANCED

_1_5_I2V = OFFICIAL["CogVideoX1.5-5B-I2V"]


def made(settings: Settings, up_to: str = "") -> str:
    """What a card says of the video."""
    return f"{settings.width} x {settings.height}, {up_to}{settings.frames} frames, {settings.fps:g} fps"


def made_of_video(settings: Settings) -> str:
    """The same where the video is as long and as fast as the one that is given."""
    return f"{made(settings, up_to='up to ')}\nthe example: {INPUT_FRAMES} frames, {INPUT_FPS:g} fps"


def example_is_short(name: str, settings: Settings) -> str:
    """A note's sentences where the new video is as long and as fast as the example."""
    return (
        f"**The example video** has {INPUT_FRAMES} frames at {INPUT_FPS:g} fps, and the new one has too: enough to see "
        f"that everything works. {name} was trained on {settings.frames} frames at {settings.fps:g} fps: give it such "
        "a video."
    )


def example_is_held(settings: Settings) -> str:
    """The same where the nodes hold its last frame."""
    return (
        f"**The example video** has {INPUT_FRAMES} frames; *hold_last_frame* {ADVANCED} repeats its last one up "
        f"to {settings.frames}, and from there on nothing moves."
    )


def _table(**columns: Settings) -> str:
    """The settings of some checkpoints, as a table in Markdown."""
    rows = (
        ("", list(columns)),
        ("---", ["---"] * len(columns)),
        ("width x height", [f"{one.width} x {one.height}" for one in columns.values()]),
        ("frames, fps", [f"{one.frames}, {one.fps:g}" for one in columns.values()]),
        ("sampler", [one.sampler for one in columns.values()]),
        ("dynamic_cfg", ["on" if one.dynamic_cfg else "off" for one in columns.values()]),
    )
    return "\n".join(f"| {' | '.join([name, *cells])} |" for name, cells in rows)


SMALL_CARDS = "**A small card**: choose *CogVideoX-2b* in *CogVideoX Download*, and its settings:"
TEXT_SETTINGS = _table(
    **{"2b": OFFICIAL["CogVideoX-2b"], "5b": OFFICIAL["CogVideoX-5b"], "1.5-5B": OFFICIAL["CogVideoX1.5-5B"]}
)
FUN_SETTINGS = f"""\
CogVideoX-Fun V1.5 takes {OFFICIAL["CogVideoX-Fun-V1.5-5b-InP"].frames} frames. Other shapes and larger sizes \
(up to about 1024 x 1024) work as well, in multiples of 16.
"""
UPSCALE = """\
As in the official demo: every frame is made four times as wide and high, then one is put between each two, and the \
video plays twice as fast.

**Less memory**: put *Upscale Image By* with 0.5 between the upscaling and the interpolation; the video is then twice \
as wide and high.
"""
IMAGE_TO_VIDEO = f"""\
**Your own picture**: choose it in *The first frame*. Describe the whole scene, not only what moves. 5b-I2V knows this \
one size. For 1.5-5B-I2V choose *{I2V_1_5.name}*, {made(_1_5_I2V)}; it takes other shapes too.

**Hardly any motion?** Set *noise_augmentation* {ADVANCED} to 0.05 or so.
"""
OWN_PICTURES = """\
**Your own pictures**: choose them in *The first frame* and *The last frame*; until then both are ComfyUI's example."""
NET = """\
**The control net**: put the folder *TheDenk/cogvideox-5b-controlnet-canny-v1* of Hugging Face into \
*models/controlnet*, press **R** and choose it.
"""
