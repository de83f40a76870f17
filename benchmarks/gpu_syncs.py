"""How often a sampling step makes the host wait for the card, as torch itself reports it, by kind of run."""

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cogvideox.benchmarks.bench_syncs import RUNS, Run, count, sample
from cogvideox.benchmarks.gpu_rows import Bench
from cogvideox.benchmarks.syncs import READ, UPLOAD, Counted, WaitCounter

MOST = 1  # of the pack's own, a step


def measure(bench: Bench) -> None:
    """The section. Without a card the imagined one of bench_syncs takes its place."""
    bench.start_comfyui()
    from cogvideox.tests.support import write_fp32_transformer

    runs = dict(list(RUNS.items())[:2]) if bench.smoke else RUNS
    with tempfile.TemporaryDirectory() as scratch:
        variants = {run.variant for run in runs.values()}
        folders = {variant: write_fp32_transformer(Path(scratch) / variant, variant) for variant in variants}
        for name, run in runs.items():
            bench.attempt(name, lambda name=name, run=run: _one(bench, name, run, folders), 2)


def _one(bench: Bench, name: str, run: Run, folders: Mapping[str, Path]) -> None:
    found = count_on_card(run, folders) if bench.on_card else count(run, folders)
    ours, theirs = (found.most(READ, is_ours) + found.most(UPLOAD, is_ours) for is_ours in (True, False))
    places = "; ".join(f"{place.where} x{times}" for place, times in sorted(found.places().items()))
    bench.check(f"{name}: waits of one step", ours, MOST, f"ComfyUI's {theirs}: {places or 'none'}", theirs=theirs)


def count_on_card(run: Run, folders: Mapping[str, Path]) -> Counted:
    """What the steps of a run wait for, by torch's sync debug mode and by the events that the pack waits for."""
    counter = WaitCounter()
    with torch.inference_mode(), counter.ended_steps(), _watched(counter):
        sample(run, folders)
    return counter.counted


@contextmanager
def _watched(counter: WaitCounter) -> Iterator[None]:
    from cogvideox.host import async_copies

    class CountedEvent(torch.cuda.Event):
        """The mode does not report events. One that is reached makes nobody wait."""

        def synchronize(self) -> None:
            if not self.query():
                counter.note(READ)
            super().synchronize()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            counter.note(READ)

    before = torch.cuda.get_sync_debug_mode()
    with (
        warnings.catch_warnings(),
        mock.patch.object(warnings, "showwarning", show),
        mock.patch.object(async_copies, "Event", CountedEvent),
    ):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
