"""docs/many-cards.md: `python3 dev.py bench parallel_plan`."""

from cogvideox.benchmarks import bench_parallel_plan as plan
from cogvideox.tests.figures.cells import Cell, fixed
from cogvideox.tests.figures.phrases import Figure, Value

PAGE = "docs/many-cards.md"
SPLITS = ("2 cards, sequence", "4 cards, sequence", "4 cards, both", "8 cards, sequence", "8 cards, both")
CARDS = ("1 card", "2 cards", "4 cards", "8 cards")
FARM = ("clips an hour", "seconds a clip", "clips an hour, teams", "seconds a clip, teams")
NAMES = {"2b": "2b", "5b": "5b", "1.5-5B": "1.5-5B, 81 frames"}
_SHARED = "PCIe as in xDiT's run"


def planned(title: str, row: str, column: str) -> Cell:
    return Cell("cpu", "parallel_plan", title, (row,), column)


def _row(title: str, row: str, said: str, columns: tuple[str, ...], formats: str) -> Figure:
    return Figure(PAGE, f"| {said} | {formats} |", tuple(planned(title, row, column) for column in columns))


def _limits(model: str, way: str) -> tuple[Value, ...]:
    return tuple(planned("Where it ends", model, f"{way}, {link}") for link in ("NVLink", "PCIe", "network"))


FIGURES = (
    *(_row("What a card sends", m, said, SPLITS, " | ".join(["{2}"] * 5)) for m, said in NAMES.items()),
    *(
        _row("One clip", f"{m}, {link}, {split}", f"{said}, {link}, {named}", CARDS, " | ".join(["{1}"] * 4))
        for m, said in NAMES.items()
        for link in ("NVLink", "PCIe", *(() if m == "2b" else (_SHARED,)))
        for split, named in (("cfg or both", "*cfg* or *both*"), ("auto", "*auto*"))
    ),
    *(_row("A farm", m, f"a clip of {said}", FARM, "{0} | {1} | {0} | {1}") for m, said in NAMES.items()),
    Figure(PAGE, "On {} H200s, counted from the measured steps", (fixed(plan.FARM),)),
    Figure(
        PAGE,
        "of an H100 or H200 SXM, {} GB a second in one direction; PCIe is version 4 with 16 lanes, of which {} GB",
        (fixed(plan.NVLINK), fixed(plan.PCIE)),
    ),
    Figure(
        PAGE,
        "On up to {} L40s with PCIe it made 2b {2} times and 5b {2} times as fast",
        (fixed(plan.ANCHORS[0].cards), *(planned("Anchors", m, "published") for m in ("2b", "5b"))),
    ),
    Figure(
        PAGE,
        "would have counted {1} and {1} times. It counts as little as they got where a card sends {1} and {1} GB",
        tuple(planned("Anchors", m, column) for column in ("counted", "GB a second") for m in ("2b", "5b")),
    ),
    Figure(
        PAGE,
        "for {} % of the time with 5b over NVLink, for {} % over PCIe, and for {} % over a network",
        _limits("5b", "Ulysses"),
    ),
    Figure(PAGE, "with 1.5-5B for {}, {} and {} %", _limits("1.5-5B", "Ulysses")),
    Figure(
        PAGE,
        "as the model has heads: {} for 2b, {} for 5b and 1.5-5B",
        tuple(planned("Where it ends", m, "heads") for m in ("2b", "5b")),
    ),
    Figure(
        PAGE,
        "over NVLink with up to {} cards for 5b and {} for 1.5-5B, over PCIe with {} for 1.5-5B",
        (_limits("5b", "ring")[0], *_limits("1.5-5B", "ring")[:2]),
    ),
    Figure(
        PAGE,
        "on 8 cards {1} times less than Ulysses for 5b",
        (planned("Where it ends", "5b", "Ulysses over PipeFusion, 8 cards"),),
    ),
)
