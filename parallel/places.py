"""Where ranks run: as many on each machine, with their cards reserved before the first one starts."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch

from ..errors import UserError
from ..host.compat import throw_if_interrupted

_WAIT_S = 5  # for each way to reserve: of ranks that have just ended, the cards are free a moment later
CARD, CORE = "GPU", "CPU"  # Ray's names


class Place(NamedTuple):
    """Of a rank. machine: Ray's node. number: Ray's of the card there, "" for none. card: own_card of that process."""

    machine: str
    number: str
    card: str


def own_card() -> str:
    """What this process's card is called in every process of the machine; "" where it computes on the CPU."""
    device = mm.get_torch_device()
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def order(places: Sequence[Place], machine: str, card: str) -> list[int]:
    """The indices of `places` as ranks should follow each other: machine by machine, since those of one share the
    tokens, `machine` in front of the others and `card` in front of its neighbours."""

    def key(index: int) -> tuple:
        place = places[index]
        return place.machine != machine, place.machine, place.card != card, len(place.number), place.number

    return sorted(range(len(places)), key=key)


def shares(amounts: Sequence[int], ranks: int) -> list[int]:
    """Over how many machines that have `amounts` of cards `ranks` can be spread evenly, the fewest first."""
    return [
        machines
        for machines in range(1, len(amounts) + 1)
        if ranks % machines == 0 and sum(amount >= ranks // machines for amount in amounts) >= machines
    ]


def reserve(ray: Any, kind: str, ranks: int, where: str, stop_idle: Callable[[], bool]) -> Any:
    """A placement group of Ray's with an equal share of `ranks` in each bundle, every bundle on another machine.

    kind: CARD or CORE, of which each rank takes one. stop_idle: ends ranks of this process that nobody uses at the
    moment, and says whether there were any.

    Raises UserError where the machines have too few, or others hold them.
    """
    amounts = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    ways = shares(amounts, ranks)
    if not ways:
        raise UserError(
            f"{ranks} ranks cannot be spread evenly over the machines {where}, which have "
            f"{', '.join(map(str, amounts))} cards. Set cards to a number that every machine has its share of."
        )
    group = _reserved(ray, kind, ranks, ways)
    if group is None and stop_idle():
        group = _reserved(ray, kind, ranks, ways)
    if group is None:
        free = int(ray.available_resources().get(kind, 0))
        raise UserError(
            f"{ranks} cards are asked for {where}, and {free} of {sum(amounts)} are free: another program of the "
            "cluster holds the others, or another workflow that runs on several cards. Wait until it ends, or set "
            "cards to fewer."
        )
    return group


def _reserved(ray: Any, kind: str, ranks: int, ways: Sequence[int]) -> Any:
    for machines in ways:
        group = ray.util.placement_group([{kind: ranks // machines}] * machines, strategy="STRICT_SPREAD")
        try:
            deadline = time.monotonic() + _WAIT_S
            while time.monotonic() < deadline:
                if group.wait(timeout_seconds=1):
                    return group
                throw_if_interrupted()
        except BaseException:  # Cancel
            ray.util.remove_placement_group(group)
            raise
        ray.util.remove_placement_group(group)
    return None
