"""Memory modes: where a pass through the VAE keeps its tensors. None of them changes a value of the result."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

# Pixels of a frame that a lean mode works on at once.
BAND_PIXELS = 1 << 16
# The fewest rows of a band. A 3 x 3 window needs two more with each: smaller bands would read and normalise the overlap
# for the most part.
LEAST_ROWS = 8
# More values than a tensor of a convolution may have: libraries count them in 32 bits, and refuse or compute slowly
# what has more. The decoder's widest convolution takes three frames of 256 channels, which reach it at 2.8 megapixels.
VALUES_LIMIT = 1 << 31
# Rows that are worked on with a band at most: one on either side for a 3 x 3 window, or two where it follows an
# upsampler, whose input has rows of twice the height.
ROWS_AROUND = 4


class OffloadPlan(NamedTuple):
    """One way to go through the network. LADDER has them from the fastest to the leanest."""

    name: str
    caches_on_host: bool = False  # what a causal convolution keeps from one chunk of frames to the next
    blocks_on_host: bool = False  # the frames that one block hands to the next
    hidden_on_host: bool = False  # the frames between the two convolutions of a block
    recompute: bool = False  # the widest frames are computed whenever they are read instead of kept
    band_pixels: int | None = None  # None: whole frames

    def bands(self, height: int, width: int, channels: int = 1) -> Iterator[tuple[int, int]]:
        """First row and last + 1 of each band of a frame.

        channels: of the largest tensor that is made of a band and the rows around it; it stays below VALUES_LIMIT, in
        plans of whole frames too.
        """
        # Bands are as wide as the frame, so a band of the least height may have more pixels than asked for.
        rows = height if self.band_pixels is None else max(LEAST_ROWS, self.band_pixels // width)
        most = (VALUES_LIMIT - 1) // (channels * width)
        rows = min(rows, max(1, most - ROWS_AROUND))
        for start in range(0, height, rows):
            yield start, min(start + rows, height)


FAST = OffloadPlan("fast")
MEDIUM = OffloadPlan("medium", caches_on_host=True)
LOW = OffloadPlan("low", caches_on_host=True, blocks_on_host=True, recompute=True, band_pixels=BAND_PIXELS)
LEAST = LOW._replace(name="least", hidden_on_host=True)
LADDER = (FAST, MEDIUM, LOW, LEAST)


def first_fitting(plans: Sequence[OffloadPlan], needed: Callable[[OffloadPlan], int], free_bytes: float) -> OffloadPlan:
    """The first of `plans` that needs no more than `free_bytes`, for which ComfyUI unloads other models; the last one
    where none does."""
    return next((plan for plan in plans if needed(plan) <= free_bytes), plans[-1])


def leaner(plan: OffloadPlan) -> OffloadPlan | None:
    """The next plan that needs less memory, in bands no larger than `plan`'s; None after the leanest."""
    names = [each.name for each in LADDER]
    following = names.index(plan.name) + 1
    if following == len(LADDER):
        return None
    return in_bands(LADDER[following], plan.band_pixels)


def in_bands(plan: OffloadPlan, pixels: int | None) -> OffloadPlan:
    """`plan`, working on at most `pixels` of a frame at once."""
    if pixels is None:
        return plan
    return plan._replace(band_pixels=min(pixels, plan.band_pixels or pixels))
