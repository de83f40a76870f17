"""Longer than one clip: clip after clip, or one long run in windows."""

from cogvideox.nano.toy_settings import GIVEN, TEXT

from .table import (
    ADVANCED,
    Column,
    Example,
    Node,
    checkpoint,
    decode,
    negative_prompt,
    prompt,
    sampled,
    sampler,
    save_video,
    size,
)

OVERLAP, _LONG, _WINDOW, _WINDOW_OVERLAP = 9, 33, 17, 8  # frames

EXTEND_VIDEO = """\
**overlap**: 1 takes over the last picture, 5 or more its motion too. Frames count as 4k + 1: 1, 5, 9, 13, ...

**Longer still**: copy groups 4 and 5, and connect the joined video to *images* of the new *Continue Video* and to \
*images_before* of the new *Join Videos*. Colours may drift with every clip; \
*blend* softens a seam.

**From a picture (I2V checkpoints)**: add *CogVideoX Image to Video*, connect *last_frames* of *Continue Video* to \
its *start_image*, and its three outputs to the second sampler.
"""

_FIRST = "A small yellow circle moves to the right on a blue background."
_SECOND = "A small yellow circle moves to the right on a blue background."


def extend_video() -> Example:
    texts = (
        prompt("positive", "The first clip", _FIRST, 230),
        prompt("then", "How it goes on", _SECOND, 230),
        negative_prompt(),
        Node("latent", "CogVideoXEmptyLatent", size(TEXT)),
    )
    go_on = Node(
        "go_on",
        "CogVideoXContinueVideo",
        {"frames": TEXT.frames, "overlap": OVERLAP},
        {"vae": "pipeline.VAE", "images": "decode.IMAGE"},
    )
    second = {"positive": "then.CONDITIONING", "latent_image": "go_on.latent"}
    join = Node(
        "join",
        "CogVideoXJoinVideos",
        {"overlap": OVERLAP},
        {"images_before": "decode.IMAGE", "images_after": "decode2.IMAGE", "overlap": "go_on.overlap"},
    )
    return Example(
        "extend_video",
        "Extend a video clip by clip",
        (
            checkpoint("5b", "26 Extend a video with CogVideoX-5b", EXTEND_VIDEO),
            Column("2  Prompts and size", 300, texts),
            Column("3  First clip", 300, (sampler(), decode())),
            Column("4  Second clip", 300, (go_on, sampler("sample2", second, {"seed": 43, **sampled(GIVEN)}))),
            Column("5  Video", 300, (decode("decode2", "sample2.LATENT"), join, *save_video("join.IMAGE"))),
        ),
    )


LONG_VIDEO = f"""\
All frames are sampled together in overlapping windows: the memory of one window, the time of all.

**Prompts**: *Conditioning (Combine)* puts them in order, and *split_prompts* {ADVANCED} gives each its part of the \
video. Combine again for more. One prompt alone works too.

**freenoise** keeps people and places alike over the windows.

A little longer in one piece: *CogVideoX Positions* with *riflex* instead of the windows.
"""

_RED = "A large red circle moves to the right on a white background."
_BLUE = "A large blue circle moves to the right on a white background."


def long_video() -> Example:
    texts = (
        prompt("first", "First", _RED, 220),
        prompt("then", "Then", _BLUE, 220),
        Node(
            "positive",
            "ConditioningCombine",
            {},
            {"conditioning_1": "first.CONDITIONING", "conditioning_2": "then.CONDITIONING"},
            "One after the other",
        ),
        negative_prompt(),
        Node("latent", "CogVideoXEmptyLatent", size(TEXT) | {"frames": _LONG}),
    )
    windows = Node(
        "windows",
        "CogVideoXContextWindows",
        {"context_frames": _WINDOW, "overlap_frames": _WINDOW_OVERLAP, "split_prompts": True},
        {"model": "pipeline.MODEL"},
    )
    return Example(
        "long_video",
        "Long video in windows",
        (
            checkpoint("5b", "27 Long video with CogVideoX-5b", LONG_VIDEO),
            Column("2  Prompts and length", 360, texts),
            Column(
                "3  Sample in windows",
                360,
                (windows, sampler(links={"model": "windows.MODEL"}, widgets=sampled(GIVEN))),
            ),
            Column("4  Video", 360, (decode(), *save_video())),
        ),
    )
