"""What several cards should bring one clip, and a farm many: counted from measured steps and bytes, on paper.

A step's time on one card is measured (`bench gpu`). How it is divided, what the cards then send each other and how long
that takes is arithmetic: no run over several cards has been timed.
"""

import math
from typing import NamedTuple

from cogvideox.benchmarks.common import Table, arguments, report
from cogvideox.tests.figures.cells import Cell

GB, STEPS, FARM, TEAM = 10**9, 50, 100, 8
VALUE_BYTES = 2  # bf16
PROMPTS = 2  # prompt and negative prompt
# GB a second that one card sends: NVLink of an H100 or H200 SXM in one direction; what PCIe 4 x16 leaves of its 32; and
# a network of 400 Gbit/s that the 8 cards of a machine share.
NVLINK, PCIE, NETWORK = 450.0, 25.0, 50.0 / TEAM
# FlashAttention-3 on an H100 at heads of 64 and 16 k tokens, FLOP a second (its paper, figure 5)
ATTENTION = 497e12


class Model(NamedTuple):
    """tokens: of video and text. step: the row of its step on an H200 in benchmarks/results."""

    tokens: int
    width: int
    layers: int
    heads: int
    step: str

    def one_card(self) -> float:
        """Seconds of a step with guidance on one card, measured."""
        return Cell("cuda", "gpu, one H200", None, (f"{self.step} step, batch 2, ours, as chosen",), "found")()


MODELS = {
    "2b": Model(13 * 30 * 45 + 226, 1920, 30, 30, "2b"),
    "5b": Model(13 * 30 * 45 + 226, 3072, 42, 48, "5b"),
    "1.5-5B": Model(11 * 48 * 85 + 226, 3072, 42, 48, "1.5-5B"),
}


class Anchor(NamedTuple):
    """A published run over several cards with PCIe (xDiT, docs/performance/cogvideo.md): seconds of a step there, and
    how much faster than on one card that was."""

    model: str
    cards: int
    step: float
    times: float


# 5b: about 40 s for 50 steps. How many of up to 12 cards were the fastest for 2b, the page leaves to a figure.
ANCHORS = (Anchor("2b", 12, 0.49, 4.29), Anchor("5b", 12, 40 / STEPS, 7.75))


def sent_bytes(model: Model, cards: int, prompts: int = 1) -> float:
    """What each of the cards that share a clip's tokens sends in a forward: queries, keys and values before the
    attention and its result after it, of its part of the tokens, but for what stays with it."""
    values = 4 * model.layers * prompts * model.tokens / cards * model.width
    return values * VALUE_BYTES * (cards - 1) / cards


def stage_bytes(model: Model) -> float:
    """What a card sends in a forward with PipeFusion, whose cards have some blocks each: all tokens, once."""
    return model.tokens * model.width * VALUE_BYTES


def step_seconds(model: Model, one_card: float, cards: int, link: float, divided: int = PROMPTS) -> float:
    """A step on `cards`, in as many groups as prompts are `divided` into, each of which shares the tokens of its own:
    each half computes one of the prompts (cfg, both), or with 1 all share the tokens of both (sequence).

    Computing divides evenly, and nothing is sent meanwhile. link: GB a second that a card sends."""
    groups = min(cards, divided)
    sharing = cards // groups
    return one_card / cards + sent_bytes(model, sharing, PROMPTS // groups) / (link * GB)


def implied_link(anchor: Anchor) -> float:
    """GB a second that a card would have sent in a published run, if all that it lost was lost there."""
    model = MODELS[anchor.model]
    lost = anchor.step - anchor.step * anchor.times / anchor.cards
    return sent_bytes(model, anchor.cards // PROMPTS) / lost / GB


def main() -> None:
    options = arguments(__doc__)
    report("parallel_plan", tables(), options.save)


def tables() -> list[Table]:
    """All that the page docs/many-cards.md has."""
    return [sent_table(), clip_table(), farm_table(), limit_table(), anchor_table()]


def sent_table() -> Table:
    """Of a step with guidance."""
    rows = []
    for name, model in MODELS.items():
        cells = [name]
        for cards in (2, 4, TEAM):
            # Two cards that have one prompt each send what they have predicted, which is a few MB.
            both = [sent_bytes(model, cards // PROMPTS)] if cards > PROMPTS else []
            cells += [f"{sent / GB:.2f}" for sent in (sent_bytes(model, cards, PROMPTS), *both)]
        rows.append(cells)
    notes = (
        "GB that each card sends in a step with guidance in bf16. sequence: all share the tokens of both prompts. "
        "both: each half of them those of one prompt. Counted.",
    )
    splits = ("2 cards, sequence", "4 cards, sequence", "4 cards, both", "8 cards, sequence", "8 cards, both")
    return Table("What a card sends", notes, ("model", *splits), rows)


def clip_table() -> Table:
    rows = []
    links = {"NVLink": NVLINK, "PCIe": PCIE, "PCIe as in xDiT's run": implied_link(ANCHORS[1])}
    for name, model in MODELS.items():
        one = model.one_card()
        for link, speed in links.items():
            for split, divided in (("cfg or both", PROMPTS), ("auto", 1)):
                spread = [STEPS * step_seconds(model, one, cards, speed, divided) for cards in (1, 2, 4, 8)]
                rows.append([f"{name}, {link}, {split}", *(f"{seconds:.1f}" for seconds in spread)])
    notes = (
        f"Seconds of {STEPS} steps with guidance on H200s. One card: measured. More: counted. cfg or both: prompt and "
        "negative prompt on half of the cards each. auto: all share the tokens of both, as it does within a machine. "
        f"GB a second that a card sends: NVLink {NVLINK:g}, PCIe {PCIE:g}, as in "
        f"xDiT's run {implied_link(ANCHORS[1]):.1f}.",
    )
    return Table("One clip", notes, ("model", "1 card", "2 cards", "4 cards", "8 cards"), rows)


def farm_table() -> Table:
    rows = []
    for name, model in MODELS.items():
        one = model.one_card()
        alone, together = (STEPS * step_seconds(model, one, cards, NVLINK) for cards in (1, TEAM))
        clips = [3600 * FARM / alone, 3600 * (FARM // TEAM) / together]
        rows.append([name, *(f"{count:.0f}" for count in clips), *(f"{wait:.1f}" for wait in (alone, together))])
    notes = (
        f"{FARM} H200s: a clip on each, or {FARM // TEAM} teams of {TEAM} with NVLink. The steps alone, without text "
        "encoder and VAE. Counted from measured steps.",
    )
    header = ("model", "clips an hour", "clips an hour, teams", "seconds a clip", "seconds a clip, teams")
    return Table("A farm", notes, header, rows)


def limit_table() -> Table:
    rows = []
    for name, model in MODELS.items():
        one = model.one_card()
        # However many share the tokens, what they send and what they compute fall alike.
        shares = [one / 2 / (one / 2 + sent_bytes(model, 2) * 4 / (link * GB)) for link in (NVLINK, PCIE, NETWORK)]
        tokens = [ATTENTION / (link * GB) for link in (NVLINK, PCIE, NETWORK)]
        most = [max(1, math.floor(model.tokens / each)) for each in tokens]
        ratio = sent_bytes(model, TEAM) / stage_bytes(model)
        rows.append(
            [name, str(model.heads), *(f"{share * 100:.0f} %" for share in shares), *map(str, most), f"{ratio:.1f}"]
        )
    where = ("NVLink", "PCIe", "network")
    header = (
        *("model", "heads"),
        *(f"Ulysses, {link}" for link in where),
        *(f"ring, {link}" for link in where),
        f"Ulysses over PipeFusion, {TEAM} cards",
    )
    notes = (
        "Ulysses: the share of the time that cards compute, with any number of them; there are no more than heads. "
        "Ring: the most cards whose transfers hide behind the attention. The last column: how many times more is sent. "
        f"Network: {NETWORK:g} GB a second for each of {TEAM} cards. Counted.",
    )
    return Table("Where it ends", notes, header, rows)


def anchor_table() -> Table:
    rows = []
    for anchor in ANCHORS:
        one, model = anchor.step * anchor.times, MODELS[anchor.model]
        counted = one / step_seconds(model, one, anchor.cards, PCIE)
        rows.append(
            [anchor.model, str(anchor.cards), f"{anchor.times:.2f}", f"{counted:.1f}", f"{implied_link(anchor):.1f}"]
        )
    notes = (
        "Published by xDiT for L40s with PCIe: how many times faster. What this plan would have counted; and the GB a "
        "second at which it would have counted what was published.",
    )
    return Table("Anchors", notes, ("model", "cards", "published", "counted", "GB a second"), rows)


if __name__ == "__main__":
    main()
