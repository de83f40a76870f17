"""What the benchmarks share: the pack inside a real ComfyUI, interleaved timing, and tables for people.

A benchmark imports `comfy`, and whatever of the package imports it, inside its functions: `use_comfyui` must be called
before the first such import, and whether it selects the CPU depends on the command line. torch, diffusers and types
(under TYPE_CHECKING) are imported at the top.
"""

import argparse
import datetime
import gc
import importlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from cogvideox.devtools.embedded_checkpoint import transformer_config
from cogvideox.devtools.paths import ROOT
from cogvideox.devtools.result_files import Table as Table  # the scripts import it from here, with the rest
from cogvideox.devtools.result_files import write_section
from cogvideox.host.standalone import comfyui_from_environment
from cogvideox.host.standalone import use_comfyui as use_comfyui  # the scripts import it from here, with the rest


def arguments(description: str | None, **options: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line: --save, and `options`, each the keyword arguments of add_argument under its name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results as well")
    for name, option in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **option)
    return parser.parse_args()


def interleave(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Time every call `repeats` times, in turn (A B C B C A), so that a slow minute hits all of them alike.

    prepare(name) is called before each call and is not timed; by then what the last call returned has been freed.
    Returns the seconds of every call, by name, without the `warmup` first rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(warmup + repeats):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            prepare(name)
            began = time.perf_counter()
            returned = calls[name]()
            elapsed = time.perf_counter() - began
            del returned
            if i >= warmup:
                seconds[name].append(elapsed)
    return seconds


def unload_models() -> None:
    """Unload every model from ComfyUI, which takes merged LoRAs out of the weights, and free what that leaves."""
    import comfy.model_management as mm

    mm.unload_all_models()
    mm.cleanup_models()
    gc.collect()


def random_weights(folder: Path, layers: int, heads: int, **config: Any) -> dict[str, torch.Tensor]:
    """Write config.json of a transformer like 5b's to `folder`; returns random weights for it, by diffusers' names.

    Weights are bf16. config: further fields of diffusers' config.
    """
    # Imported late: `bench_start` must not load diffusers.
    from diffusers import CogVideoXTransformer3DModel

    shape = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 64, **config}
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**transformer_config("5b", **shape))
    model.save_config(folder)
    weights = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, dtype=torch.bfloat16)
        # As in a trained model: a matrix keeps the magnitude of its input, a vector stays near its default.
        weights[name] = noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.05 * noise + ("norm" in name)
    return weights


def median_spread(values: Sequence[float], unit: str = "s", digits: int = 2) -> str:
    """The cell `median (least - most)` of a table."""
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} {unit} ({least:.{digits}f} - {most:.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median over median."""
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}"


def machine() -> str:
    """The machine and the versions in one line."""
    cores, memory = psutil.cpu_count(logical=True), psutil.virtual_memory().total / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers")]
    comfyui = next(iter(_quoted_version(comfyui_from_environment() / "comfyui_version.py")), "unknown")
    return (
        f"{_cpu_name()}, {cores} cores, {memory:.0f} GiB, {device}; Python {platform.python_version()}, "
        f"{', '.join(versions)}, ComfyUI {comfyui}; load {_load()}"
    )


def report(benchmark: str, tables: Sequence[Table], save: bool, device: str = "cpu") -> None:
    """Print the tables; with `save`, write them to today's file of results, in place of an earlier run's."""
    today = datetime.date.today().isoformat()
    body = "\n\n".join([f"{today}. {machine()}", *(table.markdown() for table in tables)])
    print(f"\n{body}\n", flush=True)
    if save:
        path = write_section(benchmark, body, device)
        print(f"Written to {path.relative_to(ROOT)}", flush=True)


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _quoted_version(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [line.split('"')[1] for line in text.splitlines() if line.startswith("__version__") and '"' in line]


def stored_bytes(tensor: Any) -> int:
    """Bytes of a tensor, or of the plain tensors that a subclass consists of; torchao's subclasses too."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name, None) for name in tensor.__tensor_flatten__()[0]]
        return sum(stored_bytes(part) for part in parts if part is not None)
    return tensor.numel() * tensor.element_size()
