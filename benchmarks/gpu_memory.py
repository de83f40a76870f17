"""Runs of the sampler node: whole ones, and on a small card, which is a large one that gives this process no more than
it is told."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from cogvideox.benchmarks.gpu_models import LATENTS, make_ours, make_transformer
from cogvideox.benchmarks.gpu_rows import GIB, Bench, gib

STEPS, WHOLE_STEPS = 3, 50
LIMITS_GIB = (8.0, 4.0, 2.75)
LEAN_LIMITS_GIB = {"5b": 1.7, "1.5-5B": 2.0}
PREDICTED = {
    8.0: "1.6 to 1.9 s a step (batch 2 or two passes)",
    4.0: "1.7 to 2.2 s a step",
    2.75: "two passes; 1.7 to 2.3 s a step, or out of memory: the aim is 1.7 GiB",
    2.0: "lean mode, peak of 1.6 GiB at most",
    1.7: "peak of 1.4 GiB at most, in either mode; at most 1.05 of the time on the whole card",
}


def measure(bench: Bench) -> None:
    """The section: runs of 5b with streamed weights."""
    bench.start_comfyui()
    model = make_transformer(bench, "5b")
    width = model.config.text_embed_dim
    patcher = make_ours(model, on="cpu")
    model.to_empty(device="meta")
    for limit in LIMITS_GIB[-1:] if bench.smoke else LIMITS_GIB:
        what = f"5b run in {limit:g} GiB of the card"
        bench.attempt(what, lambda limit=limit, what=what: run(bench, patcher, width, limit, what), 12)


def measure_whole(bench: Bench) -> None:
    """The section: 5b with all of its steps, as it comes, while the card grows warm."""
    bench.start_comfyui()
    model = make_transformer(bench, "5b")
    width = model.config.text_embed_dim
    steps = STEPS if bench.smoke else WHOLE_STEPS
    what = f"5b run of {steps} steps"
    bench.attempt(what, lambda: run(bench, make_ours(model), width, None, what, steps=steps), 20)


def measure_lean(bench: Bench) -> None:
    """The section: what the lean mode costs where nothing asks for it, and runs on cards that are too small for the
    default mode."""
    bench.start_comfyui()
    for variant, limit in LEAN_LIMITS_GIB.items():
        model = make_transformer(bench, variant)
        width = model.config.text_embed_dim
        patcher = make_ours(model, on="cpu")
        model.to_empty(device="meta")
        for mode in ("default", "lean") if variant == "5b" else ():
            what = f"{variant} run on the whole card, {mode} mode"
            with in_mode(mode):
                bench.attempt(what, partial(run, bench, patcher, width, None, what, variant), 10)
        what = f"{variant} run in {limit:g} GiB of the card"
        bench.attempt(what, partial(run, bench, patcher, width, limit, what, variant), 15)


@contextmanager
def in_mode(mode: str) -> Iterator[None]:
    """Steps that find all memory free, or none."""
    from cogvideox.transformer import dit

    with mock.patch.object(dit, "free_in_step", lambda device: math.inf if mode == "default" else 0):
        yield


def run(
    bench: Bench,
    patcher: Any,
    width: int,
    limit_gib: float | None,
    what: str,
    variant: str = "5b",
    steps: int = STEPS,
) -> None:
    """Some steps of the sampler node at the checkpoint's own size, with at most `limit_gib` of the card."""
    import comfy.model_management as mm

    from cogvideox.nodes.sample import CogVideoXSample

    mm.unload_all_models()
    frames, height, width_latent = (3, 8, 12) if bench.smoke else LATENTS[variant]
    latent = {"samples": torch.zeros(1, 16, frames, height, width_latent)}
    generator = torch.Generator().manual_seed(3)
    positive, negative = ([[torch.randn(1, 226, width, generator=generator), {}]] for _ in range(2))
    ends: list[float] = []
    batches: set[int] = set()
    handle = patcher.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: batches.add(len(inputs[0])))
    node: Any = CogVideoXSample
    node.hidden = type("Hidden", (), {"unique_id": None})
    began = time.monotonic()
    try:
        with (
            small_card(bench, None if limit_gib is None else int(limit_gib * GIB)),
            torch.inference_mode(),
            clock(ends, bench),
        ):
            node.execute(patcher, positive, negative, latent, 1, steps, 6.0, "ddim", False, 1.0)
    finally:
        handle.remove()
    each = [after - before for before, after in zip(ends, ends[1:])]
    peak = torch.cuda.max_memory_allocated() if bench.on_card else 0
    resident = patcher.loaded_size()
    took = ends[-1] - began
    found = f"{took:.1f} s with the loading, {statistics.median(each):.2f} s a step, batches of {sorted(batches)}, "
    found += f"peak {gib(peak)} with weights, of which {gib(resident)} of {gib(patcher.model_size())} stay there"
    predicted = PREDICTED.get(limit_gib or 0.0, "1.6 to 1.9 s a step")
    bench.row(what, found, predicted=predicted, seconds=each, run_s=took, peak_bytes=peak, resident_bytes=resident)


@contextmanager
def clock(ends: list[float], bench: Bench) -> Iterator[None]:
    """The times at which steps end, by the callback that ComfyUI's node hands in."""
    import latent_preview

    prepare = latent_preview.prepare_callback

    def prepare_clocked(*arguments: Any) -> Callable[..., None]:
        callback = prepare(*arguments)

        def stepped(*rest: Any) -> None:
            if bench.on_card:
                torch.cuda.synchronize()
            ends.append(time.monotonic())
            callback(*rest)

        return stepped

    with mock.patch.object(latent_preview, "prepare_callback", prepare_clocked):
        yield


@contextmanager
def small_card(bench: Bench, limit: int | None) -> Iterator[None]:
    """A card of `limit` bytes: for torch's allocator, which raises beyond them, and for ComfyUI."""
    import comfy.model_management as mm

    if bench.on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if not bench.on_card or limit is None:
        yield
        return
    total = torch.cuda.mem_get_info()[1]

    def free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        if dev is not None and torch.device(dev).type != "cuda":
            return known(dev, torch_free_too)
        reserved, active = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
        free = limit - active
        return (free, reserved - active) if torch_free_too else free

    known = mm.get_free_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        with mock.patch.object(mm, "get_free_memory", free_memory):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
