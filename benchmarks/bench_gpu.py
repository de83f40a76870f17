"""One run on one card: is what is computed there right, how fast is it, and what does it hold, in a few minutes.

Each section runs in a process of its own with a time of its own: one that fails, hangs or poisons the card costs
itself alone. Rows are written to results.json as they come; a table is printed at the end.
"""

import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest import mock

# Importing some packages asks whether there is a card: through the driver's library here, so that processes which are
# forked from this one can still use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch  # noqa: E402

from cogvideox.benchmarks import (  # noqa: E402
    gpu_ceilings,
    gpu_dynamic,
    gpu_kernels,
    gpu_memory,
    gpu_nano,
    gpu_parity,
    gpu_parity_train,
    gpu_parity_vae,
    gpu_server,
    gpu_steps,
    gpu_syncs,
    gpu_train,
    gpu_vae,
)
from cogvideox.benchmarks.common import Table, arguments, report  # noqa: E402
from cogvideox.benchmarks.gpu_rows import FAILED, MISSING, Bench, Row  # noqa: E402
from cogvideox.system.complete_file import write_complete_text  # noqa: E402

SMOKE_TITLE = "SMOKE RUN: no figure here is a measurement"
COMFYUI_ALLOCATOR = "backend:cudaMallocAsync"  # what ComfyUI's main.py chooses (cuda_malloc.py)
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
GRACE = 3.0  # seconds a section may be late before it is ended


@dataclass(frozen=True)
class Section:
    """seconds: what it may take. smoke: the same in a smoke run. allocator: torch's, which only a process that is not
    forked can choose. together: it measures no time, so that it runs beside those next to it that do not either."""

    function: Callable[[Bench], object]
    seconds: float
    allocator: str | None = None
    together: bool = False
    smoke: float = 90.0


# In order of worth: where time runs out, the last ones are left out.
SECTIONS = {
    "ceilings": Section(gpu_ceilings.measure, 25),
    "kernels": Section(gpu_kernels.measure, 40),
    "parity": Section(gpu_parity.measure, 190, together=True),
    "parity-vae": Section(gpu_parity_vae.measure, 190, together=True),
    "parity-train": Section(gpu_parity_train.measure, 190, together=True),
    "nano": Section(gpu_nano.measure, 190, together=True),
    "dynamic": Section(gpu_dynamic.parity, 190, COMFYUI_ALLOCATOR, together=True),
    "server": Section(gpu_server.measure, 190, together=True),
    "syncs": Section(gpu_syncs.measure, 40),
    "whole": Section(gpu_steps.whole, 25),
    "step-5b": Section(gpu_steps.five, 110),
    "run-5b": Section(gpu_memory.measure_whole, 90),
    "vae": Section(gpu_vae.measure, 60),
    "step-1.5": Section(gpu_steps.long, 75),
    "memory": Section(gpu_memory.measure, 50),
    "dynamic-5b": Section(gpu_dynamic.memory, 40, COMFYUI_ALLOCATOR),
    "step-2b": Section(gpu_steps.two, 20),
    "few-bits": Section(gpu_steps.few_bits, 30),
    "compile": Section(gpu_steps.compiled, 90),
    "memory-lean": Section(gpu_memory.measure_lean, 90),
    "train-5b": Section(gpu_train.measure, 40),
}


def main() -> None:
    options = arguments(
        __doc__,
        seconds={"type": float, "default": 400.0, "help": "in all; sections that no longer fit are left out"},
        sections={"default": ",".join(SECTIONS), "help": "names with commas between them, in the order given"},
        out={"type": Path, "help": "folder for results.json; by default a new one among the temporary files"},
        smoke={"action": "store_true", "help": "tiny shapes, to see that every section runs; measures nothing"},
        device={"choices": ("cpu", "cuda"), "help": "cuda by default, cpu in a smoke run"},
    )
    options.device = options.device or ("cpu" if options.smoke else "cuda")
    unknown = [name for name in options.sections.split(",") if name not in SECTIONS]
    if unknown:
        sys.exit(f"There is no section {', '.join(unknown)}. There are: {', '.join(SECTIONS)}.")
    preload()
    start_method = find_start_method(options.device)
    if start_method is None:
        print("There is no NVIDIA card here, or this torch was built without CUDA: nothing is measured.")
        return
    options.out = options.out or Path(tempfile.mkdtemp(prefix="cogvideox-gpu-"))
    options.out.mkdir(parents=True, exist_ok=True)
    rows = run_all(options, start_method)
    table = tabulate(rows, options)
    failed = [row for row in rows if row.verdict == FAILED]
    # Printed here and not by report, which asks the card for its name: it may answer no more.
    print("", table.markdown(), "", *(f"FAILED: {row.what}: {row.found}" for row in failed), sep="\n", flush=True)
    print(f"{len(rows)} rows, {len(failed)} failed: {options.out / 'results.json'}", flush=True)
    if options.smoke:
        print(SMOKE_TITLE)
        # Whoever tests this script learns of a section that does not run; on a card the table says it.
        sys.exit(1 if failed else 0)
    if options.save:
        report("gpu", [table], True, "cuda")


def run_all(options: Namespace, start_method: str) -> list[Row]:
    """Every section in turn; what has come is on disk at any time. start_method: of multiprocessing."""
    ends, rows = time.monotonic() + options.seconds, list[Row]()
    for names in batches(options.sections.split(","), options.device == "cuda"):
        left = ends - time.monotonic()
        wanted = max(SECTIONS[name].smoke if options.smoke else SECTIONS[name].seconds for name in names)
        if min(wanted, left) < min(10.0, wanted / 2):
            rows.extend(Row(name, name, f"{max(0.0, left):.0f} s are left", MISSING) for name in names)
        else:
            run_sections({name: SECTIONS[name] for name in names}, min(wanted, left), options, rows, start_method)
        write_results(rows, options)
    return rows


def batches(names: Sequence[str], together: bool) -> list[list[str]]:
    """Which sections run at the same time: neighbours that measure no time, if `together`."""
    found: list[list[str]] = []
    for name in names:
        if together and found and SECTIONS[name].together and SECTIONS[found[-1][-1]].together:
            found[-1].append(name)
        else:
            found.append([name])
    return found


@dataclass
class Running:
    """A section's process, where its rows come from, and when it began."""

    name: str
    process: Any
    receiver: Connection
    began: float


def run_sections(
    sections: Mapping[str, Section], limit: float, options: Namespace, rows: list[Row], start_method: str
) -> None:
    """Run sections at the same time; their rows are appended to `rows` and written as they come."""
    print(f"== {', '.join(sections)}: at most {limit:.0f} s", flush=True)
    running = [_start(name, section, limit, options, start_method) for name, section in sections.items()]
    while running:
        for receiver in wait([one.receiver for one in running], 0.2):
            (one,) = (one for one in running if one.receiver is receiver)
            try:
                rows.append(one.receiver.recv())
            except EOFError:  # it is done, or dead
                _join(one, "", rows)
                running.remove(one)
            write_results(rows, options)
        for one in [one for one in running if time.monotonic() > one.began + limit + GRACE]:
            _join(one, "its time was over", rows)
            running.remove(one)
            write_results(rows, options)


def _start(name: str, section: Section, limit: float, options: Namespace, start_method: str) -> Running:
    on_its_own = section.allocator is not None and options.device == "cuda"
    context: Any = multiprocessing.get_context("spawn" if on_its_own else start_method)
    receiver, sender = context.Pipe(duplex=False)
    arguments = name, section.function, options.device, options.smoke, limit, sender
    process = context.Process(target=_work, args=arguments)
    with mock.patch.dict(os.environ, {ALLOCATOR: section.allocator} if on_its_own else {}):
        process.start()
    sender.close()
    return Running(name, process, receiver, time.monotonic())


def _join(one: Running, reason: str, rows: list[Row]) -> None:
    """Wait for a section's process, or end it where there is a reason to; note how it ended."""
    if not reason:
        one.process.join(5.0)
    seconds = time.monotonic() - one.began
    if one.process.is_alive():
        _end(one.process)
        one.process.join(10.0)
        # What it had sent before, of which one row is read at a time.
        with suppress(EOFError, OSError):
            while one.receiver.poll():
                rows.append(one.receiver.recv())
        rows.append(Row(one.name, one.name, f"was ended after {seconds:.0f} s: {reason or 'it hung'}", MISSING))
    elif one.process.exitcode != 0:
        rows.append(Row(one.name, one.name, f"its process ended with status {one.process.exitcode}", FAILED))
    rows.append(Row(one.name, f"section {one.name}", f"took {seconds:.0f} s", values={"seconds": seconds}))
    one.receiver.close()


def _end(process: Any) -> None:
    """Kill a section with whatever it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):  # it has not come as far as to its group
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _work(
    name: str, function: Callable[[Bench], object], device: str, smoke: bool, seconds: float, sender: Connection
) -> None:
    """The process of a section."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    bench = Bench(name, device, smoke, seconds, sender.send)
    try:
        function(bench)
    except Exception as error:  # it has to reach the table, whatever it is
        traceback.print_exc()
        bench.row(name, f"{type(error).__name__}: {str(error)[:200]}", FAILED, traceback=traceback.format_exc()[-3000:])
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without what Python and CUDA would do at the end, which takes seconds and can hang.
    os._exit(0)


def preload() -> None:
    """Import what sections need and what does not touch a card, so that forked processes have it already."""
    for module in ("accelerate", "peft", "einops", "safetensors.torch", "scipy.integrate"):
        importlib.import_module(module)
    transformers: Any = importlib.import_module("transformers")
    transformers.T5EncoderModel  # noqa: B018  (it is imported when it is first asked for)


def find_start_method(device: str) -> str | None:
    """How processes are started that can use `device`: forked, which saves seconds of imports each, or else as new
    ones; None where neither can."""
    known = multiprocessing.get_all_start_methods()
    for method in ("fork", "spawn"):
        if method in known:
            context: Any = multiprocessing.get_context(method)
            probe = context.Process(target=_touch, args=(device,))
            probe.start()
            probe.join()
            if probe.exitcode == 0:
                return method
    return None


def _touch(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (AssertionError, RuntimeError) as error:
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        os._exit(1)
    os._exit(0)


def write_results(rows: list[Row], options: Namespace) -> None:
    kept = {
        "measurement": not options.smoke and options.device == "cuda",
        "note": SMOKE_TITLE if options.smoke else "",
        "rows": [{"smoke": options.smoke, **row.as_json()} for row in rows],
    }
    write_complete_text(options.out / "results.json", json.dumps(kept, indent=1, default=str))


def tabulate(rows: list[Row], options: Namespace) -> Table:
    mark = "smoke: " if options.smoke else ""
    cells = [
        [row.section, mark + row.what.replace("|", "/"), row.found.replace("|", "/"), row.predicted, row.verdict]
        for row in rows
    ]
    notes = [
        f"Random weights of the official sizes, and tiny models of every family; device {options.device}.",
        "predicted: by a cost model of 750 TFLOP/s for products, 324 and 413 TFLOP/s for attention, and 3.0 TB/s.",
        *([SMOKE_TITLE] if options.smoke else []),
    ]
    title = SMOKE_TITLE if options.smoke else "One run on one card"
    return Table(title, notes, ["section", "what", "found", "predicted", "verdict"], cells)


if __name__ == "__main__":
    main()
