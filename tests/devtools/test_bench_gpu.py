"""The run on one card, without a card: that every section runs, and that what goes wrong in one costs it alone."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.supported_models
import pytest

from cogvideox.benchmarks import bench_gpu
from cogvideox.benchmarks.bench_gpu import SECTIONS, SMOKE_TITLE, Section
from cogvideox.benchmarks.gpu_rows import FAILED, MISSING, PASSED, Bench, Row
from cogvideox.devtools import paths
from cogvideox.tests.support import host_lacks


def good(bench: Bench) -> None:
    bench.check("equal", 0.0, 1e-6)
    bench.check("not a number", float("nan"), 1e-6)
    bench.attempt("a part", lambda: 1 / 0)
    bench.attempt("a part for which there is no time", lambda: None, 1000)
    bench.row("a figure", "1.0 s", seconds=1.0)


def hangs(bench: Bench) -> None:
    bench.row("before", "it hangs")
    time.sleep(60)


def hangs_after_many(bench: Bench) -> None:
    for number in range(200):
        bench.row(f"row {number}", "it is fast")
    time.sleep(60)


def dies(bench: Bench) -> None:
    bench.row("before", "it dies")
    os.kill(os.getpid(), signal.SIGKILL)


def raises(bench: Bench) -> None:
    raise RuntimeError("no such kernel")


def run(tmp_path: Path, *functions: Callable[[Bench], None], seconds: float = 20.0) -> dict[str, Row]:
    """The rows of sections that run at the same time, by what they are about."""
    options, rows = Namespace(out=tmp_path, smoke=False, device="cpu"), list[Row]()
    sections = {function.__name__: Section(function, seconds) for function in functions}
    bench_gpu.run_sections(sections, seconds, options, rows, "fork")
    kept = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["what"] for row in kept] == [row.what for row in rows], "everything is on disk before the next section"
    return {row.what: row for row in rows}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestSection:
    def test_rows_and_verdicts(self, tmp_path: Path) -> None:
        """A NaN, an error or a lack of time that passed for a result would be believed for months."""
        rows = run(tmp_path, good)
        verdicts = {what: row.verdict for what, row in rows.items()}
        assert verdicts.pop("section good") == ""
        assert verdicts == {
            "equal": PASSED,
            "not a number": FAILED,
            "a part": FAILED,
            "a part for which there is no time": MISSING,
            "a figure": "",
        }
        assert "ZeroDivisionError" in rows["a part"].found and rows["a figure"].values == {"seconds": 1.0}

    def test_one_that_hangs_is_ended_and_keeps_its_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A kernel that never returns must not take the minutes of the sections after it."""
        monkeypatch.setattr(bench_gpu, "GRACE", 0.1)
        began = time.monotonic()
        rows = run(tmp_path, hangs, seconds=1.0)
        assert time.monotonic() - began < 15
        assert rows["before"].found == "it hangs" and rows["hangs"].verdict == MISSING

    def test_one_that_is_ended_keeps_what_it_has_printed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows that waited to be read when the time was over were printed, and were in no file."""
        monkeypatch.setattr(bench_gpu, "GRACE", 0.0)
        write = bench_gpu.write_results

        def write_slowly(*given: Any) -> None:
            time.sleep(0.1)
            write(*given)

        monkeypatch.setattr(bench_gpu, "write_results", write_slowly)
        rows = run(tmp_path, hangs_after_many, seconds=1.0)
        assert {f"row {number}" for number in range(200)} <= set(rows)
        assert rows["hangs_after_many"].verdict == MISSING

    def test_a_row_is_on_disk_at_once(self, tmp_path: Path) -> None:
        """Whatever ends the benchmark itself must not take the rows of the section that runs along."""

        def reads_its_row(bench: Bench) -> None:
            bench.row("first", "sent")
            ends = time.monotonic() + 10
            while time.monotonic() < ends and "first" not in (
                (tmp_path / "results.json").read_text() if (tmp_path / "results.json").exists() else ""
            ):
                time.sleep(0.05)
            bench.check("seen on disk", float(time.monotonic() >= ends), 0.0)

        assert run(tmp_path, reads_its_row)["seen on disk"].verdict == PASSED

    def test_several_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that dies or hangs must not take those beside it along."""
        monkeypatch.setattr(bench_gpu, "GRACE", 0.1)
        rows = run(tmp_path, good, dies, hangs, seconds=3.0)
        assert rows["equal"].verdict == PASSED and rows["dies"].verdict == FAILED and rows["hangs"].verdict == MISSING
        assert {"section good", "section dies", "section hangs"} <= set(rows)

    @pytest.mark.parametrize("function, words", [(dies, "status -9"), (raises, "RuntimeError: no such kernel")])
    def test_one_that_fails_is_a_row(self, tmp_path: Path, function: Callable[[Bench], None], words: str) -> None:
        """A card's context that is poisoned ends the process: what came before and the reason must stay."""
        row = run(tmp_path, function)[function.__name__]
        assert row.verdict == FAILED and words in row.found


def test_what_is_timed_runs_alone() -> None:
    """A section beside another one would be slower than it is."""
    beside = [names for names in bench_gpu.batches(list(SECTIONS), True) if len(names) > 1]
    assert beside == [["parity", "parity-vae", "parity-train", "nano", "dynamic", "server"]]
    assert all(len(names) == 1 for names in bench_gpu.batches(list(SECTIONS), False))


@pytest.mark.long
def test_nothing_is_measured_without_a_card() -> None:
    """`dev.py bench` runs all benchmarks, on machines without a card too."""
    if bench_gpu.find_start_method("cuda"):
        pytest.skip("there is a card")
    command = [sys.executable, "-m", "cogvideox.benchmarks.bench_gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT, timeout=120)
    assert done.returncode == 0 and "nothing is measured" in done.stdout


def test_an_unknown_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--sections", "steps,vae"])
    with pytest.raises(SystemExit, match="There is no section steps. There are: ceilings, kernels, parity"):
        bench_gpu.main()


def smoke(out: Path, *arguments: str) -> dict:
    """results.json of a smoke run, all of whose rows have passed."""
    if not hasattr(comfy.supported_models, "CogVideoX_T2V"):
        pytest.skip(host_lacks("CogVideoX of its own, which the benchmark compares with"))
    command = [sys.executable, "-m", "cogvideox.benchmarks.bench_gpu", "--smoke", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT, timeout=560)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(SMOKE_TITLE) >= 2 and "| step-5b | 5b step" not in done.stdout.split("###")[1]
    return json.loads((out / "results.json").read_text())


@pytest.mark.long  # its parts are tested one by one below
def test_smoke_run_marks_every_row(tmp_path: Path) -> None:
    """Nobody may take the figures of tiny shapes on a CPU for a card's."""
    results = smoke(tmp_path, "--sections", "ceilings,step-5b")
    assert results["measurement"] is False and results["note"] == SMOKE_TITLE
    assert len(results["rows"]) > 15 and all(row["smoke"] for row in results["rows"])


@pytest.mark.long
def test_every_section_runs(tmp_path: Path) -> None:
    """An hour of a card costs money: whatever a CPU can find is found before."""
    results = smoke(tmp_path, "--seconds", "540")
    assert {row["section"] for row in results["rows"]} == set(SECTIONS)
    ended = {row["section"] for row in results["rows"] if row["what"] == row["section"]}
    assert not ended, "a section that was ended, or that did not begin"
