"""The same workflows for real checkpoints: another loader, its sizes and settings, and a note on the download.

A loader of single files names, in `properties.models`, where each is published, and ComfyUI offers to download what is
missing. A whole folder is downloaded by CogVideoX Download, which is bypassed until the user switches it on.
"""

from collections.abc import Mapping
from dataclasses import replace

from cogvideox.model_loaders.downloads.repositories import SingleFile

from . import clips, fun, guided, longer, train
from .model_files import (
    FUN_CONTROL,
    FUN_CONTROL_FP8,
    I2V,
    I2V_1_5,
    INTERPOLATION,
    T2V,
    T2V_1_5,
    T5_FP8,
    T5_FP16,
    UPSCALER,
    VAE,
)
from .table import WATCH, Column, Example, Node, note

_5B, _1_5 = {"width": 720, "height": 480, "frames": 49}, {"width": 1360, "height": 768, "frames": 81}
_FUN = {"width": 672, "height": 384, "frames": 49}
_DPM = {"steps": 50, "cfg": 6.0, "sampler": "dpm", "dynamic_cfg": True}
_DDIM = {"steps": 50, "cfg": 6.0, "sampler": "ddim", "dynamic_cfg": False}
_FPS_1_5 = 16.0

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


def _names(*files: SingleFile) -> tuple[Mapping[str, str], ...]:
    return tuple(file.as_property() for file in files)


def loaders(transformer: SingleFile, *others: SingleFile) -> tuple[Node, Node, Node]:
    """One file each for the transformer, T5 and the VAE. others: transformers that fit in its place."""
    return (
        Node("model", "CogVideoXLoadModel", {"model_name": transformer.name}, models=_names(transformer, *others)),
        Node("clip", "CogVideoXLoadTextEncoder", {"text_encoder_name": T5_FP16.name}, models=_names(T5_FP16, T5_FP8)),
        Node("vae", "CogVideoXLoadVAE", {"vae_name": VAE.name}, models=_names(VAE)),
    )


_PART_OF = {"pipeline.MODEL": "model.MODEL", "pipeline.CLIP": "clip.CLIP", "pipeline.VAE": "vae.VAE"}


def single_files(hints: str, transformer: SingleFile, *others: SingleFile, net: Node | None = None) -> tuple[Node, ...]:
    """The loaders, that of a control net too, and the note that says where the files go."""
    files = (transformer, T5_FP16, VAE)
    rows, total = [f"| {file.name} | {file.directory} |" for file in files], sum(file.gigabytes for file in files)
    text = "\n".join(
        [
            "### Three files, once",
            f"ComfyUI says that they are missing. **View details** lists them, each with a button that downloads it "
            f"({total:.0f} GB together). What the browser saves elsewhere belongs into its folder below `models`; then "
            "press **R**:",
            "",
            "| file | folder |",
            "|---|---|",
            *rows,
            "",
            f"With less memory choose `{T5_FP8.name}` as the text encoder, and *fp8_e4m3fn* as the model's "
            "`weight_dtype`.",
        ]
    )
    last = note("\n\n".join([text, hints.strip(), WATCH]), "Before the first run")
    return (*loaders(transformer, *others), *((net,) if net else ()), last)


def folder(hints: str, name: str) -> tuple[Node, ...]:
    """The download of a whole checkpoint, its loader, and the note that says how to press it."""
    text = (
        f"### One folder, once\nSelect *CogVideoX Download* above and press **Ctrl+B**: it is bypassed, and now it is "
        f"not. **Run** then downloads {name} into `models/diffusers`, checks every file and makes the video. It goes "
        "on where it was interrupted, and has nothing to do the next time.\n\nIf you have a folder under another name: "
        "delete the download, press **R** and choose yours in the loader."
    )
    return (
        Node("download", "CogVideoXDownload", {"checkpoint": name}, bypassed=True),
        Node("pipeline", "CogVideoXLoadPipeline", {"folder": name}, {"folder": "download.folder"}, later=True),
        note("\n\n".join([text, hints.strip(), WATCH]), "Before the first run"),
    )


def derive(
    toy: Example,
    name: str,
    title: str,
    first: tuple[Node, ...],
    widgets: Mapping[str, Mapping[str, object]],
    needs: str,
    instead: Mapping[str, Node] | None = None,
    fps: float = 8.0,
) -> Example:
    """A toy's workflow for a real checkpoint. first: the nodes of its first group. widgets: node name -> values that
    differ. instead: node name -> the node in its place. Raises KeyError for a node that the workflow does not have.
    """
    instead, widgets = dict(instead or {}), dict(widgets)
    if any(spec.type == "CreateVideo" and "fps" not in spec.links for spec in _nodes(toy)):
        widgets["video"] = {**widgets.get("video", {}), "fps": fps}
    single = any(spec.name == "model" for spec in first)

    def changed(spec: Node) -> Node:
        spec = instead.pop(spec.name, spec)
        links = {to: _PART_OF.get(source, source) if single else source for to, source in spec.links.items()}
        return replace(spec, widgets={**spec.widgets, **widgets.pop(spec.name, {})}, links=links)

    rest = tuple(replace(column, nodes=tuple(map(changed, column.nodes))) for column in toy.columns[1:])
    if instead or widgets:
        raise KeyError(f"{toy.name} has no node {', '.join([*instead, *widgets])}")
    return Example(name, title, (Column("1  Checkpoint", 380, first), *rest), needs=needs, fps=fps)


def _nodes(example: Example) -> list[Node]:
    return [spec for column in example.columns for spec in column.nodes]


_TEXT_SETTINGS = """\
| | 2b | 5b | 1.5-5B |
|---|---|---|---|
| width x height | 720 x 480 | 720 x 480 | 1360 x 768 |
| frames, fps | 49, 8 | 49, 8 | 81, 16 |
| sampler | ddim | dpm | dpm |
| dynamic_cfg | off | on | on |
"""
_FUN_SETTINGS = """\
V1.5 takes 85 frames. Other shapes and larger sizes (up to about 1024 x 1024) work as well, in multiples of 16.
"""
_OWN_VIDEO = """\
**Your own video**: put *Load Video* in the place of *CogVideoX Example Input*, best one of 8 frames a second (16 for \
1.5).
"""
_UPSCALE = """\
The official demo ends so: upscale every frame four times, then put a frame between each two, and play twice as fast. \
Less memory: *Upscale Image By* with 0.5 between the two.

ComfyUI shows the upscaler and the interpolation model among what is missing.
"""
_I2V = """\
**Your own picture**: choose it in *Load Image*. Describe the whole scene, not only what moves. 5b-I2V knows this one \
size. For 1.5-5B-I2V choose `CogVideoX_1_5_5b_I2V_bf16.safetensors`, 1360 x 768, 81 frames and 16 fps; it takes other \
shapes too.

**Hardly any motion?** Set `noise_augmentation` to 0.05 or so.
"""
_NET = """\
**The control net**: put the folder `cogvideox-5b-controlnet-canny-v1` of TheDenk's repository on the hub into \
`models/controlnet`, press **R** and choose it.
"""


def _picture(name: str, title: str) -> Node:
    return Node(name, "LoadImage", {"image": "example.png"}, {}, title, 340, later=True)


def _texts(positive: str, *more: str) -> dict[str, dict[str, object]]:
    return {name: {"text": positive} for name in ("positive", *more)}


def text_to_video_files() -> Example:
    return derive(
        clips.text_to_video(),
        "text_to_video_1_5",
        "Text to video with CogVideoX1.5-5B",
        single_files(clips.TEXT_TO_VIDEO, T2V_1_5),
        {**_texts(_DOG), "latent": _1_5, "sample": _DPM},
        "CogVideoX1.5-5B\n21 GB, three files\n1360 x 768, 81 frames, 16 fps",
        fps=_FPS_1_5,
    )


def text_to_video_folder() -> Example:
    return derive(
        clips.text_to_video(),
        "text_to_video_5b",
        "Text to video with CogVideoX-5b",
        folder(f"{_TEXT_SETTINGS}\n{clips.TEXT_TO_VIDEO}", "CogVideoX-5b"),
        {**_texts(_DOG), "latent": _5B, "sample": _DPM},
        "CogVideoX-5b\n21 GB, one folder\n720 x 480, 49 frames, 8 fps",
    )


def image_to_video_files() -> Example:
    return derive(
        clips.image_to_video(),
        "image_to_video_5b",
        "Image to video with CogVideoX-5b-I2V",
        single_files(_I2V, I2V, I2V_1_5),
        {**_texts(_DRAWING), "start": _5B, "sample": _DPM},
        "CogVideoX-5b-I2V\n21 GB, three files\n720 x 480, 49 frames, 8 fps",
        {"picture": _picture("picture", "The first frame")},
    )


def video_to_video_files() -> Example:
    return derive(
        clips.video_to_video(),
        "video_to_video_1_5",
        "Video to video with CogVideoX1.5-5B",
        single_files(clips.VIDEO_TO_VIDEO, T2V_1_5),
        {
            **_texts(_DISC),
            "first": {"length": 81},
            "encode": {"width": 1360, "height": 768},
            "sample": {**_DPM, "steps": 30},
        },
        "CogVideoX1.5-5B\n21 GB, three files\n1360 x 768, 81 frames, 16 fps",
    )


def upscale_and_interpolate() -> Example:
    """As gradio_composite_demo of the CogVideo repository: upscale four times, then interpolate twice, and ceil((n - 1)
    / 6) frames a second for n frames: 16 for the 97 that two times 49 make."""
    first = single_files(_UPSCALE, T2V)
    settings = {**_texts(_DOG), "latent": _5B, "sample": _DPM}
    plain = derive(clips.text_to_video(), "", "", first, settings, "")
    *before, last = plain.columns
    finish = Column(
        "4  Larger and smoother",
        360,
        (
            Node("upscaler", "UpscaleModelLoader", {"model_name": UPSCALER.name}, models=_names(UPSCALER)),
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
                models=_names(INTERPOLATION),
            ),
            Node(
                "interpolate",
                "FrameInterpolate",
                {"multiplier": 2},
                {"interp_model": "interpolator.INTERP_MODEL", "images": "upscale.IMAGE"},
            ),
        ),
    )
    decode, *save = last.nodes
    video = tuple(
        replace(spec, widgets={"fps": 16.0}, links={"images": "interpolate.IMAGE"}) if spec.name == "video" else spec
        for spec in save
    )
    sampled = replace(before[-1], nodes=(replace(before[-1].nodes[0], height=470), decode))
    columns = (*before[:2], sampled, finish)
    return Example(
        "upscale_and_interpolate",
        "Upscale and interpolate with CogVideoX-5b",
        (*columns, Column("5  Video", 360, video)),
        needs="CogVideoX-5b, an upscaler and FILM\n21 GB, five files\n2880 x 1920, 97 frames, 16 fps",
        fps=16.0,
    )


def extend_video_files() -> Example:
    return derive(
        longer.extend_video(),
        "extend_video_5b",
        "Extend a video with CogVideoX-5b",
        single_files(longer.EXTEND_VIDEO, T2V),
        {**_texts(_DOG, "then"), "latent": _5B, "go_on": {"frames": 49}, "sample": _DPM, "sample2": _DPM},
        "CogVideoX-5b\n21 GB, three files\n720 x 480, 89 frames, 8 fps",
    )


def long_video_files() -> Example:
    return derive(
        longer.long_video(),
        "long_video_5b",
        "Long video with CogVideoX-5b",
        single_files(longer.LONG_VIDEO, T2V),
        {
            "first": {"text": _DOG},
            "then": {"text": _DOG.replace("runs along", "lies down on")},
            "latent": {**_5B, "frames": 97},
            "windows": {"context_frames": 49, "overlap_frames": 16},
            "sample": _DPM,
        },
        "CogVideoX-5b\n21 GB, three files\n720 x 480, 97 frames, 8 fps",
    )


_INP, _INP_NEEDS = "CogVideoX-Fun-V1.1-5b-InP", "CogVideoX-Fun InP\n20 GB, one folder\n672 x 384, 49 frames, 8 fps"


def start_end_frame_folder() -> Example:
    return derive(
        fun.start_end_frame(),
        "start_end_frame_fun",
        "First and last frame with CogVideoX-Fun",
        folder(f"{fun.START_END_FRAME}\n{_FUN_SETTINGS}", _INP),
        {**_texts(_DRAWING), "known": _FUN, "sample": _DDIM},
        _INP_NEEDS,
        {"first": _picture("first", "The first frame"), "last": _picture("last", "The last frame")},
    )


def fun_inpaint_folder() -> Example:
    return derive(
        fun.fun_inpaint(),
        "fun_inpaint_fun",
        "Inpaint a region with CogVideoX-Fun",
        folder(f"{fun.FUN_INPAINT}\n{_FUN_SETTINGS}", _INP),
        {**_texts(_DISC), "known": {**_FUN, "hold_last_frame": True}, "sample": _DDIM},
        _INP_NEEDS,
    )


def fun_control_files() -> Example:
    return derive(
        fun.fun_control(),
        "fun_control_fun",
        "Edges to video with CogVideoX-Fun Control",
        single_files(f"{fun.FUN_CONTROL}\n{_OWN_VIDEO}", FUN_CONTROL, FUN_CONTROL_FP8),
        {**_texts(_DISC), "control": {**_FUN, "hold_last_frame": True}, "sample": _DDIM},
        "CogVideoX-Fun Control\n21 GB, three files\n672 x 384, 49 frames, 8 fps",
    )


def controlnet_files() -> Example:
    net = Node(
        "net",
        "CogVideoXLoadControlNet",
        {"control_net_name": "cogvideox-5b-controlnet-canny-v1"},
        later=True,
    )
    return derive(
        guided.controlnet(),
        "controlnet_5b",
        "Edges to video with a ControlNet for CogVideoX-5b",
        single_files(f"{_NET}\n{guided.CONTROLNET}", T2V, net=net),
        {**_texts(_DISC), "apply": {"hold_last_frame": True}, "latent": _5B, "sample": _DPM},
        "CogVideoX-5b and a control net\n21 GB, three files and a folder\n720 x 480, 49 frames, 8 fps",
    )


def inversion_edit_files() -> Example:
    return derive(
        guided.inversion_edit(),
        "inversion_edit_5b",
        "Edit a video with CogVideoX-5b",
        single_files(f"{guided.INVERSION_EDIT}\n{_OWN_VIDEO}", T2V),
        {
            **_texts(_DISC),
            "first": {"length": 49},
            "encode": {"width": 720, "height": 480},
            "invert": {"steps": 50},
            "sample": _DDIM,
        },
        "CogVideoX-5b\n21 GB, three files\n720 x 480, 49 frames, 8 fps",
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
            **_texts(_DOG),
            "clips": {**_5B, "folder": "my clips"},
            "train": learn,
            "keep": {"name": "CogVideoX/mine"},
            "latent": _5B,
            "sample": _DPM,
        },
        "CogVideoX-5b and your clips\n21 GB, three files\n720 x 480, 49 frames, 8 fps",
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
