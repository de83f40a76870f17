"""The toy's scores, shared between processes."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from cogvideox.benchmarks import bench_nano, nano_parts
from cogvideox.benchmarks.nano_parts import Scored, score_rows
from cogvideox.nano import folders, paint
from cogvideox.nano.score import deviation, deviation_of, score_clip

SQUARE = {"colour": True, "shape": True, "size": True, "direction": True, "background": True}


def test_a_row_is_the_mean_over_its_parts() -> None:
    parts = [
        Scored("bf16", [{**SQUARE, "shape": False, "first frame dB": 30.0}], 3.0, (1.0, 50.0), (20.0,)),
        Scored("bf16", [{**SQUARE, "first frame dB": 31.0}] * 3, 5.0, (1.0, 150.0), (30.0,) * 3),
    ]
    cells = bench_nano.cells_of(parts)
    assert cells == "bf16|100.0 %|75.0 %|100.0 %|100.0 %|100.0 %|first frame 30.8 dB|0.1000|27.5 dB|2.00".split("|")


def test_a_row_without_an_exact_one_is_compared_with_nothing() -> None:
    assert bench_nano.cells_of([Scored("9 frames", [SQUARE], 1.0)])[-3:] == ["", "", "1.00"]


class _Pool:
    """Runs in this process what is given to it."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, call: Callable, *arguments: object) -> Future:
        future: Future = Future()
        future.set_result(call(*arguments))
        return future


def test_lossy_rows_are_painted_beside_their_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere there would be nothing to compare them with; and no prompt may be left out, or scored twice."""
    asked = []

    def scored(part: nano_parts._Part) -> list[Scored]:
        asked.append((*part.rows, part.first, part.count))
        return [Scored(title, [SQUARE] * part.count, 1.0) for title in part.rows]

    monkeypatch.setattr(nano_parts, "ProcessPoolExecutor", _Pool)
    monkeypatch.setattr(nano_parts, "_score", scored)
    rows = {title: bench_nano.ROWS[title] for title in ("9 frames", "bf16", bench_nano.BASE)}
    found = list(score_rows(rows, Path(), 30, 7, 2, "cpu"))
    assert asked == [
        ("9 frames", 0, 25),
        ("9 frames", 25, 5),
        (bench_nano.BASE, "bf16", 0, 25),
        (bench_nano.BASE, "bf16", 25, 5),
    ]
    assert {parts[0].title for parts in found} == set(rows) and all(len(parts) == 2 for parts in found)


def test_a_lossy_row_without_its_exact_one_is_painted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano_parts, "ProcessPoolExecutor", _Pool)
    monkeypatch.setattr(nano_parts, "_score", lambda part: [Scored(title, [SQUARE], 1.0) for title in part.rows])
    (parts,) = score_rows({"fp8": bench_nano.ROWS["fp8"]}, Path(), 1, 7, 1, "cpu")
    assert [part.title for part in parts] == ["fp8"]


@pytest.mark.long
def test_two_processes_find_what_a_single_run_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write_pipeline(tmp_path / "5b", "5b")
    rows = {title: bench_nano.ROWS[title] for title in (bench_nano.BASE, "bf16")}
    rows = {title: replace(row, changes={"steps": 2}) for title, row in rows.items()}
    monkeypatch.setattr(nano_parts.paint, "BATCH", 2)
    found = {parts[0].title: parts for parts in score_rows(rows, tmp_path, 4, 7, 2, "cpu")}

    settings = rows["bf16"].settings(7)
    requests = paint.held_out_requests(7, 4, settings)
    exact, bf16 = (
        paint.paint(paint.load_pipeline(tmp_path / "5b", weight_dtype, "fp32"), requests, settings, batch_size=2)
        for weight_dtype in ("fp32", "bf16")
    )
    assert [len(parts) for parts in found.values()] == [2, 2]
    assert deviation_of(part.squares or (0, 0) for part in found["bf16"]) == pytest.approx(deviation(exact, bf16))
    judged = sorted(str(one) for part in found["bf16"] for one in part.judged)
    assert judged == sorted(str(score_clip(clip, request.scene)) for clip, request in zip(bf16, requests))
