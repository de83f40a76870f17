"""Loading a transformer of 1 GB of every layout until every weight is in memory, against a read of the same bytes."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from cogvideox.benchmarks.common import (
    Table,
    arguments,
    interleave,
    median_spread,
    random_weights,
    ratio,
    report,
    unload_models,
    use_comfyui,
)

LAYERS, HEADS = 4, 48  # of 5b's 42 layers, at its width: 1.1 GB in bf16
SHARD_SIZE = "300MB"
PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096
SAMPLE_S = 0.002
CACHES = ("warm", "cold") if hasattr(os, "posix_fadvise") else ("warm",)


@dataclass(frozen=True)
class Way:
    """A file of one layout, loaded with one weight_dtype."""

    layout: str
    weight_dtype: str
    computes: str = "bf16"  # "bf16" as on a card, "fp32" as ComfyUI has it on a CPU
    becomes: str = ""  # where it is converted

    @property
    def name(self) -> str:
        return f"{self.layout} -> {self.becomes}" if self.becomes else self.layout


WAYS = (
    Way("bf16, diffusers' shards", "bf16"),
    Way("bf16, one file", "bf16"),
    Way("bf16, ComfyUI's names", "bf16"),
    Way("bf16, SAT .pt", "bf16"),
    Way("fp8, plain", "default"),
    Way("fp8, scaled", "default"),
    Way("int8, ComfyUI's", "default"),
    Way("GGUF Q8_0", "default", "fp32"),
    Way("bf16, one file", "fp8_e4m3fn", becomes="fp8"),
    Way("bf16, one file", "int8", becomes="int8"),
    Way("bf16, one file", "default", "fp32", becomes="fp32"),
)
LAYOUTS = tuple(dict.fromkeys(way.layout for way in WAYS))


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 7, "help": "with the files in the page cache; half as many without"},
        layers={"type": int, "default": LAYERS, "help": "of a bf16 file; files of 8 bits have 7 for every 4"},
        layouts={"nargs": "+", "choices": LAYOUTS, "default": list(LAYOUTS)},
        child={"nargs": 2, "metavar": ("WAY", "FOLDER"), "help": "load in this process (used by this script)"},
    )
    if options.child:
        child(options.child[0], Path(options.child[1]), options.repeats)
        return
    use_comfyui()
    rows = []
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            files = write_checkpoint(Path(folder), layout, options.layers)
            size = sum(file.stat().st_size for file in files)
            timed = run_child(layout, Path(folder), options.repeats)
            for way in WAYS:
                if way.layout == layout:
                    rows.append((way, size, timed, watch_child(way.name, Path(folder))))
                    print(way.name, row(*rows[-1], "warm"), flush=True)
    report("load", [table(cache, rows, options) for cache in CACHES], options.save)


def table(cache: str, rows: list[tuple], options: object) -> Table:
    state = {
        "warm": "The files are in the page cache",
        "cold": "The page cache was asked to drop the files (posix_fadvise); what a virtual disk's host keeps stays",
    }
    header = ["layout", "weights are", "file", "load", "read", "load / read", "peak anonymous", "peak resident"]
    return Table(
        f"Loading a transformer, {cache}",
        [
            f"{state[cache]}. {options.layers} layers of 5b ({options.layers * 7 // 4} where the weights have 8 bits). "
            f"Load and read in turn in one process, {count(cache, options.repeats)} times each; imports and a first "
            "load are not counted.",
            "load: load_model, ComfyUI's load_models_gpu, and a byte of every page of every weight read. "
            "read: readinto a buffer whose pages exist beforehand.",
            "Nothing is converted, but where an arrow says so: the bf16 files of SAT are split and joined, the rest "
            "stays mapped. What computes in bf16 is loaded as on a card, by overruling ComfyUI's rule against bf16 on "
            "CPUs; GGUF is loaded as on a CPU, whose fp32 is what its small weights are in the file.",
            "Memory is the peak above a fresh process before it loads, in multiples of the files. Anonymous memory is "
            "the process's own; resident counts mapped pages of the files too, which the system may drop at any time.",
            "Goals without conversion, warm: 1.15 times the read for safetensors, 1.1 times the file.",
        ],
        header,
        [[way.name, *row(way, size, timed, memory, cache)] for way, size, timed, memory in rows],
    )


def row(way: Way, size: int, timed: dict, memory: dict, cache: str) -> list[str]:
    load, read = timed[cache][way.name], timed[cache]["read"]
    peaks = [f"{memory[key] / size:.2f}" for key in ("anonymous", "resident")]
    times = [median_spread(load), f"{statistics.median(read):.2f} s", ratio(load, read)]
    return [timed["held"][way.name], f"{size / 1e9:.2f} GB", *times, *peaks]


def count(cache: str, repeats: int) -> int:
    return repeats if cache == "warm" else -(-repeats // 2)


def write_checkpoint(folder: Path, layout: str, layers: int) -> list[Path]:
    """A transformer of 5b's width with random weights; returns its files."""
    from huggingface_hub import save_torch_state_dict

    layers = layers if layout.startswith("bf16") else layers * 7 // 4
    weights = random_weights(folder, layers, HEADS, text_embed_dim=4096, time_embed_dim=512)
    if layout == LAYOUTS[0]:
        pattern = "diffusion_pytorch_model{suffix}.safetensors"
        save_torch_state_dict(weights, folder, filename_pattern=pattern, max_shard_size=SHARD_SIZE)
        return weight_files(folder)
    names = {
        "bf16, one file": "diffusers bf16",
        "bf16, ComfyUI's names": "ComfyUI",
        "bf16, SAT .pt": "SAT .pt",
        "fp8, plain": "plain fp8",
        "fp8, scaled": "scaled fp8",
        "int8, ComfyUI's": "int8, ComfyUI",
    }
    from cogvideox.tests import layout_files

    return [layout_files.TRANSFORMER_LAYOUTS[names.get(layout, layout)](folder, weights)]


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".gguf", ".pt", ".safetensors"))


def warm_cache(files: list[Path]) -> None:
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass


def drop_cache(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_child(layout: str, folder: Path, repeats: int) -> dict:
    """What a process that loads and reads in turn found out."""
    command = [sys.executable, __file__, "--repeats", str(repeats), "--child", layout, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        return json.loads(wait_for(child, "{"))


def watch_child(way: str, folder: Path) -> dict[str, int]:
    """Load once in a fresh process and follow its memory from outside: peak bytes above what it had before."""
    import psutil

    warm_cache(weight_files(folder))
    command = [sys.executable, __file__, "--child", f"watch {way}", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        wait_for(child, "ready")
        process = psutil.Process(child.pid)
        before = peak = memory(process)
        child.stdin.write("go\n")
        child.stdin.flush()
        while child.poll() is None and not has_answer(child):
            peak = tuple(map(max, peak, memory(process)))
            time.sleep(SAMPLE_S)
        peak = tuple(map(max, peak, memory(process)))  # the child holds its weights until it is told to end
        wait_for(child, "{")
        child.stdin.close()
    return {"anonymous": peak[0] - before[0], "resident": peak[1] - before[1]}


def memory(process: object) -> tuple[int, int]:
    """(anonymous, resident) bytes."""
    info = process.memory_info()
    return info.rss - getattr(info, "shared", 0), info.rss


def wait_for(child: subprocess.Popen, beginning: str) -> str:
    for line in child.stdout:
        if line.startswith(beginning):
            return line
    sys.exit(f"The measured process ended with status {child.wait()}; its message is above.")


def has_answer(child: subprocess.Popen) -> bool:
    import select

    return bool(select.select([child.stdout], [], [], 0)[0])


def child(what: str, folder: Path, repeats: int) -> None:
    """Time every way to load a layout, or `watch` one of them: say `ready`, wait for a line, load, say so, and keep
    the memory until the input ends."""
    use_comfyui()
    from cogvideox.transformer import dit  # noqa: F401  imports diffusers

    if list(folder.glob("*.gguf")):
        import gguf  # noqa: F401
    if what.startswith("watch "):
        way = next(way for way in WAYS if f"watch {way.name}" == what)
        print("ready", flush=True)
        sys.stdin.readline()
        kept = load(way, folder)
        print(json.dumps({"held": held(kept)}), flush=True)
        sys.stdin.read()
        return
    print(json.dumps(time_ways([way for way in WAYS if way.layout == what], folder, repeats)), flush=True)


def time_ways(ways: list[Way], folder: Path, repeats: int) -> dict:
    files = weight_files(folder)
    buffers = [bytearray(file.stat().st_size) for file in files]
    for buffer in buffers:
        buffer[::PAGE] = b"\1" * len(buffer[::PAGE])

    def read() -> None:
        for file, buffer in zip(files, buffers):
            read_into(file, buffer)

    calls = {way.name: lambda way=way: load(way, folder) for way in ways}
    result = {"held": {}}
    for name, call in calls.items():  # the first load, which is not counted
        result["held"][name] = held(call())
        unload_models()
    calls["read"] = read
    for cache in CACHES:

        def prepare(name: str, cache: str = cache) -> None:
            unload_models()
            (warm_cache if cache == "warm" else drop_cache)(files)

        result[cache] = interleave(calls, count(cache, repeats), 0, prepare)
    return result


def load(way: Way, folder: Path) -> object:
    """The MODEL with every page of every weight in memory."""
    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model

    with computing(way.computes):
        patcher = load_model(folder, way.weight_dtype)
    mm.load_models_gpu([patcher])
    touch(patcher.model.diffusion_model)
    return patcher


@contextlib.contextmanager
def computing(dtype: str) -> Iterator[None]:
    """While a model is loaded that is to compute in bf16 on a CPU as well."""
    import comfy.model_management as mm

    rule = mm.should_use_bf16 if dtype == "fp32" else lambda *a, **k: True
    with mock.patch.object(mm, "should_use_bf16", rule):
        yield


def plain_tensors(tensor: object) -> list:
    """What a weight consists of: codes and scales where it is quantised, itself where it is not."""
    from cogvideox.host.quantized import is_quantized

    if not is_quantized(tensor):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def held(patcher: object) -> str:
    """The types that most of a model's weights have, the larger part first."""
    sizes: dict[str, int] = {}
    for parameter in patcher.model.diffusion_model.parameters():
        data = plain_tensors(parameter.data)[0]
        blocks = getattr(getattr(parameter, "_params", None), "block_format", None)
        name = blocks.name if blocks else str(data.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + data.numel() * data.element_size()
    return ", ".join(sorted(sizes, key=sizes.get, reverse=True))


def read_into(file: Path, buffer: bytearray) -> None:
    view = memoryview(buffer)
    with file.open("rb", buffering=0) as opened:
        done = 0
        while done < len(buffer):
            done += opened.readinto(view[done:])


def touch(module: object) -> None:
    """Bring every page of every weight into memory."""
    import torch

    with torch.inference_mode():
        for parameter in module.parameters():
            for tensor in plain_tensors(parameter.data):
                tensor.flatten().view(torch.uint8)[::PAGE].sum()


if __name__ == "__main__":
    main()
