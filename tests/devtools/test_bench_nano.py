"""The toy's scores, shared between processes."""

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


@pytest.mark.long
def test_two_processes_find_what_a_single_run_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write_pipeline(tmp_path / "5b", "5b")
    rows = {title: bench_nano.ROWS[title] for title in (bench_nano._BASE, "bf16")}
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
