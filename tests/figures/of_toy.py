"""docs/nano.md and docs/samplers.md: `python3 dev.py bench nano` and `bench samplers`."""

from cogvideox.benchmarks import bench_nano
from cogvideox.tests.figures.cells import Cell, Note, Number
from cogvideox.tests.figures.phrases import Figure

NANO = "CogVideoX-nano on 200 prompts of combinations that it never saw"
ON_CPU = "CogVideoX-nano on 50 prompts of combinations that it never saw"
BASE = "text to video: ddim, 50 steps, cfg 3"
SCORES = "Samplers and schedulers of KSampler on CogVideoX-nano"
SAMPLERS = "docs/samplers.md"


def score(row: str, column: str, after: str = "") -> Cell:
    return Cell("cuda", "nano", NANO, (row,), column, after)


def note(pattern: str) -> Note:
    return Note("cpu", "samplers", SCORES, pattern)


def _row(name: str, row: str, task: str = "", *after: str) -> Figure:
    """A row of the table. task: its last cell; after: what stands before each number of it in the results."""
    phrase = f"| {name} | {{1}} % | {{1}} % | {{1}} % |{' ' * bool(task)}{task} |"
    cells = [score(row, column) for column in ("colour", "shape", "direction")]
    return Figure("docs/nano.md", phrase, (*cells, *(score(row, "task", one) for one in after)))


def _titles(variant: str, frames: int) -> list[str]:
    """The benchmark's rows of a length, for the four sizes."""
    name = "" if variant == "5b" else variant.removesuffix("-5B")
    return [bench_nano.title_of(name, frames, *size) or BASE for size in bench_nano.SIZES]


def _by_size(variant: str, frames: int) -> Figure:
    """A row of the table of lengths and sizes."""
    phrase = f"| {variant}, {frames} frames |" + " {1} / {1} |" * len(bench_nano.SIZES)
    titles = _titles(variant, frames)
    return Figure(
        "docs/nano.md", phrase, tuple(score(title, column) for title in titles for column in ("shape", "direction"))
    )


def _least_colour() -> Number:
    rows = [title for variant, lengths in SCORED.items() for frames in lengths for title in _titles(variant, frames)]
    return min(score(row, "colour")() for row in rows)


# variant -> the lengths that are scored in all sizes
SCORED = {
    "5b": (9, 17, 33, 49),
    "2b": (9, 17, 33, 49),
    "1.5-5B": (9, 17, 33, 49),
}
FIGURES = (
    Figure(
        "docs/nano.md",
        "a clip takes {1} s on two CPU cores",
        (Cell("cpu", "nano", ON_CPU, (BASE,), "s a clip"),),
    ),
    _row("text to video", BASE),
    _row("text to video, cfg 6", "cfg 6"),
    _row("text to video, cfg 1", "cfg 1"),
    _row("text to video, 9 frames", "9 frames"),
    _row("CogVideoX-2b, text to video", "2b, text to video"),
    _row("CogVideoX 1.5, text to video", "1.5, text to video"),
    _row("image to video", "image to video, cfg 2", "first frame {1} dB", "first frame "),
    _row("CogVideoX 1.5, image to video", "1.5, image to video, cfg 2", "first frame {1} dB", "first frame "),
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
    _row("extend a video", "extend, cfg 2", "no jump {1} %", "no jump "),
    _row("97 frames in context windows", "windows, 97 frames, cfg 2", "no jump {1} %", "no jump "),
    _row("97 frames in one run, RIFLEx", "RIFLEx, 97 frames", "no jump {1} %", "no jump "),
    *(_by_size(variant, frames) for variant, lengths in SCORED.items() for frames in lengths),
    Figure("docs/nano.md", "the colour is right in at least {1} %", (_least_colour,)),
    Figure(
        "docs/nano.md", "bf16 {4}, int8 {4}, fp8 {4}", tuple(score(row, "deviation") for row in ("bf16", "int8", "fp8"))
    ),
    Figure(
        "docs/nano.md",
        "computed in fp32, int8 {4} and fp8 {4}; with products in eight bits as well, int8_fast {4} and "
        "fp8_e4m3fn_fast {4}",
        tuple(
            Cell("cpu", "nano, eight-bit products", None, (f"{kind}{more}",), "deviation")
            for more in ("", ", eight-bit products")
            for kind in ("int8", "fp8")
        ),
    ),
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
