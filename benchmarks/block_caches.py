"""Caches that others have published, for comparison: in a skipped step the blocks are replaced by what they last added.

FirstBlockCache (diffusers, hooks/first_block_cache.py), MagCache (arXiv 2506.09045; diffusers, hooks/mag_cache.py) and
TeaCache (arXiv 2411.19108) differ in how they decide. What the last two know of a checkpoint is found in a run with all
steps: on the toy, the figures that their authors publish for the official checkpoints say nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

MakeCache = Callable[[float, "Known"], "BlockCache"]  # threshold, and what is known of the checkpoint
Tokens = tuple[torch.Tensor, torch.Tensor]  # text, video
MAG_MOST_SKIPPED, MAG_KEPT = 3, 0.2  # MagCache's own: steps in a row, and the part of a run at its beginning
_DEGREE = 4  # of TeaCache's polynomial


@dataclass
class Known:
    """Of a run with all steps. changes: of the time embedding from one step to the next, relative, mean absolute.
    outputs: the same of what the blocks add. magnitudes: the mean ratio of what the blocks add to a video's token, to
    that of the step before."""

    changes: list[float] = field(default_factory=list)
    outputs: list[float] = field(default_factory=list)
    magnitudes: list[float] = field(default_factory=list)

    def mean_of_runs(self, steps: int) -> "Known":
        """Of several runs of `steps` steps, one after the other, the mean."""
        lists = (self.changes, self.outputs, self.magnitudes)
        return Known(*(np.reshape(values, (-1, steps - 1)).mean(0).tolist() for values in lists))

    def polynomial(self) -> np.poly1d:
        """How far the output changes, by the change of the time embedding."""
        return np.poly1d(np.polyfit(self.changes, self.outputs, _DEGREE))


class BlockCache:
    """A run with the blocks watched, all of which are computed. Its subclasses skip some.

    computes_first: the first block is computed in each step, and what is kept is what those after it add.
    """

    computes_first = False

    def __init__(self, known: Known | None = None):
        self.known = known or Known()
        self.step, self.is_skipped = -1, False
        self.embedding: torch.Tensor | None = None
        self.added: Tokens | None = None
        self.start: Tokens | None = None

    def skips_before(self, change: float) -> bool:
        """Whether to skip all blocks of a step. change: of the time embedding since the step before."""
        return False

    def skips_after(self, added: torch.Tensor) -> bool:
        """Whether to skip all blocks but the first. added: by that one to the video's tokens."""
        return False

    def block(self, index: int, last: int, args: dict[str, Any], original: Callable[[dict], dict]) -> dict:
        """In the place of a block, as ComfyUI's patches_replace calls it."""
        tokens = args["txt"], args["img"]
        if index == 0:
            self._begin(args["vec"])
            self.start = tokens
        if not self.is_skipped:
            out = original(args)
            tokens = out["txt"], out["img"]
        if index == 0 and self.computes_first:
            self.start = tokens
            self.is_skipped = self.skips_after(tokens[1] - args["img"]) and self.added is not None
        if index == last:
            tokens = self._end(tokens)
        return {"txt": tokens[0], "img": tokens[1]}

    def _begin(self, embedding: torch.Tensor) -> None:
        self.step, self.is_skipped = self.step + 1, False
        if self.embedding is not None:
            change = relative_change(embedding, self.embedding)
            self.known.changes.append(change)
            self.is_skipped = self.added is not None and self.skips_before(change)
        self.embedding = embedding

    def _end(self, tokens: Tokens) -> Tokens:
        assert self.start is not None
        if self.is_skipped:
            assert self.added is not None
            return self.start[0] + self.added[0], self.start[1] + self.added[1]
        added = tokens[0] - self.start[0], tokens[1] - self.start[1]
        if self.added is not None:
            self.known.outputs.append(relative_change(added[1], self.added[1]))
            self.known.magnitudes.append(float((added[1].norm(dim=-1) / self.added[1].norm(dim=-1)).mean()))
        self.added = added
        return tokens


class FirstBlockCache(BlockCache):
    """Skips where the first block adds about what it added in the last computed step."""

    computes_first = True

    def __init__(self, threshold: float, known: Known):
        super().__init__()
        self.threshold = threshold
        self.first: torch.Tensor | None = None

    def skips_after(self, added: torch.Tensor) -> bool:
        if self.first is not None and relative_change(added, self.first) <= self.threshold:
            return True
        self.first = added
        return False


class TeaCache(BlockCache):
    """Skips until the changes of the time embedding, by the polynomial, add up to the threshold."""

    def __init__(self, threshold: float, known: Known):
        super().__init__()
        self.threshold, self.rescaled, self.sum = threshold, known.polynomial(), 0.0

    def skips_before(self, change: float) -> bool:
        self.sum += float(self.rescaled(change))
        if self.sum < self.threshold:
            return True
        self.sum = 0.0
        return False


class MagCache(BlockCache):
    """Skips until the error that the magnitudes let expect reaches the threshold."""

    def __init__(self, threshold: float, known: Known):
        super().__init__()
        self.threshold, self.ratios = threshold, known.magnitudes
        self._reset()

    def _reset(self) -> None:
        self.ratio, self.error, self.skipped = 1.0, 0.0, 0

    def skips_before(self, change: float) -> bool:
        if self.step < MAG_KEPT * (len(self.ratios) + 1):
            return False
        self.ratio *= self.ratios[self.step - 1]
        self.error, self.skipped = self.error + abs(1 - self.ratio), self.skipped + 1
        if self.error <= self.threshold and self.skipped <= MAG_MOST_SKIPPED:
            return True
        self._reset()
        return False


def with_block_cache(model: Any, cache: BlockCache) -> Any:
    """A clone of a MODEL whose blocks `cache` watches."""
    patched, last = model.clone(), len(model.model.diffusion_model.transformer_blocks) - 1
    for index in range(last + 1):
        patched.set_model_patch_replace(_replacement(cache, index, last), "dit", "double_block", index)
    return patched


def _replacement(cache: BlockCache, index: int, last: int) -> Callable[[dict, dict], dict]:
    return lambda args, extra: cache.block(index, last, args, extra["original_block"])


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    """The mean absolute difference over the mean absolute value."""
    return float((now - before).abs().mean() / before.abs().mean())


def rivals(known: Known, thresholds: Mapping[MakeCache, Sequence[float]]) -> dict[str, Callable[[Any], Any]]:
    """The name of each cache with a threshold, and what puts it on a MODEL, a new one for each run."""
    return {
        f"{getattr(kind, '__name__', kind)} {value:g}": lambda model, kind=kind, value=value: with_block_cache(
            model, kind(value, known)
        )
        for kind, values in thresholds.items()
        for value in values
    }
