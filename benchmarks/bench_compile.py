"""CogVideoX Compile: a forward with compiled blocks against one without, and what compiling takes at each start."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cogvideox.benchmarks.common import Table, arguments, interleave, median_spread, ratio, report, use_comfyui
from cogvideox.benchmarks.implementations import SIZES, make_inputs, relative_error, write_checkpoint

COLUMNS = ["model", "without", "compiled", "compiled / without", "error", "graphs", "compiling", "at the next start"]


def main() -> None:
    options = arguments(
        __doc__,
        layers={"type": int, "default": 2},
        heads={"type": int, "default": 16, "help": "of 64 each"},
        repeats={"type": int, "default": 5},
        variants={"nargs": "+", "choices": list(SIZES), "default": ["2b", "5b"]},
        child={"nargs": 2, "metavar": ("FOLDER", "VARIANT"), "help": "used by the benchmark itself"},
    )
    use_comfyui()
    if options.child:
        folder, variant = options.child
        print("\n" + " ".join(measure(Path(folder), variant, options.repeats)))
        return
    rows = []
    for variant in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), variant, options.layers, options.heads)
            first, second = (_in_a_new_process(Path(folder), variant, options.repeats) for _ in range(2))
        rows.append([variant, *first[:-1], first[-1], second[-1]])
        print(*rows[-1], flush=True)
    notes = [
        f"{options.layers} layers, {options.heads} heads of 64, "
        f"{', '.join(f'{v} {SIZES[v]}' for v in options.variants)} (latent frames, height, width), batch 1; fp32, "
        "random weights. Each start is a process of its own; the first finds an empty folder of torch's.",
        "Times are medians (least - most) of one process; the error is RMS over RMS.",
    ]
    report("compile", [Table("Compiled blocks", notes, COLUMNS, rows)], options.save)


def measure(folder: Path, variant: str, repeats: int) -> list[str]:
    """The cells of a row that one process gives: times, ratio, error, graphs, and the seconds of the first forward."""
    from cogvideox.keys import with_compiled_blocks
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.transformer.compiled_blocks import CompiledBlocks

    dit: Any = load_model(folder, "fp32").model.diffusion_model
    x, text, timestep = make_inputs(variant, dit.config)
    said: list[str] = []
    options = with_compiled_blocks({}, CompiledBlocks(said.append))
    calls = {
        "without": lambda: dit(x, timestep, context=text),
        "compiled": lambda: dit(x, timestep, context=text, transformer_options=options),
    }
    with torch.inference_mode():
        exact = calls["without"]()
        first = interleave({"compiled": calls["compiled"]}, 1, warmup=0)["compiled"][0]
        error = relative_error(calls["compiled"](), exact)
        seconds = interleave(calls, repeats)
    if len(said) != 1 or "Compiled" not in said[0]:
        raise RuntimeError(f"The blocks were not compiled: {' '.join(said)}")
    times = [median_spread(seconds[name], digits=3) for name in calls]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    cells = [*times, ratio(seconds["compiled"], seconds["without"]), f"{error:.1e}", str(graphs), f"{first:.1f} s"]
    return [cell.replace(" ", "_") for cell in cells]


def _in_a_new_process(folder: Path, variant: str, repeats: int) -> list[str]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    module = "cogvideox.benchmarks.bench_compile"
    command = [sys.executable, "-m", module, "--repeats", str(repeats), "--child", str(folder), variant]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [cell.replace("_", " ") for cell in done.stdout.splitlines()[-1].split(" ")]


if __name__ == "__main__":
    main()
