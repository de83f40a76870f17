"""What the authors of each checkpoint recommend. Standard library only.

Sources: the model cards of the official checkpoints, and the example programs of aigc-apps/CogVideoX-Fun.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cogvideox.host.toy import INPUT_FPS, MODELS, NAME

from ..errors import DevError


@dataclass(frozen=True)
class Recommended:
    """Settings, as the nodes call them. frames: of the video; fps: frames a second.

    task: what the model takes beside a prompt: "text" nothing, or a video to change; "image" a first frame; "inpaint"
    a first frame or nothing; "control" a video. changing_steps, denoise: for a video to change.
    one_size: it makes no other size and length.
    family: what the loader has to be told, where weights cannot say what they are.
    """

    task: str = "text"
    width: int = 720
    height: int = 480
    frames: int = 49
    fps: float = 8.0
    steps: int = 50
    cfg: float = 6.0
    sampler: str = "dpm"
    dynamic_cfg: bool = True
    changing_steps: int = 30
    denoise: float = 0.6
    one_size: bool = False
    family: str = ""


_2B, _5B = Recommended(sampler="ddim", dynamic_cfg=False), Recommended()
_V15 = replace(_5B, width=1360, height=768, frames=81, fps=16.0)
_FUN = replace(_2B, task="inpaint", width=672, height=384)
_CONTROL = replace(_FUN, task="control")
_TOY = replace(_5B, width=64, height=64, frames=17, fps=INPUT_FPS, steps=20, changing_steps=20)
_TOY_TASKS = {"5b-I2V": "image", "Fun-5b-InP": "inpaint", "Fun-5b-Control": "control"}

OFFICIAL: Mapping[str, Recommended] = {
    "CogVideoX-2b": _2B,
    "CogVideoX-5b": _5B,
    "CogVideoX-5b-I2V": replace(_5B, task="image", one_size=True),
    "CogVideoX1.5-5B": _V15,
    "CogVideoX1.5-5B-I2V": replace(_V15, task="image"),
    "CogVideoX-Fun-2b-InP": _FUN,
    "CogVideoX-Fun-5b-InP": _FUN,
    "CogVideoX-Fun-V1.1-2b-InP": _FUN,
    "CogVideoX-Fun-V1.1-5b-InP": _FUN,
    "CogVideoX-Fun-V1.5-5b-InP": replace(_FUN, frames=85),
    "CogVideoX-Fun-V1.1-2b-Control": _CONTROL,
    "CogVideoX-Fun-V1.1-5b-Control": _CONTROL,
    "CogVideoX-Fun-V1.1-2b-Pose": _CONTROL,
    "CogVideoX-Fun-V1.1-5b-Pose": _CONTROL,
    "CogVideoX-Fun-V1.5-5b-Control": replace(_CONTROL, frames=85),
    "CogVideoX-2b-img2vid": replace(_2B, task="image", family="CogVideoX-2b-img2vid"),
}
TOYS: Mapping[str, Recommended] = {
    f"{NAME} {model}": replace(
        _TOY,
        task=_TOY_TASKS.get(model, "text"),
        sampler="ddim" if model.startswith("Fun") else _TOY.sampler,
        dynamic_cfg=not model.startswith("Fun"),
    )
    for model in MODELS
}
# The toy for what is given, where no model is named.
TOY_FOR = {"": f"{NAME} 5b", "image": f"{NAME} 5b-I2V", "video": f"{NAME} 5b"}


def recommended_for(model: str, like: str | None, label: str) -> Recommended:
    """The settings of a model: those of the checkpoint `like`, else of the one that its name contains.

    label: what a message calls the option like. Raises: DevError where neither is one of OFFICIAL.
    """
    if like is None and model in TOYS:
        return TOYS[model]
    known = {_plain(name): name for name in OFFICIAL}
    plain = _plain(like or model)
    if like is not None and plain not in known:
        raise DevError(f"{label} is {like!r}, which is none of the checkpoints: {', '.join(OFFICIAL)}.")
    within = [name for name in known if name in plain]
    if not within:
        raise DevError(
            f"The name {model!r} does not tell which settings the model needs. Give --like with the checkpoint that it "
            f"was made from: {', '.join(OFFICIAL)}."
        )
    return OFFICIAL[known[max(within, key=len)]]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
