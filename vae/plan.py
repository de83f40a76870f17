"""Memory modes: where a pass through the VAE keeps its tensors. None of them changes a number."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

BAND_PIXELS = 1 << 16  # of the frame that a lean mode works on at once
LEAST_ROWS = 8  # of a band: two more are computed with it each time


@dataclass(frozen=True)
class Plan:
    """One way to go through the network, from the fastest to the leanest: see LADDER."""

    name: str
    caches_on_host: bool = False  # what a causal convolution keeps from one chunk of frames to the next
    blocks_on_host: bool = False  # the frames between two blocks, to which what a block computes is added
    hidden_on_host: bool = False  # the frames within a block: with the others, all but the rows that are worked on
    recompute: bool = False  # the widest frames are computed each time they are looked at instead of kept
    band_pixels: int | None = None  # None: whole frames

    def bands(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """First row and last + 1 of each band of a frame."""
        rows = height if self.band_pixels is None else max(LEAST_ROWS, self.band_pixels // width)
        for start in range(0, height, rows):
            yield start, min(start + rows, height)


FAST = Plan("fast")
MEDIUM = Plan("medium", caches_on_host=True)
LOW = Plan("low", caches_on_host=True, blocks_on_host=True, recompute=True, band_pixels=BAND_PIXELS)
LEAST = replace(LOW, name="least", hidden_on_host=True)
LADDER = (FAST, MEDIUM, LOW, LEAST)


def leaner(plan: Plan) -> Plan | None:
    """The next plan that needs less memory, in bands no larger than `plan`'s; None after the leanest."""
    names = [each.name for each in LADDER]
    place = names.index(plan.name) + 1
    if place == len(LADDER):
        return None
    return in_bands(LADDER[place], plan.band_pixels)


def in_bands(plan: Plan, pixels: int | None) -> Plan:
    """`plan`, working on at most `pixels` of a frame at once."""
    if pixels is None:
        return plan
    return replace(plan, band_pixels=min(pixels, plan.band_pixels or pixels))
