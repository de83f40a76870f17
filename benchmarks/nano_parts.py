"""The prompts of a row of bench_nano in parts, each scored in one of several processes.

A part is a batch, whose noise comes from the seed and the number of its first prompt wherever it is sampled: parts add
up to what one process would have found.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

from cogvideox.benchmarks.common import use_comfyui
from cogvideox.nano import paint, score, tasks

EXACT = "fp32"  # a weight_dtype: the same on every device


@dataclass(frozen=True)
class Row:
    """weight_dtype: of the transformer. changes: the settings that differ from the defaults.

    exact: the title of the row with the same seeds that this one is compared with; "" where it is exact itself.
    """

    task: tasks.Task
    weight_dtype: str = EXACT
    changes: Mapping[str, object] | None = None
    exact: str = ""

    def settings(self, seed: int) -> paint.Settings:
        return replace(paint.Settings(seed=seed), **(self.changes or {}))


@dataclass(frozen=True)
class Scored:
    """Some prompts of a row. judged: of each, shares and figures by name. seconds: for all of them, loading left out.

    squares: of score.squares, of the frames; psnr_db: of each clip against the exact one. None and empty where there
    was nothing to compare with.
    """

    title: str
    judged: Sequence[Mapping[str, float]]
    seconds: float
    squares: tuple[float, float] | None = None
    psnr_db: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Part:
    """rows: to be compared with the first of them, or a single one. first: the number of the first prompt."""

    rows: Mapping[str, Row]
    pipelines: Path
    seed: int
    first: int
    count: int


def score_rows(
    rows: Mapping[str, Row], pipelines: Path, prompts: int, seed: int, workers: int, device: str
) -> Iterator[list[Scored]]:
    """The parts of each row, as soon as the last one of them is there.

    pipelines: a folder for each variant, in diffusers' layout. device: "cpu" or "cuda".
    """
    together = [
        {title: row, **{other: lossy for other, lossy in rows.items() if lossy.exact == title}}
        for title, row in rows.items()
        if row.exact not in rows
    ]
    parts = [
        _Part(some, pipelines, seed, first, min(paint.BATCH, prompts - first))
        for some in together
        for first in range(0, prompts, paint.BATCH)
    ]
    of_rows: dict[str, list[Scored]] = {title: [] for title in rows}
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (device, workers)) as pool:
        for future in as_completed([pool.submit(_score, part) for part in parts]):
            for scored in future.result():
                found = of_rows[scored.title]
                found.append(scored)
                if sum(len(part.judged) for part in found) == prompts:
                    yield found


def _begin(device: str, workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    torch.backends.cudnn.allow_tf32 = False  # which is on by default, and not exact
    use_comfyui(cpu=device == "cpu")
    if device == "cpu":
        _emulate_products()


def _emulate_products() -> None:
    """Have torch multiply in eight bits where the CPU cannot: of no use to anybody but a score."""
    from cogvideox.model_loaders import precision

    precision.fp8_matmul_obstacle = precision.int8_matmul_obstacle = lambda device: None


@cache
def _pipeline(folder: Path, weight_dtype: str) -> paint.Pipeline:
    return paint.load_pipeline(folder, weight_dtype, EXACT)


def _score(part: _Part) -> list[Scored]:
    found, exact = [], None
    for title, row in part.rows.items():
        settings = row.settings(part.seed)
        requests = paint.held_out_requests(part.seed, part.count, settings, part.first)
        pipeline = _pipeline(part.pipelines / row.task.variant, row.weight_dtype)
        began = time.perf_counter()
        clips = paint.paint(
            pipeline,
            requests,
            replace(settings, seed=part.seed + part.first),
            row.task.prepare,
            paint.BATCH if row.task.batched else 1,
        )
        seconds = time.perf_counter() - began
        judged = [dict(row.task.judge(clip, request)) for clip, request in zip(clips, requests)]
        compared = () if exact is None else zip(exact, clips)
        found.append(
            Scored(
                title,
                judged,
                seconds,
                None if exact is None else score.squares(exact, clips),
                tuple(score.psnr_db(*pair) for pair in compared),
            )
        )
        exact = clips if exact is None else exact
    return found
