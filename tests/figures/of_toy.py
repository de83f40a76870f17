"""docs/nano.md and docs/samplers.md: `python3 dev.py bench nano` and `bench samplers`."""

from cogvideox.tests.figures.cells import Cell, Note
from cogvideox.tests.figures.phrases import Figure

NANO = "CogVideoX-nano on 200 prompts of combinations that it never saw"
SCORES = "Samplers and schedulers of KSampler on CogVideoX-nano"
SAMPLERS = "docs/samplers.md"


def score(row: str, column: str) -> Cell:
    return Cell("cpu", "nano", NANO, (row,), column)


def note(pattern: str) -> Note:
    return Note("cpu", "samplers", SCORES, pattern)


def _row(phrase: str, row: str) -> Figure:
    columns = ["colour", "shape", "direction", *(["first frame"] if "dB" in phrase else [])]
    return Figure("docs/nano.md", phrase, tuple(score(row, column) for column in columns))


FIGURES = (
    Figure(
        "docs/nano.md",
        "a clip takes {1} s on two CPU cores",
        (score("text to video: ddim, 50 steps, cfg 6", "s a clip"),),
    ),
    _row("| text to video | {1} % | {1} % | {1} % | |", "text to video: ddim, 50 steps, cfg 6"),
    _row("| image to video | {1} % | {1} % | {1} % | {1} dB |", "image to video"),
    _row("| CogVideoX 1.5, text to video | {1} % | {1} % | {1} % | |", "1.5, text to video"),
    _row("| text to video, 33 frames | {1} % | {1} % | {1} % | |", "33 frames"),
    _row("| text to video, 96 × 64 | {1} % | {1} % | {1} % | |", "96 x 64"),
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
