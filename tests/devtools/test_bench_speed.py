"""`python3 dev.py bench speed`: when a goal is met, and all of its clocks on a tiny model."""

import math
import sys

import pytest
import torch

from cogvideox.benchmarks import bench_speed, text_encoders
from cogvideox.benchmarks.speed_goals import Goal, goals_table
from cogvideox.host import cpu_products


def test_the_worst_of_all_checkpoints_counts() -> None:
    """A goal that one checkpoint meets would hide those that miss it."""
    goals = [
        *(Goal("time", found, most=1.0) for found in (0.5, 1.2, 0.7)),
        *(Goal("estimate", found, most=1.1, least=1.0) for found in (1.05, 0.99)),
        *(Goal("met", found, most=2.0) for found in (1.0, 2.0)),
        Goal("broken", math.nan, most=1.0),
    ]
    assert goals_table(goals).rows == [
        ["time", "1.2", "at most 1", "NOT met"],
        ["estimate", "0.99", "1 to 1.1", "NOT met"],
        ["met", "2", "at most 2", "met"],
        ["broken", "nan", "at most 1", "NOT met"],
    ]


@pytest.mark.parametrize(("is_faster", "rows"), [(True, ["fp32", "bf16"]), (False, ["fp32"])])
def test_bf16_where_a_cpu_is_made_for_it(monkeypatch: pytest.MonkeyPatch, is_faster: bool, rows: list[str]) -> None:
    """Elsewhere diffusers takes minutes for a forward."""
    monkeypatch.setattr(cpu_products, "bf16_is_faster", lambda: is_faster)
    assert bench_speed.precisions(bench_speed.Namespace(precisions=None)) == rows
    assert bench_speed.precisions(bench_speed.Namespace(precisions=["bf16"])) == ["bf16"]


def test_the_text_encoders_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two with different weights the time would compare all the same."""
    monkeypatch.setattr(text_encoders, "_T5", text_encoders._T5 | {"width": 64, "d_ff": 128, "num_layers": 2})
    seconds, errors = text_encoders.compare_text_encoders("fp32", 1)
    assert set(seconds) == set(errors) == {"ours", "diffusers"}
    assert all(0 < error < 2e-6 for error in errors.values())


@pytest.mark.long
def test_all_clocks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark that fails at its last table has cost its user five minutes."""
    tiny = "--variants 5b --layers 1 --heads 1 --repeats 1 --steps 1 --precisions fp32 --without-counts"
    monkeypatch.setattr(sys, "argv", ["bench_speed", *tiny.split()])
    monkeypatch.setattr(text_encoders, "_T5", text_encoders._T5 | {"width": 64, "d_ff": 128, "num_layers": 2})
    torch.compiler.reset()
    bench_speed.main()
    said = capsys.readouterr().out
    titles = ("One forward, batch 1", "A sampling run", "T5, one prompt", "Products of this CPU", "Goals")
    assert all(f"### {title}" in said for title in titles)
    assert "| 5b | fp32 | fp32 |" in said and "| forward on this CPU in fp32, error |" in said
