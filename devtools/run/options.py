"""What may be said of one clip, on the command line and in a line of a file of prompts: one table for both."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SAMPLERS = ("ddim", "dpm")
# Of model_loaders/precision.py, which imports torch; a test compares the two.
PRECISIONS = ("default", "fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fn_fast", "int8", "int8_fast")
# What the loaders list, and the option that takes a name of it.
LISTS = {"pipeline": "model", "transformer": "model", "text_encoder": "text_encoder", "vae": "vae", "lora": "lora"}
Lists = Mapping[str, Sequence[str]]  # a key of LISTS -> the names that a server offers
_SWITCH = {"on": True, "true": True, "off": False, "false": False}
# ComfyUI's limits for the seed and for the frames a second of CreateVideo, and the pack's for the others.
_MAX_SEED, _MAX_STEPS, _MAX_CFG, _MAX_FRAMES, _MAX_SIDE_PX = (1 << 64) - 1, 1000, 100.0, 1025, 16384
_MAX_STRENGTH, _MAX_CHARACTERS = 100.0, 1 << 16
FPS_RANGE = (1.0, 120.0)  # of ComfyUI's CreateVideo


@dataclass(frozen=True)
class Lora:
    """A LoRA in the server's list, and its strength."""

    name: str
    strength: float


@dataclass(frozen=True)
class Option:
    """read(text) gives the value, and raises ValueError with what is expected, the end of a sentence.

    repeats: it may be given several times, and its value is a tuple.
    """

    metavar: str
    help: str
    read: Callable[[str], Any]
    repeats: bool = False


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ValueError(f"give a whole number from {least} to {most}")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Reads a number."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # False for NaN
            raise ValueError(f"give a number from {least:g} to {most:g}")
        return value

    return read


def portion(text: str) -> float:
    """Reads a number above 0, up to 1."""
    value = number(0.0, 1.0)(text)
    if value == 0:
        raise ValueError("give a number above 0, up to 1; at 0 the video would stay as it is")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of a few words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"give {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return read


def free_text(text: str) -> str:
    """A prompt. What is no text would be refused by the server, or when the result is written, after all the work."""
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters; give at most {_MAX_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"its character {error.start + 1} cannot be encoded (an unpaired surrogate, or a byte that is not UTF-8); "
            "give text in UTF-8"
        ) from error
    return text


def named(text: str) -> str:
    """A name of a file or of a model. In a script, an empty one is a variable that was never set."""
    if not text.strip():
        raise ValueError("give a name")
    return text


def read_switch(text: str) -> bool:
    """on or off."""
    if text.lower() not in _SWITCH:
        raise ValueError("give on or off")
    return _SWITCH[text.lower()]


def read_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels. Whether a video may have them is looked at with the number of frames."""
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise ValueError("give the width and height in pixels, such as 720x480")
    try:
        width, height = (whole(0, _MAX_SIDE_PX)(side) for side in sides)
    except ValueError as error:
        raise ValueError(f"give sides of at most {_MAX_SIDE_PX} pixels") from error
    return width, height


def read_lora(text: str) -> Lora:
    """NAME or NAME:STRENGTH, 1 where there is none."""
    name, colon, strength = text.rpartition(":")
    if not colon:
        name, strength = text, "1"
    how = "write NAME or NAME:STRENGTH, such as style:0.8"
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"its strength {strength.strip()!r} is not a number; {how}")
    if abs(value) > _MAX_STRENGTH:
        raise ValueError(f"its strength {strength.strip()} is not from {-_MAX_STRENGTH:g} to {_MAX_STRENGTH:g}; {how}")
    if not name.strip():
        raise ValueError(f"it has no name; {how}")
    return Lora(name.strip(), value)


# In JSON, these are texts: a number, true or null in the place of one is a mistake.
TEXTS = (free_text, named, read_lora)

# The names are those of the command line, with _ for -, and the keys of a line in JSON.
OPTIONS: Mapping[str, Option] = {
    "prompt": Option("TEXT", "what the video shows", free_text),
    "negative": Option("TEXT", "the negative prompt, empty by default", free_text),
    "image": Option("FILE", "the first frame: image to video", named),
    "video": Option("FILE", "a video to change, or that controls a Control model", named),
    "model": Option("NAME", "a checkpoint in the list of Load CogVideoX Pipeline; by default the toy", named),
    "like": Option("NAME", "the official checkpoint that the model is one of, where its name does not say so", named),
    "text_encoder": Option("NAME", "the text encoder, where the model is a transformer alone", named),
    "vae": Option("NAME", "the VAE, where the model is a transformer alone", named),
    "weight_dtype": Option("NAME", "the precision of the weights, such as int8", one_of(*PRECISIONS)),
    "lora": Option("NAME[:STRENGTH]", "a LoRA; may be given several times", read_lora, repeats=True),
    "size": Option("WxH", "width and height in pixels", read_size),
    "frames": Option("N", "frames of the video, 4k + 1; 8k + 1 is best", whole(1, _MAX_FRAMES)),
    "fps": Option("N", "frames a second", number(*FPS_RANGE)),
    "steps": Option("N", "sampling steps", whole(1, _MAX_STEPS)),
    "cfg": Option("N", "guidance strength", number(0.0, _MAX_CFG)),
    "sampler": Option("NAME", " or ".join(SAMPLERS), one_of(*SAMPLERS)),
    "dynamic_cfg": Option("on|off", "change the guidance over the run", read_switch),
    "denoise": Option("N", "how much of --video is changed, above 0 and up to 1", portion),
    "seed": Option("N", "the same seed makes the same video; 0 by default", whole(0, _MAX_SEED)),
}
