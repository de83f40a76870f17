"""Clips by CogVideoX-nano, scored by rule against their prompts, all of combinations that training never showed.

The yardstick for everything that changes pictures: guidance, samplers, fewer steps, precision.
"""

import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np

from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.nano import folders, paint, score, tasks

_TEXT = tasks.Task("5b", paint.from_text, tasks.judge_text, {})
_1_5 = replace(_TEXT, variant="1.5-5B")
_SIZES = ((64, 64), (96, 64), (64, 96), (96, 96))
_LENGTHS = (9, 17, 33, 49)
_SMALLER = {"bf16": "bf16", "fp8": "fp8_e4m3fn", "int8": "int8"}  # row -> weight_dtype


def _rows() -> dict[str, tuple[tasks.Task, str, dict]]:
    """Row -> (task, weight_dtype, settings that differ from the defaults)."""
    rows: dict[str, tuple[tasks.Task, str, dict]] = {
        "text to video: ddim, 50 steps, cfg 3": (_TEXT, "default", {}),
        **{f"cfg {cfg:g}": (_TEXT, "default", {"cfg": cfg}) for cfg in (6.0, 1.0)},
        "dpm, dynamic cfg": (_TEXT, "default", {"sampler": "dpm", "dynamic_cfg": True}),
        **{f"{steps} steps": (_TEXT, "default", {"steps": steps}) for steps in (20, 10, 5)},
        **{name: (_TEXT, weight_dtype, {}) for name, weight_dtype in _SMALLER.items()},
        "1.5, cfg 1": (_1_5, "default", {"cfg": 1.0}),
    }
    for name, variant in {"": "5b", "2b": "2b", "1.5": "1.5-5B"}.items():
        for frames in _LENGTHS:
            for width, height in _SIZES:
                changes = {"frames": frames, "width": width, "height": height}
                title = _title(name, frames, width, height)
                if title:
                    rows[title] = (replace(_TEXT, variant=variant), "default", changes)
    for name, task in tasks.TASKS.items():
        cfg = task.changes.get("cfg")
        rows[f"{name}, cfg {cfg:g}" if cfg else name] = (task, "default", dict(task.changes))
    for cfg in (6.0, 1.0):
        rows[f"image to video, cfg {cfg:g}"] = (tasks.TASKS["image to video"], "default", {"cfg": cfg})
    return rows


def _title(name: str, frames: int, width: int, height: int) -> str:
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
    )
    options.rows = options.rows or rows_of(options.weights)
    use_comfyui()
    with tempfile.TemporaryDirectory() as scratch:
        exact: dict[str, np.ndarray] = {}
        rows = [score_row(title, options, Path(scratch), exact) for title in options.rows]
    report("nano", [tabulate(rows, options)], options.save)


def rows_of(weights: str | None) -> list[str]:
    """The rows whose variants are in the folder `weights`, or published."""
    there = {path.name for path in Path(weights).iterdir()} if weights else set(folders.VARIANTS)
    return [title for title, (task, _, _) in ROWS.items() if task.variant in there]


def score_row(title: str, options: Namespace, scratch: Path, exact: dict[str, np.ndarray]) -> list[str]:
    """A row of the table: shares by attribute, a task's own figures, how far from the exact run, seconds a clip.

    exact: the clips of each variant's run in the default precision; this row's are added to it.
    """
    task, weight_dtype, changes = ROWS[title]
    folder = Path(options.weights or scratch) / task.variant
    if not folder.exists():
        folders.write_pipeline(folder, task.variant)
    settings = replace(paint.Settings(seed=options.seed), **changes)
    pipeline = paint.load_pipeline(folder, weight_dtype)
    requests = paint.held_out_requests(options.seed, options.prompts, settings)
    began = time.perf_counter()
    batch_size = paint.BATCH if task.batched else 1
    clips = paint.paint(pipeline, requests, settings, task.prepare, batch_size)
    seconds = (time.perf_counter() - began) / len(requests)
    judged = [task.judge(clip, request) for clip, request in zip(clips, requests)]
    means = {name: float(np.nanmean([one[name] for one in judged])) for name in judged[0]}
    row = [title, *(f"{100 * means[name]:.1f} %" for name in score.ATTRIBUTES)]
    row.append(", ".join(_figure(name, value) for name, value in means.items() if name not in score.ATTRIBUTES))
    if weight_dtype == "default" and not changes:
        exact[task.variant] = clips
    lossy = weight_dtype != "default" and task.variant in exact
    row.append(f"{score.deviation(exact[task.variant], clips):.4f}" if lossy else "")
    row.append(f"{np.mean([score.psnr_db(*pair) for pair in zip(exact[task.variant], clips)]):.1f} dB" if lossy else "")
    row.append(f"{seconds:.2f}")
    print(*row, sep=" | ", flush=True)
    return row


def _figure(name: str, value: float) -> str:
    if name.endswith(" dB"):
        return f"{name.removesuffix(' dB')} {value:.1f} dB"
    return f"{name} {value:.2f}" if name.endswith("IoU") else f"{name} {100 * value:.1f} %"


def tabulate(rows: list[list[str]], options: Namespace) -> Table:
    return Table(
        f"CogVideoX-nano on {options.prompts} prompts of combinations that it never saw",
        [
            f"Prompts and noise from seed {options.seed}; 17 frames of 64 x 64, ddim, 50 steps, cfg 3 unless the row "
            f"says otherwise; batches of {paint.BATCH}.",
            "Read off the decoded frames by rule (nano/reading.py); guessing would be right in 1 of 8 for the colour, "
            "1 of 4 for the shape, 1 of 7 for the direction.",
            "Decibels: mean PSNR against what was given. IoU: of both clips' edges, a pixel wider on every side.",
            "No jump: no two frames, four apart, differ by more than 1.5 times the clip's median (at the join, of a "
            "continued clip).",
            "Deviation: RMS of the difference to the frames of the exact run with the same seeds, over their RMS.",
        ],
        ["", *score.ATTRIBUTES, "task", "deviation", "PSNR", "s a clip"],
        rows,
    )


if __name__ == "__main__":
    main()
