"""Loading a transformer of 1 GB of every layout until every weight is in memory, against a read of the same bytes."""

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict
from unittest import mock

import psutil
import torch
from huggingface_hub import save_torch_state_dict

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
from cogvideox.tests import layout_files

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

LAYERS, HEADS = 4, 48  # of 5b's 42 layers, at its width: 1.1 GB in bf16
SHARD_SIZE = "300MB"
PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096
SAMPLE_S = 0.002
CACHES = ("warm", "cold") if hasattr(os, "posix_fadvise") else ("warm",)


@dataclass(frozen=True)
class Case:
    """A file of one layout, loaded with one weight_dtype."""

    layout: str
    weight_dtype: str
    compute_dtype: str = "bf16"  # "bf16" as on a GPU, "fp32" as ComfyUI chooses on a CPU
    converted_to: str = ""  # the type that the weights are converted to; "" where they stay as they are

    @property
    def name(self) -> str:
        return f"{self.layout} -> {self.converted_to}" if self.converted_to else self.layout


CASES = (
    Case("bf16, diffusers' shards", "bf16"),
    Case("bf16, one file", "bf16"),
    Case("bf16, ComfyUI's names", "bf16"),
    Case("bf16, SAT .pt", "bf16"),
    Case("fp8, plain", "default"),
    Case("fp8, scaled", "default"),
    Case("int8, ComfyUI's", "default"),
    Case("GGUF Q8_0", "default", "fp32"),
    Case("bf16, one file", "fp8_e4m3fn", converted_to="fp8"),
    Case("bf16, one file", "int8", converted_to="int8"),
    Case("bf16, one file", "default", "fp32", converted_to="fp32"),
)
LAYOUTS = tuple(dict.fromkeys(case.layout for case in CASES))


class Memory(TypedDict):
    """Peak bytes of a process above what it had before. resident counts mapped pages of files too."""

    anonymous: int
    resident: int


class Timed(TypedDict):
    """What a child process has measured. held: the types of the weights, by case. seconds: of every case and of "read",
    by state of the page cache."""

    held: dict[str, str]
    seconds: dict[str, dict[str, list[float]]]


Row = tuple[Case, int, Timed, Memory]  # the int: bytes of the files


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 7, "help": "with the files in the page cache; half as many without"},
        layers={"type": int, "default": LAYERS, "help": "of a bf16 file; files of 8 bits have 7 for every 4"},
        layouts={"nargs": "+", "choices": LAYOUTS, "default": list(LAYOUTS)},
        child={"nargs": 2, "metavar": ("CASE", "FOLDER"), "help": "load in this process (used by this script)"},
    )
    if options.child:
        child(options.child[0], Path(options.child[1]), options.repeats)
        return
    use_comfyui()
    rows: list[Row] = []
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            files = write_checkpoint(Path(folder), layout, options.layers)
            size = sum(file.stat().st_size for file in files)
            timed = run_child(layout, Path(folder), options.repeats)
            for case in CASES:
                if case.layout == layout:
                    rows.append((case, size, timed, watch_child(case.name, Path(folder))))
                    print(case.name, row(*rows[-1], "warm"), flush=True)
    report("load", [table(cache, rows, options) for cache in CACHES], options.save)


def table(cache: str, rows: list[Row], options: Namespace) -> Table:
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
            "Weights are converted only where an arrow says so. The fused tensors of SAT's bf16 files are split; all "
            "others stay mapped. What computes in bf16 is loaded as on a GPU, by overruling ComfyUI's rule against "
            "bf16 on CPUs; GGUF is loaded as on a CPU, in fp32, which its small weights have in the file.",
            "Memory is the peak above a fresh process before it loads, in multiples of the files. Anonymous memory is "
            "the process's own; resident counts mapped pages of the files too, which the system may drop at any time.",
            "Goals without conversion, warm: 1.15 times the read for safetensors, 1.1 times the file.",
        ],
        header,
        [[case.name, *row(case, size, timed, memory, cache)] for case, size, timed, memory in rows],
    )


def row(case: Case, size: int, timed: Timed, memory: Memory, cache: str) -> list[str]:
    load, read = timed["seconds"][cache][case.name], timed["seconds"][cache]["read"]
    peaks = [f"{peak / size:.2f}" for peak in (memory["anonymous"], memory["resident"])]
    times = [median_spread(load), f"{statistics.median(read):.2f} s", ratio(load, read)]
    return [timed["held"][case.name], f"{size / 1e9:.2f} GB", *times, *peaks]


def count(cache: str, repeats: int) -> int:
    """How many times each case is timed."""
    return repeats if cache == "warm" else -(-repeats // 2)


def write_checkpoint(folder: Path, layout: str, layers: int) -> list[Path]:
    """Write a transformer of 5b's width with random weights; returns its files."""
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


def run_child(layout: str, folder: Path, repeats: int) -> Timed:
    """Have a fresh process load and read in turn; returns what it has measured."""
    command = [sys.executable, __file__, "--repeats", str(repeats), "--child", layout, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        return json.loads(wait_for(child, child.stdout, "{"))


def watch_child(case: str, folder: Path) -> Memory:
    """Have a fresh process load once, and follow its memory from outside."""
    warm_cache(weight_files(folder))
    command = [sys.executable, __file__, "--child", f"watch {case}", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        wait_for(child, child.stdout, "ready")
        process = psutil.Process(child.pid)
        samples = [memory(process)]
        child.stdin.write("go\n")
        child.stdin.flush()
        while child.poll() is None and not has_answer(child.stdout):
            samples.append(memory(process))
            time.sleep(SAMPLE_S)
        samples.append(memory(process))  # the child holds its weights until its input is closed
        wait_for(child, child.stdout, "{")
        child.stdin.close()
    (anonymous, *_), (resident, *_) = zip(*samples)
    peaks = [max(values) for values in zip(*samples)]
    return {"anonymous": peaks[0] - anonymous, "resident": peaks[1] - resident}


def memory(process: psutil.Process) -> tuple[int, int]:
    """(anonymous, resident) bytes."""
    info = process.memory_info()
    return info.rss - getattr(info, "shared", 0), info.rss


def wait_for(child: subprocess.Popen, output: IO[str], beginning: str) -> str:
    """The next line of a child's output with this beginning. Ends this program where the child ends without one."""
    for line in output:
        if line.startswith(beginning):
            return line
    sys.exit(f"The measured process ended with status {child.wait()}; its message is above.")


def has_answer(output: IO[str]) -> bool:
    """Whether there is something to read."""
    return bool(select.select([output], [], [], 0)[0])


def child(what: str, folder: Path, repeats: int) -> None:
    """Time every way to load a layout, or `watch` one of them: say `ready`, wait for a line, load, say so, and keep
    the memory until the input ends."""
    use_comfyui()
    # What a load imports is imported beforehand: it is not to be counted.
    from cogvideox.transformer import dit  # noqa: F401  imports diffusers

    if list(folder.glob("*.gguf")):
        import gguf  # noqa: F401
    if what.startswith("watch "):
        case = next(case for case in CASES if f"watch {case.name}" == what)
        print("ready", flush=True)
        sys.stdin.readline()
        kept = load(case, folder)
        print(json.dumps({"held": held(kept)}), flush=True)
        sys.stdin.read()
        return
    print(json.dumps(time_cases([case for case in CASES if case.layout == what], folder, repeats)), flush=True)


def time_cases(cases: list[Case], folder: Path, repeats: int) -> Timed:
    """Time every case and a read of the same files in turn, in this process."""
    files = weight_files(folder)
    buffers = [bytearray(file.stat().st_size) for file in files]
    for buffer in buffers:
        buffer[::PAGE] = b"\1" * len(buffer[::PAGE])

    def read() -> None:
        for file, buffer in zip(files, buffers):
            read_into(file, buffer)

    loads = {case.name: lambda case=case: load(case, folder) for case in cases}
    result: Timed = {"held": {}, "seconds": {}}
    for name, call in loads.items():  # the first load, which is not timed
        result["held"][name] = held(call())
        unload_models()
    for cache in CACHES:

        def prepare(name: str, cache: str = cache) -> None:
            unload_models()
            (warm_cache if cache == "warm" else drop_cache)(files)

        result["seconds"][cache] = interleave({**loads, "read": read}, count(cache, repeats), 0, prepare)
    return result


def load(case: Case, folder: Path) -> "ModelPatcher":
    """The MODEL with every page of every weight in memory."""
    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model

    with computing(case.compute_dtype):
        patcher = load_model(folder, case.weight_dtype)
    mm.load_models_gpu([patcher])
    touch(patcher.model.diffusion_model)
    return patcher


@contextlib.contextmanager
def computing(dtype: str) -> Iterator[None]:
    """Within it, ComfyUI lets a model compute in bf16 on a CPU too where `dtype` is "bf16"."""
    import comfy.model_management as mm

    rule = mm.should_use_bf16 if dtype == "fp32" else lambda *a, **k: True
    with mock.patch.object(mm, "should_use_bf16", rule):
        yield


def plain_tensors(tensor: Any) -> list[torch.Tensor]:
    """The plain tensors of a weight: codes and scales where it is quantised, itself where it is not."""
    from cogvideox.host.quantized import is_quantized

    if not is_quantized(tensor):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def held(patcher: "ModelPatcher") -> str:
    """The types of a model's weights, the one that takes most bytes first."""
    sizes: dict[str, int] = {}
    for parameter in patcher.model.diffusion_model.parameters():
        data = plain_tensors(parameter.data)[0]
        blocks = getattr(getattr(parameter, "_params", None), "block_format", None)
        name = blocks.name if blocks else str(data.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + data.numel() * data.element_size()
    return ", ".join(sorted(sizes, key=lambda name: sizes[name], reverse=True))


def read_into(file: Path, buffer: bytearray) -> None:
    view = memoryview(buffer)
    with file.open("rb", buffering=0) as opened:
        done = 0
        while done < len(buffer):
            done += opened.readinto(view[done:])


def touch(module: torch.nn.Module) -> None:
    """Bring every page of every weight into memory."""
    with torch.inference_mode():
        for parameter in module.parameters():
            for tensor in plain_tensors(parameter.data):
                tensor.flatten().view(torch.uint8)[::PAGE].sum()


if __name__ == "__main__":
    main()
