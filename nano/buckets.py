"""The clips that CogVideoX-nano's transformers learn from: lengths and sizes, encoded once, drawn bucket by bucket."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from cogvideox.system.complete_file import complete_file

from . import text, transformer
from .trained_parts import load_encoders

# Tokens of all samples of a step together, text included: steps of every bucket take about the same time.
STEP_TOKENS = 3600
_PATCH_PX, _TEXT_TOKENS = 16, text.MAX_TOKENS


@dataclass(frozen=True)
class Bucket:
    """Clips of one length and size, in pixels. clips: how many are drawn and encoded. share: of the steps."""

    frames: int
    width: int
    height: int
    clips: int
    share: float

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.width}x{self.height}"

    @property
    def batch_size(self) -> int:
        """Samples of a step, so that it has about STEP_TOKENS."""
        tokens = ((self.frames - 1) // 4 + 1) * (self.width // _PATCH_PX) * (self.height // _PATCH_PX)
        return max(4, min(32, STEP_TOKENS // (tokens + _TEXT_TOKENS)))


# Frames -> (clips of 64 x 64, their share of the steps, clips of each other size, their share).
_LENGTHS = {
    9: (1500, 0.05, 500, 0.02),
    17: (6000, 0.18, 1000, 0.05),
    33: (2000, 0.13, 600, 0.05),
    49: (1600, 0.13, 400, 0.05),
}
_OTHER_SIZES = ((96, 64), (64, 96), (96, 96))
BUCKETS = tuple(
    bucket
    for frames, (clips, share, others, others_share) in _LENGTHS.items()
    for bucket in (
        Bucket(frames, 64, 64, clips, share),
        *(Bucket(frames, width, height, others, others_share) for width, height in _OTHER_SIZES),
    )
)


def bucket_of(step: int, seed: int) -> int:
    """The number in BUCKETS of the clips that a step sees, drawn by their shares."""
    shares = np.array([bucket.share for bucket in BUCKETS])
    return int(np.random.default_rng([seed, step]).choice(len(BUCKETS), p=shares / shares.sum()))


def load_or_encode(number: int, work: Path, seed: int, task: str) -> dict[str, torch.Tensor]:
    """The encoded clips of a bucket, by its number, and what a model of `task` is shown of them; made once, and kept in
    `work`."""
    columns: dict[str, torch.Tensor] = {}
    for part in dict.fromkeys(("text", task)):
        columns |= load_or_encode_part(BUCKETS[number], work, seed, part)
    return columns


# Task -> the share of a bucket's clips that its model learns from, where each clip has to be encoded once more.
_SHARES = {"inpaint": 0.25, "control": 0.25}


def load_or_encode_part(bucket: Bucket, work: Path, seed: int, task: str) -> dict[str, torch.Tensor]:
    """The latents and texts of a bucket's clips for "text", else what a model of `task` is shown of them alone."""
    size = bucket.frames, bucket.width, bucket.height
    if task == "text":
        return _load_or_make(
            work / f"latents-{bucket.name}.pt",
            lambda: transformer.encode_clips(*load_encoders(work), seed, bucket.clips, size),
        )
    return _load_or_make(
        work / f"{task}-{bucket.name}.pt",
        lambda: transformer.encode_conditions(
            load_encoders(work)[0], seed, round(bucket.clips * _SHARES.get(task, 1.0)), size, task
        ),
    )


def _load_or_make(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = make()
        with complete_file(path, replaces=True) as file:
            torch.save(columns, file.part)
    return torch.load(path)


def sample_at(clips: Mapping[str, torch.Tensor], index: int, seed: int) -> dict[str, torch.Tensor]:
    """The columns, in fp32, of the clip that a training's draw `index` takes. Of draws that follow each other all take
    another clip, until there is none left; a bucket that sees only some of the steps takes parts of each such order."""
    count = min(len(column) for column in clips.values())
    clip = _order(count, index // count, seed)[index % count]
    return {name: column[clip].float() for name, column in clips.items()}


@cache
def _order(count: int, epoch: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
