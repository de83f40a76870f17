"""The settings with which each checkpoint was published.

Standard library only: `dev.py run` reads it before anything is installed.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Settings(NamedTuple):
    """Of one checkpoint, as the nodes call them. frames: of the video; most_frames: the most that it was trained on.

    task: what the model takes besides a prompt: "text" nothing, or a video to change; "image" a first frame; "inpaint"
    a first frame or nothing; "control" a video. fps: frames a second. changing_steps, changing_cfg and denoise are
    for a video to change.
    one_size: it makes no other size and length. any_aspect: the shorter side is `height`, the longer one anything up to
    `width`, either way round. family: what the loader has to be told, where weights cannot say what they are.
    """

    task: str = "text"
    sampler: str = "dpm"
    dynamic_cfg: bool = True
    steps: int = 50
    cfg: float = 6.0
    width: int = 720
    height: int = 480
    frames: int = 49
    most_frames: int = 49
    fps: float = 8.0
    changing_steps: int = 30
    changing_cfg: float = 6.0
    denoise: float = 0.6
    one_size: bool = False
    any_aspect: bool = False
    family: str = ""

    def takes_size(self, width: int, height: int) -> bool:
        """Whether the checkpoint was trained on videos of this size."""
        if not self.any_aspect:
            return (width, height) == (self.width, self.height)
        return min(width, height) == self.height and max(width, height) <= self.width


_2B, _5B = Settings(sampler="ddim", dynamic_cfg=False), Settings()
_1_5 = _5B._replace(width=1360, height=768, frames=81, most_frames=161, fps=16.0)
_FUN = _2B._replace(task="inpaint", width=672, height=384)
_CONTROL = _FUN._replace(task="control")
_85_FRAMES = {"frames": 85, "most_frames": 85}
# Sources: the model cards of the official repositories (zai-org, once THUDM); for the samplers the README and
# inference/cli_demo.py of THUDM/CogVideo, which takes CogVideoXDPMScheduler for the 5b models and DDIM for 2b; for Fun
# the example programs of aigc-apps/CogVideoX-Fun.
OFFICIAL: Mapping[str, Settings] = {
    "CogVideoX-2b": _2B,
    "CogVideoX-5b": _5B,
    "CogVideoX-5b-I2V": _5B._replace(task="image", one_size=True),
    "CogVideoX1.5-5B": _1_5,
    "CogVideoX1.5-5B-I2V": _1_5._replace(task="image", any_aspect=True),
    "CogVideoX-Fun-2b-InP": _FUN,
    "CogVideoX-Fun-5b-InP": _FUN,
    "CogVideoX-Fun-V1.1-2b-InP": _FUN,
    "CogVideoX-Fun-V1.1-5b-InP": _FUN,
    "CogVideoX-Fun-V1.5-5b-InP": _FUN._replace(**_85_FRAMES),
    "CogVideoX-Fun-V1.1-2b-Control": _CONTROL,
    "CogVideoX-Fun-V1.1-5b-Control": _CONTROL,
    "CogVideoX-Fun-V1.1-2b-Pose": _CONTROL,
    "CogVideoX-Fun-V1.1-5b-Pose": _CONTROL,
    "CogVideoX-Fun-V1.5-5b-Control": _CONTROL._replace(**_85_FRAMES),
    "CogVideoX-2b-img2vid": _2B._replace(task="image", family="CogVideoX-2b-img2vid"),
}
