"""What the pack adds to ComfyUI's start: time, memory, modules; and the real server's start with and without it."""

import asyncio
import gc
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from cogvideox.benchmarks.common import (
    ROOT,
    Table,
    arguments,
    interleave,
    median_spread,
    report,
    use_comfyui,
)
from cogvideox.devtools import comfyui
from cogvideox.devtools.paths import PACK_NAME
from cogvideox.devtools.server import running_server
from cogvideox.host.standalone import comfyui_from_environment, comfyui_nodes

FORBIDDEN = ("diffusers", "accelerate", "peft")


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 5, "help": "fresh processes that import the pack"},
        servers={"type": int, "default": 3, "help": "starts of the server with the pack, and as many without"},
        child={"action": "store_true", "help": "measure in this process and print JSON (used by this script)"},
    )
    if options.child:
        print(json.dumps(import_pack()))
        return
    tables = [import_table(options.repeats)]
    if options.servers:
        tables.append(server_table(options.servers))
    report("start", tables, options.save)


def import_table(repeats: int) -> Table:
    command = [sys.executable, __file__, "--child"]
    # Users' Python keeps bytecode; where it may not, the pack would be compiled at each start, and that be measured.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    results = []
    for _ in range(repeats + 1):
        out = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(out.stdout.splitlines()[-1]))
    results = results[1:]  # the first one wrote the bytecode
    seconds, cpu_seconds, mebibytes = ([r[key] for r in results] for key in ("seconds", "cpu_seconds", "mebibytes"))
    return Table(
        "Importing the pack",
        [
            f"ComfyUI's own load_custom_node in {repeats} fresh processes that have imported what ComfyUI itself "
            "imports; median (least - most). Bytecode is written already. CPU time is that of the process: on a busy "
            "machine it is what the pack adds, and the time is mostly waiting.",
        ],
        ["what", "measured", "goal"],
        [
            ["time", median_spread(seconds, "s", 3), "0.1 s"],
            ["CPU time", median_spread(cpu_seconds, "s", 3), "0.1 s"],
            ["resident memory", median_spread(mebibytes, "MiB", 1), "10 MiB"],
            ["nodes", str(results[0]["nodes"]), ""],
            ["new modules", str(results[0]["modules"]), ""],
            *([f"{name} loaded", "yes" if name in results[0]["forbidden"] else "no", "no"] for name in FORBIDDEN),
        ],
    )


def import_pack() -> dict[str, Any]:
    """Load the pack as ComfyUI does, in a process like ComfyUI's at that moment; returns what that took."""
    use_comfyui()
    for name in ("execution", "server", "latent_preview", "comfy.sd", "comfy_api.latest"):
        importlib.import_module(name)
    # ComfyUI reads every pack's pyproject.toml with it, and imports it for the first pack, whichever that is.
    if importlib.util.find_spec("comfy_config.config_parser"):
        importlib.import_module("comfy_config.config_parser")
    nodes = comfyui_nodes()

    gc.collect()
    modules, names = set(sys.modules), set(nodes.NODE_CLASS_MAPPINGS)
    process = psutil.Process()
    resident, cpu_began, began = process.memory_info().rss, time.process_time(), time.perf_counter()
    loaded = asyncio.run(nodes.load_custom_node(str(ROOT)))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    if not loaded:
        sys.exit("ComfyUI could not load the pack; its message is above.")
    new = set(sys.modules) - modules
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "mebibytes": (process.memory_info().rss - resident) / 2**20,
        "nodes": len(set(nodes.NODE_CLASS_MAPPINGS) - names),
        "modules": len(new),
        "forbidden": sorted({name.split(".")[0] for name in new} & set(FORBIDDEN)),
    }


def server_table(repeats: int) -> Table:
    memory: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        bases = {name: prepare_base(Path(folder) / name, name == "with") for name in memory}
        seconds = interleave(
            {name: lambda name=name: memory[name].append(start_server(bases[name])) for name in memory}, repeats
        )
    memory = {name: values[1:] for name, values in memory.items()}
    rows = [[f"{name} the pack", median_spread(seconds[name]), median_spread(memory[name], "MiB", 0)] for name in bases]
    return Table(
        "Start of the real server, to its first answer over HTTP, and stop",
        [f"{repeats} starts of each in turn after a warm-up; asked for an answer every 0.2 s. API nodes are off."],
        ["server", "time", "resident memory"],
        rows,
    )


def prepare_base(base: Path, with_pack: bool) -> Path:
    """A --base-directory with this clone as its only custom node, or with none."""
    comfyui.prepare_base(base, ROOT, PACK_NAME)
    if not with_pack:
        link = base / "custom_nodes" / PACK_NAME
        link.unlink()
    return base


def start_server(base: Path) -> float:
    """Start and stop ComfyUI; returns its resident memory in MiB when it first answers."""
    with running_server(comfyui_from_environment(), base, log=base / "server.log", cpu=True) as running:
        return psutil.Process(running.process.pid).memory_info().rss / 2**20


if __name__ == "__main__":
    main()
