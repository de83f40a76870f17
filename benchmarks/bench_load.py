"""Loading a transformer of 1 GB until every weight is in memory, against reading the same bytes from the files."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Table, arguments, load_pack, median_spread, pack, ratio, report, use_comfyui

# weight_dtype of each way to load; what is None is a plain read
WAYS = {"read": None, "load bf16": "bf16", "load default": "default", "load fp32": "fp32"}
LAYERS, HEADS = 13, 24  # 0.49 billion parameters: 1 GB in bf16
SHARD_SIZE = "300MB"
PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096
SAMPLE_S = 0.002


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 3},
        layers={"type": int, "default": LAYERS},
        ways={"nargs": "+", "choices": list(WAYS), "default": list(WAYS)},
        child={"nargs": 2, "metavar": ("WAY", "FOLDER"), "help": "load once in this process (used by this script)"},
    )
    if options.child:
        child(WAYS[options.child[0]], Path(options.child[1]))
        return
    use_comfyui()
    with tempfile.TemporaryDirectory() as folder:
        files = write_checkpoint(Path(folder), options.layers)
        size = sum(file.stat().st_size for file in files)
        caches = ["warm", "cold"] if hasattr(os, "posix_fadvise") else ["warm"]
        results = {(cache, way): [] for cache in caches for way in options.ways}
        for _ in range(options.repeats):
            for (cache, way), measured in results.items():
                (warm_cache if cache == "warm" else drop_cache)(files)
                # watching a process's memory slows it down: time and memory come from two of them
                timed = measure(way, Path(folder), watched=False)
                (warm_cache if cache == "warm" else drop_cache)(files)
                measured.append(measure(way, Path(folder), watched=True) | {"seconds": timed["seconds"]})
                print(cache, way, measured[-1], flush=True)
    report("load", [table(cache, size, len(files), results, options) for cache in caches], options.save)


def table(cache: str, size: int, shards: int, results: dict, options: object) -> Table:
    rows = []
    for way in options.ways:
        measured = results[cache, way]
        seconds = [m["seconds"] for m in measured]
        against = ratio(seconds, [m["seconds"] for m in results[cache, "read"]]) if "read" in options.ways else ""
        peaks = (max(m[key] for m in measured) / size + (way == "read") for key in ("anonymous", "resident"))
        rows.append([way, measured[0]["dtype"], median_spread(seconds), against, *(f"{peak:.2f}" for peak in peaks)])
    state = {
        "warm": "the files are in the page cache",
        "cold": "the page cache was asked to drop the files (posix_fadvise); what a virtual disk's host keeps stays",
    }
    return Table(
        f"Loading {size / 1e9:.2f} GB of bf16 in {shards} shards, {cache}",
        [
            f"{cache}: {state[cache]}. {options.repeats} fresh processes each, in turn; imports (diffusers takes "
            "seconds, once) are not counted.",
            "load: load_model, ComfyUI's load_models_gpu, and a byte of every page of every weight read. "
            "read: readinto a buffer whose pages exist beforehand and count as its memory.",
            "Memory is the peak above the process before it loads, in multiples of the files. Anonymous memory is the "
            "process's own; resident counts mapped pages of the files as well, which the system may drop at any time.",
            "Goals for a load without conversion: 1.5 times the read, 1.1 times the file. On a CPU ComfyUI's default "
            "is fp32, which is twice the file by itself; on a card it is bf16.",
        ],
        ["way", "weights are", "time", "of the read", "peak anonymous", "peak resident"],
        rows,
    )


def write_checkpoint(folder: Path, layers: int) -> list[Path]:
    """A 5b-like transformer with random bf16 weights, sharded as diffusers does it; returns the shards."""
    import torch
    from diffusers import CogVideoXTransformer3DModel
    from huggingface_hub import save_torch_state_dict

    from devtools.embedded_checkpoint import transformer_config

    shape = {"num_layers": layers, "num_attention_heads": HEADS, "attention_head_dim": 64}
    config = transformer_config("5b", **shape, text_embed_dim=4096, time_embed_dim=512)
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**config)
    weights = {name: torch.randn(p.shape, dtype=torch.bfloat16) for name, p in model.named_parameters()}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict(weights, folder, filename_pattern=pattern, max_shard_size=SHARD_SIZE)
    model.save_config(folder)
    return sorted(folder.glob("*.safetensors"))


def warm_cache(files: list[Path]) -> None:
    for file in files:
        read_into(file, bytearray(file.stat().st_size))


def drop_cache(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(way: str, folder: Path, watched: bool) -> dict:
    """Load in a fresh process and, where `watched`, follow its memory from outside; bytes above what it had before it
    loaded."""
    import psutil

    command = [sys.executable, __file__, "--child", way, str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        wait_for(child, "ready")
        process = psutil.Process(child.pid)
        before = memory(process)
        child.stdin.write("go\n")
        child.stdin.flush()
        peak = before
        while watched and child.poll() is None and not has_answer(child):
            peak = tuple(map(max, peak, memory(process)))
            time.sleep(SAMPLE_S)
        peak = tuple(map(max, peak, memory(process)))  # the child holds its weights until it is told to end
        result = json.loads(wait_for(child, "{"))
        child.stdin.close()
    return {**result, "anonymous": peak[0] - before[0], "resident": peak[1] - before[1]}


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


def child(weight_dtype: str | None, folder: Path) -> None:
    """Say `ready`, wait for a line, load, say how long it took, and keep the memory until the input ends."""
    files = sorted(folder.glob("*.safetensors"))
    if weight_dtype is None:
        buffers = [bytearray(file.stat().st_size) for file in files]
        for buffer in buffers:
            buffer[::PAGE] = b"\1" * len(buffer[::PAGE])

        def load() -> str:
            for file, buffer in zip(files, buffers):
                read_into(file, buffer)
            return "bytes"
    else:
        use_comfyui()
        load_pack()
        import comfy.model_management as mm

        load_model = pack("model_loaders.model").load_model
        pack("transformer.dit")  # imports diffusers

        def load() -> str:
            patcher = load_model(folder, weight_dtype)
            mm.load_models_gpu([patcher])
            touch(patcher.model.diffusion_model)
            load.keeps = patcher
            return str(patcher.model.diffusion_model.dtype).removeprefix("torch.")

    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    dtype = load()
    print(json.dumps({"seconds": time.perf_counter() - began, "dtype": dtype}), flush=True)
    sys.stdin.read()


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
            parameter.data.flatten().view(torch.uint8)[::PAGE].sum()


if __name__ == "__main__":
    main()
