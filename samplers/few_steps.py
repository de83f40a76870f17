"""Explicit timesteps, and the settings with which the authors of few-step weights published them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import UserError, quoted
from .schedule import TRAIN_TIMESTEPS, trailing_timesteps

CUSTOM = "custom"
MOST_LETTERS = 10_000  # 1000 numbers of three digits, each with a comma and a space, are half of that
_BRACKETS = ("[]", "()")
_EXPECTED = "Write whole numbers from 999 down to 0, each lower than the one before, such as 999, 856, 665, 399."


class FewSteps(NamedTuple):
    """How distilled weights are run. family: the checkpoint that they were distilled from. timesteps: where the steps
    begin; the last one ends at a clean sample. sampler, cfg: as the nodes call them."""

    family: str
    sampler: str
    timesteps: tuple[int, ...]
    cfg: float = 1.0


# The names are those of the methods, of the checkpoints and of the numbers of steps.
#
# TDM: Luo-Yihong/TDM, README.md, "TDM-CogVideoX-2B-LoRA". It names the timesteps of the training and says that the
# checkpoint's own, evenly spaced ones may be worse; guidance_scale is 1, the scheduler the checkpoint's (DDIM). The
# student's steps are DDIM's from one of its timesteps to the next: train_tdm_demo.py, generate_new.
# BLADE: ziplab/VIDEO-BLADE, cogvideox/train/inference.py: CogVideoXDPMScheduler with trailing spacing, 8 steps,
# guidance_scale 1 (use_dynamic_cfg has no effect without guidance). train_cogvideo_tdm.py, generate_new, trains on the
# same timesteps, 999 and every 1000 / 8 below.
# PSA: ziplab/Pyramid-Sparse-Attention, examples/inference/cogvideo/cogvideo_5b.py and the entry cogvideo_5b_lora of
# examples/configs/model_configs.py: the same with 4 steps.
PRESETS: Mapping[str, FewSteps] = {
    "TDM 2b 4 steps": FewSteps("CogVideoX-2b", "ddim", (999, 856, 665, 399)),
    "BLADE 5b 8 steps": FewSteps("CogVideoX-5b", "dpm", tuple(trailing_timesteps(8))),
    "PSA 5b 4 steps": FewSteps("CogVideoX-5b", "dpm", tuple(trailing_timesteps(4))),
}


def read_timesteps(text: str) -> list[int]:
    """The timesteps in `text`, from the highest to the lowest. Pairs of brackets around them and commas between
    them, also Chinese ones, may be there or not.

    Raises UserError for anything but whole numbers of 0 .. 999 that fall.
    """
    if len(text) > MOST_LETTERS:
        raise UserError(f"timesteps has {len(text)} characters; at most {MOST_LETTERS} are read. {_EXPECTED}")
    inside = text.strip()
    while inside[:1] + inside[-1:] in _BRACKETS:  # one without the other belongs to a word that is no timestep
        inside = inside[1:-1].strip()
    words = [word for word in re.split(r"[\s,;，；、]+", inside) if word]
    if not words:
        raise UserError(f"timesteps holds no number. {_EXPECTED}")
    timesteps: list[int] = []
    for word in words:
        # Not int() alone: it takes "1_0" and digits of all scripts, and fails on more than 4300 digits.
        if not re.fullmatch("[0-9]{1,4}", word) or int(word) >= TRAIN_TIMESTEPS:
            raise UserError(f"{quoted(word)} is not a timestep. {_EXPECTED}")
        if timesteps and int(word) >= timesteps[-1]:
            raise UserError(f"Timestep {int(word)} comes after {timesteps[-1]}. {_EXPECTED}")
        timesteps.append(int(word))
    return timesteps


def chosen_timesteps(timesteps: str, preset: str) -> list[int]:
    """Those of `preset`, a key of PRESETS, or with CUSTOM those in the text `timesteps`.

    Raises UserError as read_timesteps does, and for a text with a preset, which has its own: one of the two would be
    ignored.
    """
    if preset == CUSTOM:
        return read_timesteps(timesteps)
    if timesteps.strip():
        raise UserError(
            f"timesteps is for the preset {CUSTOM}; {preset} has its own. Clear timesteps, or set preset to {CUSTOM}."
        )
    return list(PRESETS[preset].timesteps)
