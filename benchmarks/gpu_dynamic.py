"""Dynamic VRAM, ComfyUI's default on NVIDIA cards: weights come to the card when they are used. Is the result the same,
and how fast is 5b with it?"""

import importlib
import sys
import tempfile
from pathlib import Path

import torch

from cogvideox.benchmarks import gpu_memory, gpu_parity
from cogvideox.benchmarks.gpu_models import free, make_ours, make_transformer
from cogvideox.benchmarks.gpu_rows import FAILED, GIB, MISSING, PASSED, Bench

SMALL_GIB = 6.0


def parity(bench: Bench) -> None:
    """The section: what gpu_parity compares, with dynamic VRAM."""
    bench.start_comfyui()
    start(bench, 0)
    from cogvideox.tests.support import ALL_VARIANTS, TEXT_TO_VIDEO, TinyPipelines

    few = bench.smoke
    with tempfile.TemporaryDirectory() as scratch:
        tiny = TinyPipelines(Path(scratch))
        bench.attempt("patcher", lambda: patcher(bench, tiny["5b"]))
        for variant in TEXT_TO_VIDEO[1:2] if few else TEXT_TO_VIDEO:
            bench.attempt(f"runs, {variant}", lambda name=variant: gpu_parity.runs(bench, name, tiny[name]))
        for variant in ("5b-I2V",) if few else ("5b-I2V", "1.5-5B-I2V"):
            bench.attempt(f"runs, {variant}", lambda name=variant: gpu_parity.image_runs(bench, name, tiny[name]))
        bench.attempt("LoRA", lambda: gpu_parity.lora(bench, tiny["5b"], disable_dynamic=False))
        bench.attempt("quantised", lambda: gpu_parity.quantized(bench, Path(scratch) / "wide"))
        for variant in ALL_VARIANTS[:1] if few else ALL_VARIANTS:
            bench.attempt(f"forward, {variant}", lambda name=variant: gpu_parity.forwards(bench, name, tiny[name]))


def memory(bench: Bench) -> None:
    """The section: a few steps of 5b with dynamic VRAM, on what is left of the card beside a reserve."""
    bench.start_comfyui()
    model = make_transformer(bench, "5b")
    torch.nn.Module.to(model, "cpu")
    free()
    total = torch.cuda.mem_get_info()[1] if bench.on_card else 0
    start(bench, max(0, total - int(SMALL_GIB * GIB)))
    width = model.config.text_embed_dim
    ours = make_ours(model, disable_dynamic=False)
    what = f"5b run, dynamic VRAM, {SMALL_GIB:g} GiB of the card"
    bench.attempt(what, lambda: gpu_memory.run(bench, ours, width, None, what))


def start(bench: Bench, reserved_bytes: int) -> None:
    """As ComfyUI's main.py does. reserved_bytes: what it leaves free on the card."""
    import comfy.memory_management
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy_aimdo.control as control

    if not bench.on_card:
        return bench.row("dynamic VRAM", "is for cards: here it is the plain loading", MISSING)
    began = control.init(nvml_pressure=True)
    # main.py begins with this, before it imports comfy: modules that were imported earlier have no library yet.
    for name, module in [*sys.modules.items()]:
        if name.startswith("comfy_aimdo.") and hasattr(module, "lib") and module is not control:
            importlib.reload(module)
    began = began and control.init_devices([(d.index, reserved_bytes) for d in mm.get_all_torch_devices()])
    if began:
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True
    bench.row("dynamic VRAM", "runs" if began else "did not start", PASSED if began else FAILED)


def patcher(bench: Bench, folder: Path) -> None:
    """Whether the pack's models use it at all."""
    from cogvideox.host.compat import is_dynamic
    from cogvideox.model_loaders.load_model import load_model

    if bench.on_card:
        found = {kind: is_dynamic(load_model(folder, kind)) for kind in ("fp32", "bf16", "fp8_e4m3fn", "int8")}
        listed = ", ".join(f"{kind} {'yes' if yes else 'no'}" for kind, yes in found.items())
        bench.row("models load dynamically", listed, PASSED if all(found.values()) else FAILED)
