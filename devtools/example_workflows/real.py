"""The same workflows for real checkpoints: other loaders (real_parts.py), their sizes and settings, and prompts that a
real model understands."""

from dataclasses import replace

from cogvideox.official_settings import OFFICIAL

from . import clips, fun, guided, longer, train
from .downloads_named import names, needs
from .model_files import (
    FUN_CONTROL,
    FUN_CONTROL_FP8,
    I2V,
    I2V_1_5,
    INTERPOLATION,
    T2V,
    T2V_1_5,
    UPSCALER,
)
from .real_notes import (
    FUN_SETTINGS,
    IMAGE_TO_VIDEO,
    NET,
    OWN_PICTURES,
    SMALL_CARDS,
    TEXT_SETTINGS,
    UPSCALE,
    example_is_held,
    example_is_short,
    made,
    made_of_video,
)
from .real_parts import derive, first_frames, folder, picture, single_files, texts
from .table import Column, Example, Node, changed, followed, own_video, sampled, size

_5B, _5B_I2V, _1_5 = OFFICIAL["CogVideoX-5b"], OFFICIAL["CogVideoX-5b-I2V"], OFFICIAL["CogVideoX1.5-5B"]
_INP = "CogVideoX-Fun-V1.1-5b-InP"
_FUN, _FUN_CONTROL = OFFICIAL[_INP], OFFICIAL["CogVideoX-Fun-V1.1-5b-Control"]

_DOG = (
    "A golden retriever runs along a wide sandy beach at sunset. Small waves roll in behind it, wet sand sprays from "
    "its paws, and its fur glows in the warm low light. The camera follows at the dog's height, in one smooth shot."
)
# ComfyUI's own input/example.png
_DRAWING = (
    "A child's drawing comes to life: a girl with yellow hair, blue eyes and a pink dress stands on a green hill, "
    "waves with both arms and sways from side to side, while white clouds drift across the blue sky."
)
# CogVideoX Example Input, seen by a real model
_DISC = (
    "A ripe orange rolls slowly to the right over a smooth blue tabletop. Soft studio light, a faint shadow below the "
    "orange, shallow depth of field, the camera does not move."
)


def text_to_video_files() -> Example:
    return derive(
        clips.text_to_video(),
        "text_to_video_1_5",
        "Text to video with CogVideoX1.5-5B",
        single_files(clips.TEXT_TO_VIDEO, T2V_1_5),
        {**texts(_DOG), "latent": size(_1_5), "sample": sampled(_1_5)},
        "CogVideoX1.5-5B",
        made(_1_5),
        _1_5.fps,
    )


def text_to_video_folder() -> Example:
    return derive(
        clips.text_to_video(),
        "text_to_video_5b",
        "Text to video with CogVideoX-5b",
        folder(f"{SMALL_CARDS}\n\n{TEXT_SETTINGS}\n\n{clips.TEXT_TO_VIDEO}", "CogVideoX-5b"),
        {**texts(_DOG), "latent": size(_5B), "sample": sampled(_5B)},
        "CogVideoX-5b",
        made(_5B),
        _5B.fps,
    )


def image_to_video_files() -> Example:
    return derive(
        clips.image_to_video(),
        "image_to_video_5b",
        "Image to video with CogVideoX-5b-I2V",
        single_files(IMAGE_TO_VIDEO, I2V, I2V_1_5),
        {**texts(_DRAWING), "start": size(_5B_I2V), "sample": sampled(_5B_I2V)},
        "CogVideoX-5b-I2V",
        made(_5B_I2V),
        _5B_I2V.fps,
        {"picture": picture("picture", "The first frame")},
    )


def video_to_video_files() -> Example:
    hints = (clips.denoise_note(_1_5), example_is_short("CogVideoX1.5-5B", _1_5), own_video(_1_5.frames))
    return derive(
        clips.video_to_video(),
        "video_to_video_1_5",
        "Video to video with CogVideoX1.5-5B",
        single_files("\n\n".join(hints), T2V_1_5),
        {**texts(_DISC), **first_frames(_1_5), "sample": changed(_1_5)},
        "CogVideoX1.5-5B",
        made_of_video(_1_5),
        _1_5.fps,
    )


def upscale_and_interpolate() -> Example:
    """As gradio_composite_demo of the CogVideo repository: upscale four times, then interpolate twice, and ceil((n - 1)
    / 6) frames a second for n frames: 16 for the 97 that two times 49 make."""
    larger = _5B._replace(width=4 * _5B.width, height=4 * _5B.height, frames=2 * _5B.frames - 1, fps=2 * _5B.fps)
    first = single_files(UPSCALE, T2V, further=(UPSCALER, INTERPOLATION))
    settings = {**texts(_DOG), "latent": size(_5B), "sample": sampled(_5B)}
    toy = clips.text_to_video()
    # As wide as in the other templates of five groups.
    narrow = replace(toy, columns=tuple(replace(column, width=300) for column in toy.columns))
    plain = derive(narrow, "", "", first, settings, "", "", _5B.fps)
    *before, last = plain.columns
    decode, *save = last.nodes
    video = tuple(
        replace(spec, widgets={"fps": larger.fps}, links={"images": "interpolate.IMAGE"})
        if spec.name == "video"
        else spec
        for spec in save
    )
    sampled_and_decoded = replace(before[-1], nodes=(replace(before[-1].nodes[0], height=500), decode))
    columns = (*before[:2], sampled_and_decoded, _finish(), Column("5  Video", 300, video))
    return Example(
        "upscale_and_interpolate",
        "Upscale and interpolate with CogVideoX-5b",
        columns,
        needs=needs("CogVideoX-5b, an upscaler and FILM", columns, made(larger)),
        fps=larger.fps,
    )


def _finish() -> Column:
    """From "decode": four times as large, then twice as many frames."""
    return Column(
        "4  Larger and smoother",
        300,
        (
            Node("upscaler", "UpscaleModelLoader", {"model_name": UPSCALER.name}, models=names(UPSCALER)),
            Node(
                "upscale",
                "ImageUpscaleWithModel",
                {},
                {"upscale_model": "upscaler.UPSCALE_MODEL", "image": "decode.IMAGE"},
            ),
            Node(
                "interpolator",
                "FrameInterpolationModelLoader",
                {"model_name": INTERPOLATION.name},
                models=names(INTERPOLATION),
            ),
            Node(
                "interpolate",
                "FrameInterpolate",
                {"multiplier": 2},
                {"interp_model": "interpolator.INTERP_MODEL", "images": "upscale.IMAGE"},
            ),
        ),
    )


def extend_video_files() -> Example:
    return derive(
        longer.extend_video(),
        "extend_video_5b",
        "Extend a video with CogVideoX-5b",
        single_files(longer.EXTEND_VIDEO, T2V),
        {
            **texts(_DOG, "then"),
            "latent": size(_5B),
            "go_on": {"frames": _5B.frames},
            "sample": sampled(_5B),
            "sample2": sampled(_5B),
        },
        "CogVideoX-5b",
        made(_5B._replace(frames=2 * _5B.frames - longer.OVERLAP)),
        _5B.fps,
    )


def long_video_files() -> Example:
    long = _5B._replace(frames=2 * _5B.frames - 1)
    return derive(
        longer.long_video(),
        "long_video_5b",
        "Long video with CogVideoX-5b",
        single_files(longer.LONG_VIDEO, T2V),
        {
            "first": {"text": _DOG},
            "then": {"text": _DOG.replace("runs along", "lies down on")},
            "latent": size(long),
            "windows": {"context_frames": _5B.frames, "overlap_frames": 16},
            "sample": sampled(_5B),
        },
        "CogVideoX-5b",
        made(long),
        _5B.fps,
    )


def start_end_frame_folder() -> Example:
    return derive(
        fun.start_end_frame(),
        "start_end_frame_fun",
        "First and last frame with CogVideoX-Fun",
        folder(f"{OWN_PICTURES} {fun.TWO_PICTURES}\n{FUN_SETTINGS}", _INP),
        {**texts(_DRAWING), "known": size(_FUN), "sample": sampled(_FUN)},
        "CogVideoX-Fun InP",
        made(_FUN),
        _FUN.fps,
        {"first": picture("first", "The first frame"), "last": picture("last", "The last frame")},
    )


def fun_inpaint_folder() -> Example:
    return derive(
        fun.fun_inpaint(),
        "fun_inpaint_fun",
        "Inpaint a region with CogVideoX-Fun",
        folder("\n\n".join((fun.FUN_INPAINT.strip(), example_is_held(_FUN), FUN_SETTINGS)), _INP),
        {**texts(_DISC), "known": {**size(_FUN), "hold_last_frame": True}, "sample": sampled(_FUN)},
        "CogVideoX-Fun InP",
        made(_FUN),
        _FUN.fps,
    )


def fun_control_files() -> Example:
    hints = (fun.FUN_CONTROL.strip(), example_is_held(_FUN_CONTROL), own_video(_FUN_CONTROL.frames))
    return derive(
        fun.fun_control(),
        "fun_control_fun",
        "Edges to video with CogVideoX-Fun Control",
        single_files("\n\n".join(hints), FUN_CONTROL, FUN_CONTROL_FP8),
        {
            **texts(_DISC),
            "control": {**size(_FUN_CONTROL), "hold_last_frame": True},
            "sample": sampled(_FUN_CONTROL),
        },
        "CogVideoX-Fun Control",
        made(_FUN_CONTROL),
        _FUN_CONTROL.fps,
    )


def controlnet_files() -> Example:
    net = Node(
        "net",
        "CogVideoXLoadControlNet",
        {"control_net_name": "cogvideox-5b-controlnet-canny-v1"},
        later=True,
    )
    hints = (NET.strip(), guided.CONTROLNET.strip(), example_is_held(_5B), own_video(_5B.frames))
    return derive(
        guided.controlnet(),
        "controlnet_5b",
        "Edges to video with a ControlNet for CogVideoX-5b",
        single_files("\n\n".join(hints), T2V, folders=1),
        {**texts(_DISC), "apply": {"hold_last_frame": True}, "latent": size(_5B), "sample": sampled(_5B)},
        "CogVideoX-5b and a control net",
        made(_5B),
        _5B.fps,
        {"net": net},
    )


def inversion_edit_files() -> Example:
    hints = (guided.INVERSION_EDIT.strip(), example_is_short("CogVideoX-5b", _5B), own_video(_5B.frames))
    return derive(
        guided.inversion_edit(),
        "inversion_edit_5b",
        "Edit a video with CogVideoX-5b",
        single_files("\n\n".join(hints), T2V),
        {**texts(_DISC), **first_frames(_5B), "invert": {"steps": _5B.steps}, "sample": followed(_5B)},
        "CogVideoX-5b",
        made_of_video(_5B),
        _5B.fps,
    )


def train_lora_files() -> Example:
    learn = {
        "steps": 2000,
        "batch_size": 1,
        "learning_rate": 0.0001,
        "rank": 64,
        "alpha": 64.0,
        "gradient_checkpointing": True,
    }
    return derive(
        train.train_lora(),
        "train_lora_5b",
        "Train a LoRA for CogVideoX-5b",
        single_files(train.YOUR_OWN, T2V),
        {
            **texts(_DOG),
            "clips": {**size(_5B), "folder": "my clips"},
            "train": learn,
            "keep": {"name": "CogVideoX/mine"},
            "latent": size(_5B),
            "sample": sampled(_5B),
        },
        "CogVideoX-5b and your clips",
        made(_5B),
        _5B.fps,
    )


REAL: tuple[Example, ...] = (
    text_to_video_files(),
    text_to_video_folder(),
    image_to_video_files(),
    video_to_video_files(),
    upscale_and_interpolate(),
    extend_video_files(),
    long_video_files(),
    start_end_frame_folder(),
    fun_inpaint_folder(),
    fun_control_files(),
    controlnet_files(),
    inversion_edit_files(),
    train_lora_files(),
)
