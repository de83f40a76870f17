"""Clips by CogVideoX-nano, scored by rule against their prompts, all of combinations that training never showed.

The yardstick for everything that changes pictures: guidance, samplers, fewer steps, precision.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cogvideox.benchmarks.common import Table, arguments, report
from cogvideox.benchmarks.nano_parts import Row, Scored, score_rows
from cogvideox.host.standalone import comfyui_from_environment
from cogvideox.nano import folders, paint, score, tasks

_TEXT = tasks.Task("5b", paint.from_text, tasks.judge_text, {})
_1_5 = replace(_TEXT, variant="1.5-5B")
SIZES = ((64, 64), (96, 64), (64, 96), (96, 96))
LENGTHS = (9, 17, 33, 49)
_PLAIN = paint.Settings()
BASE = f"text to video: {_PLAIN.sampler}, {_PLAIN.steps} steps, cfg {_PLAIN.cfg:g}"
_SMALLER = {  # row -> weight_dtype
    **{"bf16": "bf16", "fp8": "fp8_e4m3fn", "int8": "int8"},
    **{"fp8, eight-bit products": "fp8_e4m3fn_fast", "int8, eight-bit products": "int8_fast"},
}


def _rows() -> dict[str, Row]:
    rows = {
        BASE: Row(_TEXT),
        **{name: Row(_TEXT, weight_dtype, exact=BASE) for name, weight_dtype in _SMALLER.items()},
        **{f"cfg {cfg:g}": Row(_TEXT, changes={"cfg": cfg}) for cfg in (6.0, 1.0)},
        "dpm, dynamic cfg": Row(_TEXT, changes={"sampler": "dpm", "dynamic_cfg": True}),
        **{f"{steps} steps": Row(_TEXT, changes={"steps": steps}) for steps in (20, 10, 5)},
        "1.5, cfg 1": Row(_1_5, changes={"cfg": 1.0}),
    }
    for name, variant in {"": "5b", "2b": "2b", "1.5": "1.5-5B"}.items():
        for frames in LENGTHS:
            for width, height in SIZES:
                title = title_of(name, frames, width, height)
                if title:
                    changes = {"frames": frames, "width": width, "height": height}
                    rows[title] = Row(replace(_TEXT, variant=variant), changes=changes)
    for name, task in tasks.TASKS.items():
        cfg = task.changes.get("cfg")
        rows[f"{name}, cfg {cfg:g}" if cfg else name] = Row(task, changes=task.changes)
    for cfg in (6.0, 1.0):
        rows[f"image to video, cfg {cfg:g}"] = Row(tasks.TASKS["image to video"], changes={"cfg": cfg})
    return rows


def title_of(name: str, frames: int, width: int, height: int) -> str:
    """Of a row of text to video: what differs from 5b with 17 frames of 64 x 64; "" where nothing does."""
    length = f"{frames} frames" if frames != paint.Settings.frames else ""
    size = f"{width} x {height}" if (width, height) != (paint.Settings.width, paint.Settings.height) else ""
    return ", ".join(filter(None, (name, " of ".join(filter(None, (length, size))) or name and "text to video")))


ROWS = _rows()


def main() -> None:
    options = arguments(
        __doc__,
        prompts={"type": int, "default": 200},
        seed={"type": int, "default": 7, "help": "of the prompts and the noise"},
        rows={"nargs": "+", "choices": list(ROWS), "metavar": "ROW", "help": "all of the variants that there are"},
        weights={"help": "pipelines, a folder each, instead of the repository's own; the control net stays"},
        workers={"type": int, "default": 1, "help": "processes that share the prompts"},
        device={"choices": ("cpu", "cuda"), "default": "cpu"},
    )
    comfyui_from_environment()  # says what is missing; an error in a process of the pool would only say that it ended
    titles = options.rows or rows_of(options.weights)
    rows = {title: ROWS[title] for title in titles}
    with tempfile.TemporaryDirectory() as scratch:
        pipelines = Path(options.weights or scratch)
        if not options.weights:
            for variant in {row.task.variant for row in rows.values()}:
                folders.write_pipeline(pipelines / variant, variant)
        cells = {}
        for parts in score_rows(rows, pipelines, options.prompts, options.seed, options.workers, options.device):
            cells[parts[0].title] = cells_of(parts)
            print(*cells[parts[0].title], sep=" | ", flush=True)
    report("nano", [tabulate([cells[title] for title in titles], options)], options.save, options.device)


def rows_of(weights: str | None) -> list[str]:
    """The rows whose variants are in the folder `weights`, or published."""
    there = {path.name for path in Path(weights).iterdir()} if weights else set(folders.VARIANTS)
    return [title for title, row in ROWS.items() if row.task.variant in there]


def cells_of(parts: Sequence[Scored]) -> list[str]:
    """A row of the table: shares by attribute, a task's own figures, how far from the exact run, seconds a clip."""
    judged = [one for part in parts for one in part.judged]
    means = {name: float(np.nanmean([one[name] for one in judged])) for name in judged[0]}
    return [
        parts[0].title,
        *(f"{100 * means[name]:.1f} %" for name in score.ATTRIBUTES),
        ", ".join(_figure(name, value) for name, value in means.items() if name not in score.ATTRIBUTES),
        *_lossy_cells(parts),
        f"{sum(part.seconds for part in parts) / len(judged):.2f}",
    ]


def _lossy_cells(parts: Iterable[Scored]) -> tuple[str, str]:
    """Deviation and PSNR of the frames; empty for an exact row."""
    squares = [part.squares for part in parts if part.squares]
    if not squares:
        return "", ""
    psnr_db = np.mean([value for part in parts for value in part.psnr_db])
    return f"{score.deviation_of(squares):.4f}", f"{psnr_db:.1f} dB"


def _figure(name: str, value: float) -> str:
    if name.endswith(" dB"):
        return f"{name.removesuffix(' dB')} {value:.1f} dB"
    return f"{name} {value:.2f}" if name.endswith("IoU") else f"{name} {100 * value:.1f} %"


def tabulate(rows: list[list[str]], options: Namespace) -> Table:
    return Table(
        f"CogVideoX-nano on {options.prompts} prompts of combinations that it never saw",
        [
            f"Prompts and noise from seed {options.seed}; {_PLAIN.frames} frames of {_PLAIN.width} x {_PLAIN.height}, "
            f"{BASE.partition(': ')[2]} unless the row says otherwise; fp32, batches of {paint.BATCH}; "
            f"{options.workers} processes at a time.",
            "Read off the decoded frames by rule (nano/reading.py); guessing would be right in 1 of 8 for the colour, "
            "1 of 4 for the shape, 1 of 7 for the direction.",
            "Decibels: mean PSNR against what was given. IoU: of both clips' edges, a pixel wider on every side.",
            "No jump: no two frames, four apart, differ by more than 1.5 times the clip's median (at the join, of a "
            "continued clip).",
            "Deviation: RMS of the difference to the frames of the exact run with the same seeds, over their RMS.",
            "A CPU without eight-bit products emulates them, slowly.",
        ],
        ["", *score.ATTRIBUTES, "task", "deviation", "PSNR", "s a clip"],
        rows,
    )


if __name__ == "__main__":
    main()
