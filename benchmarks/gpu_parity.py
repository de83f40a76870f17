"""Is what the pack computes on a card right: tiny models of every family against diffusers, there and on a CPU."""

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cogvideox.benchmarks.gpu_kernels import kernel_rows
from cogvideox.benchmarks.gpu_models import (
    Inputs,
    forward_ours,
    forward_theirs,
    kernels_at_every_size,
    loaded,
    precision_obstacle,
    rotary_of,
)
from cogvideox.benchmarks.gpu_rows import MISSING, Bench, relative_error

FORWARD_FP32, RUN_FP32 = 5e-6, 2e-5  # on a CPU 2e-6 and 5e-6; a card has other kernels, and sums in other orders
BF16 = 1.05  # times the error that diffusers itself makes in bf16
REPEATS = 5
QUANTIZED = ("fp8_e4m3fn", "fp8_e4m3fn_fast", "int8", "int8_fast")
# The most that these may differ from fp32; a CPU gives about 0.025 for fp8 and 0.008 for int8, stored alone.
QUANTIZED_ERROR = {"fp8_e4m3fn": 0.05, "fp8_e4m3fn_fast": 0.1, "int8": 0.02, "int8_fast": 0.05}


def measure(bench: Bench) -> None:
    """The section."""
    bench.start_comfyui()
    from cogvideox.tests.support import ALL_VARIANTS, TEXT_TO_VIDEO, TinyPipelines

    variants = ("2b", "5b", "1.5-5B-I2V", "Fun-2b-InP") if bench.smoke else ALL_VARIANTS
    with tempfile.TemporaryDirectory() as scratch, kernels_at_every_size() as launches:
        tiny = TinyPipelines(Path(scratch))
        for variant in variants:
            bench.attempt(f"forward, {variant}", lambda variant=variant: forwards(bench, variant, tiny[variant]))
        for variant in TEXT_TO_VIDEO[1:2] if bench.smoke else TEXT_TO_VIDEO:
            bench.attempt(f"runs, {variant}", lambda variant=variant: runs(bench, variant, tiny[variant]))
        for variant in ("5b-I2V", "1.5-5B-I2V")[: 1 if bench.smoke else 2]:
            bench.attempt(f"runs, {variant}", lambda variant=variant: image_runs(bench, variant, tiny[variant]))
        bench.attempt("LoRA", lambda: lora(bench, tiny["5b"]))
        bench.attempt("partial loading", lambda: partial_loading(bench, tiny["5b"]))
        bench.attempt("quantised", lambda: quantized(bench, Path(scratch) / "wide"))
        bench.attempt("synchronisations", lambda: synchronisations(bench, tiny["5b"]))
        bench.attempt("kernels", lambda: kernel_rows(bench, launches))


def tiny_inputs(bench: Bench, model: Any, size: tuple[int, int, int] = (3, 8, 12)) -> tuple[Inputs, Any]:
    """Inputs on the CPU, and `ofs` where the model has it."""
    frames, height, width = size
    frames += frames % (model.config.patch_size_t or 1)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, model.config.in_channels, frames, height, width, generator=generator)
    text = torch.randn(2, 226, model.config.text_embed_dim, generator=generator)
    rotary = rotary_of(model, (frames, height, width), torch.device("cpu"))
    ofs = torch.full((1,), 2.0) if model.config.ofs_embed_dim else None
    return Inputs(latents, text, torch.tensor([999, 500]), rotary), ofs


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    rotary: Any = None if inputs.rotary is None else tuple(table.to(device) for table in inputs.rotary)
    return Inputs(inputs.latents.to(device), inputs.text.to(device), inputs.timestep.to(device), rotary)


def forwards(bench: Bench, variant: str, folder: Path) -> None:
    """A forward in fp32 and bf16: ours and diffusers' on the device, against diffusers' in fp32 on a CPU."""
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.tests.support import reference_transformer
    from cogvideox.tests.transformer.test_dit import stretch_positions

    theirs: Any = reference_transformer(folder)
    inputs, ofs = tiny_inputs(bench, theirs)
    if variant.startswith("Fun-2b"):
        _, _, frames, height, width = inputs.latents.shape
        stretch_positions(theirs, (frames, height // 2, width // 2))
    exact = forward_theirs(theirs, inputs, ofs)
    there = moved(inputs, bench.device)
    ofs = None if ofs is None else ofs.to(bench.device)
    torch.nn.Module.to(theirs, bench.device)
    if variant.startswith("Fun-2b"):
        table = theirs.patch_embed._get_positional_embeddings().to(bench.device)
        theirs.patch_embed._get_positional_embeddings = lambda *_, **__: table
    same_device = forward_theirs(theirs, there, ofs)
    ours = forward_ours(loaded(load_model(folder, "fp32")), there, ofs)
    theirs_error = relative_error(same_device, exact)
    bench.check(
        f"forward, {variant}, fp32: ours against diffusers, both on the device",
        relative_error(ours, same_device),
        FORWARD_FP32,
        f"against the CPU ours {relative_error(ours, exact):.1e}, diffusers {theirs_error:.1e}",
    )
    reference = relative_error(forward_theirs(torch.nn.Module.to(theirs, torch.bfloat16), there, ofs), exact)
    error = relative_error(forward_ours(loaded(load_model(folder, "bf16")), there, ofs), exact)
    what = f"forward, {variant}, bf16: error against fp32 on a CPU"
    bench.check(what, error, BF16 * reference, f"diffusers in bf16 {reference:.1e}")


def runs(bench: Bench, variant: str, folder: Path) -> None:
    """From the prompt to the last latents, text encoder included."""
    from cogvideox.tests.samplers.test_parity import Run

    with torch.inference_mode():
        run = Run(variant, folder)
        steps = 3 if bench.smoke else 20
        for sampler in ("ddim", "dpm"):
            on_cpu = run.theirs(sampler, 9, num_inference_steps=steps)
            run.pipeline.to(bench.device)
            there = run.theirs(sampler, 9, num_inference_steps=steps)
            run.pipeline.to("cpu")
            ours = run.ours(sampler, 9, steps)
            ours_error, theirs_error = relative_error(ours, on_cpu), relative_error(there, on_cpu)
            note = f"against the CPU ours {ours_error:.1e}, diffusers {theirs_error:.1e}"
            bench.check(f"run, {variant}, {sampler}, {steps} steps, fp32", relative_error(ours, there), RUN_FP32, note)


def image_runs(bench: Bench, variant: str, folder: Path) -> None:
    """Image to video, from the picture and the prompt to the last latents."""
    import diffusers
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Posterior

    from cogvideox.tests.tasks import Task, pictures

    # The pack takes the posterior's mode unless asked for a sample.
    with torch.inference_mode(), mock.patch.object(Posterior, "sample", lambda self, generator=None: self.mode()):
        task, image, frames = Task(folder), pictures(1), 9
        conditioned = task.condition("image", "CogVideoXImageToVideo", frames, start_image=image)
        ours = task.sample(*conditioned, sampler="dpm")
        task._reference_pipeline(diffusers.CogVideoXImageToVideoPipeline).to(bench.device)
        there = task.reference(
            "CogVideoXImageToVideoPipeline",
            "dpm",
            image=image.permute(0, 3, 1, 2),
            num_frames=frames,
            num_inference_steps=6,
        )
        there = there[:, :, there.shape[2] - (frames - 1) // 4 - 1 :]
        bench.check(f"run, {variant}, dpm, 6 steps, fp32", relative_error(ours, there), RUN_FP32)


def lora(bench: Bench, folder: Path, disable_dynamic: bool = True) -> None:
    """A LoRA merged, and added on the fly to weights that are streamed, against diffusers' model with W + B A."""
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.model_loaders.lora.apply import apply_lora
    from cogvideox.tests.lora_files import LINEAR, fused, random_factors, save, write_dialect
    from cogvideox.tests.support import reference_transformer

    theirs = reference_transformer(folder)
    weights = theirs.state_dict()
    shapes = {name.removesuffix(".weight"): tuple(w.shape) for name, w in weights.items() if name.endswith(".weight")}
    factors = random_factors(shapes, LINEAR)
    files, header, scale = write_dialect("diffusers", factors, "header")
    path = save(folder.parent / "lora.safetensors", files, header)
    inputs, _ = tiny_inputs(bench, theirs)
    plain = forward_theirs(theirs, inputs)
    theirs.load_state_dict(fused(weights, factors, scale))
    there = moved(inputs, bench.device)
    exact = forward_theirs(torch.nn.Module.to(theirs, bench.device), there)
    merged, _ = apply_lora(load_model(folder, "fp32", disable_dynamic=disable_dynamic), path, 1.0)
    ours = forward_ours(loaded(merged), there)
    changed = f"the LoRA changes the result by {relative_error(exact, plain):.1e}"
    bench.check("LoRA, merged into fp32", relative_error(ours, exact), FORWARD_FP32, changed)
    if disable_dynamic:
        streamed, _ = apply_lora(load_model(folder, "fp32", disable_dynamic=True), path, 1.0)
        streamed.partially_load(bench.device, extra_memory=1)
        error = relative_error(forward_ours(streamed, there), exact)
        bench.check("LoRA, added to streamed weights", error, FORWARD_FP32)
    for kind in ("int8", "fp8_e4m3fn"):
        quantised, _ = apply_lora(load_model(folder, kind, disable_dynamic=disable_dynamic), path, 1.0)
        error = relative_error(forward_ours(loaded(quantised), there), exact)
        bench.check(f"LoRA, on {kind}", error, 2 * QUANTIZED_ERROR[kind])


def partial_loading(bench: Bench, folder: Path) -> None:
    """A model of which a part, or all, stays in main memory and is copied block by block: a weight that is used before
    it has come would show in some of the repetitions."""
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.tests.support import reference_transformer

    there = moved(tiny_inputs(bench, reference_transformer(folder))[0], bench.device)
    for weight_dtype in ("fp32", "bf16", "fp8_e4m3fn", "int8"):
        resident = forward_ours(loaded(load_model(folder, weight_dtype, disable_dynamic=True)), there)
        for share in (0.3, 0.0):
            patcher = load_model(folder, weight_dtype, disable_dynamic=True)
            patcher.partially_load(bench.device, extra_memory=max(1, int(patcher.model_size() * share)))
            error = max(relative_error(forward_ours(patcher, there), resident) for _ in range(REPEATS))
            what = f"streamed weights, {weight_dtype}, {share:.0%} resident, {REPEATS} times, against all resident"
            bench.check(what, error, 1e-6)


def quantized(bench: Bench, folder: Path) -> None:
    """Quantised weights, 8 heads of 64: the device against fp32, and against the same on a CPU."""
    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.tests.support import reference_transformer, write_fp32

    write_fp32(folder, "5b", num_attention_heads=8, attention_head_dim=64, num_layers=2)
    theirs = reference_transformer(folder)
    inputs, _ = tiny_inputs(bench, theirs)
    exact, there = forward_theirs(theirs, inputs), moved(inputs, bench.device)
    for kind in QUANTIZED:
        if obstacle := precision_obstacle(bench, kind):
            bench.row(f"forward, {kind}", obstacle, MISSING)
            continue

        def one(kind: str = kind) -> None:
            error = relative_error(forward_ours(loaded(load_model(folder, kind)), there), exact)
            note = ""
            if not kind.endswith("_fast"):
                with mock.patch.object(mm, "get_torch_device", lambda: torch.device("cpu")):
                    on_cpu = load_model(folder, kind, disable_dynamic=True)
                note = f"on a CPU {relative_error(forward_ours(on_cpu, inputs), exact):.1e}"
            bench.check(f"forward, {kind}: error against fp32", error, QUANTIZED_ERROR[kind], note)

        bench.attempt(f"forward, {kind}", one)


def synchronisations(bench: Bench, folder: Path) -> None:
    """How often a step of a sampling run makes the host wait for the card, and where."""
    import warnings
    from collections import Counter

    from cogvideox.tests.samplers.test_parity import Run

    if not bench.on_card:
        return bench.row("host waits for the card in a sampling step", "a CPU does not wait", MISSING)
    with torch.inference_mode():
        run = Run("5b", folder)
        places: dict[int, Counter] = {}
        for steps in (4, 4, 12):  # the first is for what happens once
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    run.ours("ddim", 9, steps)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            kept = [one for one in found if "synchronizing" in str(one.message)]
            places[steps] = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in kept)
    each = {place: (count - places[4][place]) / 8 for place, count in places[12].items()}
    listed = ", ".join(
        f"{place} {count:g}" for place, count in sorted(each.items(), key=lambda pair: -pair[1]) if count
    )
    total = sum(each.values())
    what = "host waits for the card in a sampling step, ddim"
    bench.row(what, f"{total:g} a step: {listed or 'none'}", predicted="at most 1 is the goal", each=each)
