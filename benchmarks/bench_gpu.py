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
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

# Importing some packages asks whether there is a card: through the driver's library here, so that processes which are
# forked from this one can still use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch  # noqa: E402

from cogvideox.benchmarks.common import Table, arguments, report  # noqa: E402
from cogvideox.benchmarks.gpu_rows import FAILED, MISSING, Bench, Row  # noqa: E402
from cogvideox.complete_file import write_complete_text  # noqa: E402

SMOKE_TITLE = "SMOKE RUN: no figure here is a measurement"
COMFYUI_ALLOCATOR = "backend:cudaMallocAsync"  # what ComfyUI's main.py chooses (cuda_malloc.py)
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
GRACE = 3.0  # seconds a section may be late before it is ended


@dataclass(frozen=True)
class Section:
    """seconds: what it may take. function: where it is, "module:function". smoke: seconds of a smoke run. allocator:
    torch's, which only a process that is not forked can choose."""

    function: str
    seconds: float
    allocator: str | None = None
    smoke: float = 90.0


# In order of worth: where time runs out, the last ones are left out.
SECTIONS = {
    "ceilings": Section("cogvideox.benchmarks.gpu_ceilings:measure", 25),
    "parity": Section("cogvideox.benchmarks.gpu_parity:measure", 70),
    "parity-vae": Section("cogvideox.benchmarks.gpu_parity_vae:measure", 45),
    "parity-train": Section("cogvideox.benchmarks.gpu_parity_train:measure", 40),
    "nano": Section("cogvideox.benchmarks.gpu_nano:measure", 60),
    "dynamic": Section("cogvideox.benchmarks.gpu_dynamic:parity", 50, COMFYUI_ALLOCATOR),
    "server": Section("cogvideox.benchmarks.gpu_server:measure", 50),
    "whole": Section("cogvideox.benchmarks.gpu_steps:whole", 25),
    "step-5b": Section("cogvideox.benchmarks.gpu_steps:five", 70),
    "vae": Section("cogvideox.benchmarks.gpu_vae:measure", 60),
    "step-1.5": Section("cogvideox.benchmarks.gpu_steps:long", 70),
    "memory": Section("cogvideox.benchmarks.gpu_memory:measure", 50),
    "dynamic-5b": Section("cogvideox.benchmarks.gpu_dynamic:memory", 40, COMFYUI_ALLOCATOR),
    "step-2b": Section("cogvideox.benchmarks.gpu_steps:two", 20),
    "few-bits": Section("cogvideox.benchmarks.gpu_steps:few_bits", 30),
    "compile": Section("cogvideox.benchmarks.gpu_steps:compiled", 60),
    "train-5b": Section("cogvideox.benchmarks.gpu_train:measure", 40),
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
    for name in options.sections.split(","):
        section = SECTIONS[name]
        left = ends - time.monotonic()
        limit = min(section.smoke if options.smoke else section.seconds, left)
        if limit < min(10.0, section.seconds / 2):
            rows.append(Row(name, name, f"{max(0.0, left):.0f} s are left", MISSING))
        else:
            run_section(name, section, limit, options, rows, start_method)
        write_results(rows, options)
    return rows


def run_section(
    name: str, section: Section, limit: float, options: Namespace, rows: list[Row], start_method: str
) -> None:
    """Run one section in a process; its rows are appended to `rows` and written as they come."""
    print(f"== {name}: at most {limit:.0f} s", flush=True)
    on_its_own = section.allocator is not None and options.device == "cuda"
    context: Any = multiprocessing.get_context("spawn" if on_its_own else start_method)
    receiver, sender = context.Pipe(duplex=False)
    arguments = name, section.function, options.device, options.smoke, limit, sender
    process = context.Process(target=_work, args=arguments)
    began = time.monotonic()
    with mock.patch.dict(os.environ, {ALLOCATOR: section.allocator} if on_its_own else {}):
        process.start()
    sender.close()
    end = "ended"
    try:
        while time.monotonic() < began + limit + GRACE:
            if receiver.poll(0.2):
                rows.append(receiver.recv())
                write_results(rows, options)
            elif not process.is_alive():
                break
        else:
            end = "was ended: its time was over"
    except EOFError:
        pass
    process.join(2.0)
    if process.is_alive():
        _end(process)
        process.join(10.0)
        rows.append(Row(name, name, f"{end} after {time.monotonic() - began:.0f} s", MISSING))
    elif process.exitcode != 0:
        rows.append(Row(name, name, f"its process ended with status {process.exitcode}", FAILED))
    seconds = time.monotonic() - began
    rows.append(Row(name, f"section {name}", f"took {seconds:.0f} s", values={"seconds": seconds}))


def _end(process: Any) -> None:
    """Kill a section with whatever it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):  # it has not come as far as to its group
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _work(name: str, function: str, device: str, smoke: bool, seconds: float, sender: Connection) -> None:
    """The process of a section."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    bench = Bench(name, device, smoke, seconds, sender.send)
    module, attribute = function.split(":")
    try:
        getattr(importlib.import_module(module), attribute)(bench)
    except Exception as error:  # it has to reach the table, whatever it is
        traceback.print_exc()
        bench.row(name, f"{type(error).__name__}: {str(error)[:200]}", FAILED, traceback=traceback.format_exc()[-3000:])
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without what Python and CUDA would do at the end, which takes seconds and can hang.
    os._exit(0)


def preload() -> None:
    """Import what every section needs and what does not touch a card, so that forked processes have it already."""
    for module in ("diffusers", "transformers", "accelerate", "peft", "einops", "safetensors.torch", "scipy.integrate"):
        importlib.import_module(module)
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
    from transformers import T5EncoderModel

    assert AutoencoderKLCogVideoX and CogVideoXPipeline and CogVideoXTransformer3DModel and T5EncoderModel


def find_start_method(device: str) -> str | None:
    """How processes are started that can use `device`: forked, which saves seconds of imports each, or else anew; None
    where neither can."""
    known = multiprocessing.get_all_start_methods()
    for method in ("fork", "spawn"):
        if method in known:
            probe = multiprocessing.get_context(method).Process(target=_touch, args=(device,))
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
