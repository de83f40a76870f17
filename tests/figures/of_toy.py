"""docs/nano.md and docs/samplers.md: `python3 dev.py bench nano` and `bench samplers`."""

from cogvideox.tests.figures.cells import Cell, Note
from cogvideox.tests.figures.phrases import Figure

NANO = "CogVideoX-nano on 50 prompts of combinations that it never saw"
SCORES = "Samplers and schedulers of KSampler on CogVideoX-nano"
SAMPLERS = "docs/samplers.md"


def score(row: str, column: str, after: str = "") -> Cell:
    return Cell("cpu", "nano", NANO, (row,), column, after)


def note(pattern: str) -> Note:
    return Note("cpu", "samplers", SCORES, pattern)


def _row(name: str, row: str, task: str = "", *after: str) -> Figure:
    """A row of the table. task: its last cell; after: what stands before each number of it in the results."""
    phrase = f"| {name} | {{1}} % | {{1}} % | {{1}} % |{' ' * bool(task)}{task} |"
    cells = [score(row, column) for column in ("colour", "shape", "direction")]
    return Figure("docs/nano.md", phrase, (*cells, *(score(row, "task", one) for one in after)))


FIGURES = (
    Figure(
        "docs/nano.md",
        "a clip takes {1} s on two CPU cores",
        (score("text to video: ddim, 50 steps, cfg 3", "s a clip"),),
    ),
    _row("text to video", "text to video: ddim, 50 steps, cfg 3"),
    _row("text to video, cfg 6", "cfg 6"),
    _row("text to video, 9 frames", "9 frames"),
    _row("text to video, 33 frames", "33 frames"),
    _row("text to video, 49 frames", "49 frames"),
    _row("text to video, 96 × 64", "96 x 64"),
    _row("text to video, 64 × 96", "64 x 96"),
    _row("text to video, 96 × 96", "96 x 96"),
    _row("CogVideoX 1.5, text to video", "1.5, text to video"),
    _row("image to video", "image to video, cfg 2", "first frame {1} dB", "first frame "),
    _row(
        "start and end image, Fun InP",
        "start and end image, cfg 2",
        "first frame {1} dB, last frame {1} dB",
        "first frame ",
        "last frame ",
    ),
    _row("a region of a video, Fun InP", "region, cfg 2", "the rest {1} dB", "rest "),
    _row("edges, Fun Control", "edges, Fun Control, cfg 2", "edges IoU {2}", "edges IoU "),
    _row("edges, control net", "edges, control net, cfg 2", "edges IoU {2}", "edges IoU "),
    _row("video to video, denoise 0.6", "video to video, denoise 0.6, cfg 6"),
    _row("inversion edit", "inversion edit, cfg 6"),
    Figure(SAMPLERS, "Every combination calls the model {} times for a video", (note(r"(\d+) calls of the model"),)),
    Figure(
        SAMPLERS,
        "which has {} points with four prompts and {} with 12",
        (note(r"(\d+) \(24 calls, 4\)"), note(r"(\d+) \(24 calls, 12\)")),
    ),
    Figure(SAMPLERS, "no combination is more than {} points below it", (note(r"more than (\d+) points below"),)),
    Figure(SAMPLERS, "seemed to miss the {} points with four", (note(r"more than (\d+) points below"),)),
    Figure(SAMPLERS, "calls the model up to {} times", (note(r"\((\d+) calls, 4\)"),)),
)
