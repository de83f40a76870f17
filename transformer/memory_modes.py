"""Memory modes of a step, both exact within rounding, and what each takes.

`default` computes a block on all tokens at once. `lean` attends by groups of heads, so that queries and keys of one
group alone are there, and takes the feed-forward, whose inner width is fourfold, by spans of tokens. Nothing is
computed twice. What it costs are smaller products, and a copy of each of the two results.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class Mode(NamedTuple):
    """One way to compute the blocks. LADDER has them from the fastest to the leanest.

    head_groups: of the attention. span_values: of the tokens that the feed-forward takes at a time; None for all.
    in_place: torch's operations add residuals in place, as the transformer's own kernels do in every mode.
    """

    name: str
    head_groups: int = 1
    span_values: int | None = None
    in_place: bool = False

    def groups(self, heads: int) -> Iterator[range]:
        """The heads of each group; the last one may be smaller."""
        size = -(-heads // self.head_groups)
        for first in range(0, heads, size):
            yield range(first, min(first + size, heads))

    def span_tokens(self, width: int) -> int:
        """Tokens of `width` values that are taken at a time."""
        assert self.span_values is not None
        return max(1, self.span_values // width)


DEFAULT = Mode("default")
# Of CogVideoX-5b: 12 heads, and 4096 tokens. Fewer of either no longer fill a large card, and the attention's peak
# stays above the feed-forward's.
LEAN = Mode("lean", head_groups=4, span_values=3 << 22, in_place=True)
LADDER = (DEFAULT, LEAN)

# Peaks of a forward, in units of all tokens [B, tokens, dim], counted by `bench traffic`. By default 13.0 where torch
# rotates queries and keys or attention's result is copied, 12.0 elsewhere, 7.0 with the transformer's own kernels. Most
# of it is the feed-forward's fourfold width, which torch's gelu doubles.
_COPIES, _KERNEL_COPIES = 13.2, 7.5
# In the lean mode the attention's: the tokens, their norm, its result, and four of queries, keys, values and the result
# of a group. Or the feed-forward's: the tokens, their norm, and five of a span.
_LEAN_COPIES, _LEAN_GROUPED, _SPAN_COPIES, _MARGIN = 3, 4, 5, 1.06


def step_bytes(mode: Mode, values: int, value_bytes: int, has_kernels: bool) -> float:
    """Bytes of activations at the peak of a forward in `mode`, without weights and without the copies of those that are
    streamed, for which ComfyUI leaves room by itself.

    values: of all tokens, of text and video and of the whole batch. value_bytes: of one. has_kernels: whether the
    transformer's own kernels will work.
    """
    if mode.span_values is None:
        return values * value_bytes * (_KERNEL_COPIES if has_kernels else _COPIES)
    attention = (_LEAN_COPIES + _LEAN_GROUPED / mode.head_groups) * values
    feed_forward = 2 * values + _SPAN_COPIES * min(values, mode.span_values)
    return max(attention, feed_forward) * value_bytes * _MARGIN


def modes_to_try(ladder: tuple[Mode, ...], needed: Callable[[Mode], float], free_bytes: float) -> tuple[Mode, ...]:
    """The modes of `ladder` in the order in which a step tries them: the first that needs no more than `free_bytes`, or
    the leanest where none does, and those after it, for when memory runs out all the same."""
    fits = (index for index, mode in enumerate(ladder) if needed(mode) <= free_bytes)
    return ladder[next(fits, len(ladder) - 1) :]


def no_memory_left(mode: Mode, needed_bytes: float, latent_shape: Sequence[int]) -> str:
    """The message where latents [B, C, T, H, W] do not fit in `mode`, the leanest."""
    frames, height, width = latent_shape[2:]
    other = (
        " There is one without a weight_dtype that ends in _fast, and without what other nodes have put into the "
        "model's blocks and attention."
    )
    return (
        f"A step of {frames} latent frames of {width * 8} x {height * 8} pixels needs about {needed_bytes / 2**30:.1f} "
        f"GiB on top of the weights in memory mode {mode.name}. The device has less, and there is no leaner mode."
        f"{other if mode is DEFAULT else ''} The two settings that help most are fewer frames, and a smaller width "
        "and height: a step needs as much less."
    )
