"""The denoiser against diffusers, compiled too, and ComfyUI's class: forward, run, T5 on the CPU; counts; goals."""

import gc
import statistics
import tempfile
from argparse import Namespace
from pathlib import Path
from unittest import mock

import torch
from diffusers import CogVideoXPipeline

from cogvideox.benchmarks.common import (
    Table,
    arguments,
    interleave,
    median_spread,
    ratio,
    report,
    use_comfyui,
)
from cogvideox.benchmarks.implementations import (
    CFG,
    SEED,
    SIZES,
    Inputs,
    Models,
    forward_comfy,
    forward_diffusers,
    load_all,
    load_diffusers,
    make_inputs,
    relative_error,
    run_diffusers,
    with_sdpa,
    write_checkpoint,
)
from cogvideox.benchmarks.speed_goals import Goal, count_goals, goals_table
from cogvideox.benchmarks.text_encoders import compare_text_encoders

PRECISIONS = ("fp32", "bf16")
MOST_SHARE = 0.65  # of diffusers' time
MOST_ERROR = 3e-7  # of a forward, from diffusers
MOST_ERROR_SHARE = 1.05  # of transformers' error, which is above MOST_ERROR already


def main() -> None:
    options = arguments(
        __doc__,
        layers={"type": int, "default": 2},
        heads={"type": int, "default": 16, "help": "of 64 each"},
        steps={"type": int, "default": 2, "help": "of a sampling run, with CFG"},
        repeats={"type": _positive, "default": 5, "help": "of a forward; a run is repeated 3 times at most"},
        variants={"nargs": "+", "choices": list(SIZES), "default": list(SIZES)},
        precisions={
            "nargs": "+",
            "choices": PRECISIONS,
            "help": "by default bf16 only where it is fast here",
        },
        without_counts={"action": "store_true", "help": "the clocks alone"},
    )
    use_comfyui(cpu=True)
    goals: list[Goal] = []
    chosen = precisions(options)
    tables = [
        *transformer_tables(options, chosen, goals),
        text_table(options, chosen, goals),
        products_table(),
        *([] if options.without_counts else count_goals(goals)),
    ]
    report("speed", [*tables, *([goals_table(goals)] if goals else [])], options.save)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)  # argparse makes a sentence of it
    return number


def precisions(options: Namespace) -> list[str]:
    """Those asked for; by default without bf16 where a forward of diffusers' takes ten times as long in it."""
    from cogvideox.host.cpu_products import bf16_is_faster

    return options.precisions or [name for name in PRECISIONS if name == "fp32" or bf16_is_faster()]


def transformer_tables(options: Namespace, chosen: list[str], goals: list[Goal]) -> list[Table]:
    forwards, runs = [], []
    for variant in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), variant, options.layers, options.heads)
            exact = load_diffusers(Path(folder), variant, "fp32")
            inputs = make_inputs(variant, exact.transformer.config)
            shorter = (inputs[0][:, :, : SIZES[variant][0] // 2], *inputs[1:])
            forward, run = forward_diffusers(exact, *inputs), run_diffusers(exact, *shorter[:2], options.steps)
            for precision in chosen:
                models = load_all(Path(folder), variant, precision)
                compiled = load_diffusers(Path(folder), variant, precision)
                name = [variant, precision, dtype_name(models.ours.model.get_dtype_inference())]
                forwards.append([*name, *compare_forward(models, compiled, inputs, forward, options.repeats, goals)])
                print("forward", *forwards[-1], flush=True)
                runs.append([*name, *compare_run(models, shorter, run, options, goals)])
                print("run", *runs[-1], flush=True)
                del models, compiled
                gc.collect()
            del exact
    return tables(options, forwards, runs)


def tables(options: Namespace, forwards: list[list[str]], runs: list[list[str]]) -> list[Table]:
    size = f"{options.layers} layers, {options.heads} heads of 64, {', '.join(f'{v} {s}' for v, s in SIZES.items())}"
    notes = [
        f"{size} (latent frames, height, width); random weights, the same in all columns.",
        "Times are medians (least - most); ratios are of medians, below 1 ours is faster.",
        "native: ComfyUI's class for CogVideoX as ComfyUI starts it on a CPU (sub-quadratic attention); native SDPA: "
        "the same with torch's attention. It is numerically different for official checkpoints, hence its errors.",
        "computes: what ours computes in. diffusers computes in the precision itself, ComfyUI's class in fp32.",
        "diffusers compiled: its transformer by torch.compile, as its documentation does it; compiling is not timed.",
    ]
    forward_columns = ["ours", "diffusers", "diffusers compiled", "native", "native SDPA"]
    forward_columns += [f"ours / {other}" for other in forward_columns[1:]]
    forward_columns += ["error ours", "error diffusers", "error native"]
    forward_note = "Errors are RMS over RMS against diffusers in fp32."
    run_notes = [
        f"{options.steps} steps with CFG {CFG} on half the latent frames; ours through CogVideoXSample, native through "
        "stock KSampler (euler, sgm_uniform), which is another sampler: only its time compares.",
        "Errors are of the final latents, against diffusers in fp32 from the same seed.",
    ]
    run_columns = ["ours", "diffusers", "native", "ours / diffusers", "ours / native", "error ours", "error diffusers"]
    names = ["variant", "precision", "computes"]
    return [
        Table("One forward, batch 1", [*notes, forward_note], [*names, *forward_columns], forwards),
        Table("A sampling run", run_notes, [*names, *run_columns], runs),
    ]


def compare_forward(
    models: Models,
    compiled: CogVideoXPipeline,
    inputs: Inputs,
    reference: torch.Tensor,
    repeats: int,
    goals: list[Goal],
) -> list[str]:
    """The cells of a row: times, ratios, and errors against `reference`."""
    calls = {
        "ours": lambda: forward_comfy(models.ours, *inputs),
        "diffusers": lambda: forward_diffusers(models.diffusers, *inputs),
        "diffusers compiled": lambda: forward_diffusers(compiled, *inputs),
        "native": lambda: forward_comfy(models.native, *inputs),
    }
    calls["native SDPA"] = with_sdpa(calls["native"])
    compiled.transformer.compile(fullgraph=True, dynamic=False)
    errors = [relative_error(calls[name](), reference) for name in ("ours", "diffusers", "native")]
    seconds = interleave(calls, repeats)
    if models.diffusers.dtype == torch.float32:
        add_goals(goals, "forward", seconds, errors[0])
    return timing_cells(seconds) + [f"{error:.1e}" for error in errors]


def compare_run(
    models: Models, inputs: Inputs, reference: torch.Tensor, options: Namespace, goals: list[Goal]
) -> list[str]:
    """The cells of a row: times, ratios, and errors of the final latents against `reference`."""
    import comfy.sample

    from cogvideox.nodes.sample import CogVideoXSample

    latents, text, _ = inputs
    positive, negative, empty = [[text, {}]], [[-text, {}]], torch.zeros_like(latents)

    def ours() -> torch.Tensor:
        settings = SEED, options.steps, CFG, "ddim", False, 1.0
        out = CogVideoXSample.execute(models.ours, positive, negative, {"samples": empty}, *settings)
        return models.ours.model.process_latent_in(out.args[0]["samples"])

    def native() -> torch.Tensor:
        noise = comfy.sample.prepare_noise(empty, SEED)
        how = CFG, "euler", "sgm_uniform", positive, negative, empty
        return comfy.sample.sample(models.native, noise, options.steps, *how, disable_pbar=True, seed=SEED)

    calls = {
        "ours": ours,
        "diffusers": lambda: run_diffusers(models.diffusers, latents, text, options.steps),
        "native": native,
    }
    with torch.inference_mode(), mock.patch("comfy.utils.PROGRESS_BAR_ENABLED", False):
        errors = [relative_error(calls[name](), reference) for name in ("ours", "diffusers")]
        seconds = interleave(calls, min(3, options.repeats), warmup=0)
    if models.diffusers.dtype == torch.float32:
        add_goals(goals, "run", seconds)
    return timing_cells(seconds) + [f"{error:.1e}" for error in errors]


def text_table(options: Namespace, chosen: list[str], goals: list[Goal]) -> Table:
    """A prompt through T5: ours is ComfyUI's class, diffusers has that of transformers."""
    rows = []
    for precision in chosen:
        seconds, errors = compare_text_encoders(precision, options.repeats)
        if precision == "fp32":
            add_goals(goals, "T5", seconds)
            share = errors["ours"] / errors["diffusers"]
            goals.append(Goal("T5 on this CPU in fp32, error, of transformers'", share, MOST_ERROR_SHARE))
        rows.append([precision, *timing_cells(seconds), *(f"{error:.1e}" for error in errors.values())])
        print("T5", *rows[-1], flush=True)
    notes = [
        "4 layers of width 1024, 226 tokens, random weights. ComfyUI computes T5 in fp32 whatever is stored, "
        "transformers in the precision itself. Errors are RMS over RMS against transformers in fp64.",
    ]
    return Table(
        "T5, one prompt",
        notes,
        ["precision", "ours", "diffusers", "ours / diffusers", "error ours", "error diffusers"],
        rows,
    )


def products_table() -> Table:
    """What the choice of products on this CPU goes by, as it is made at the first load."""
    from cogvideox.host.cpu_products import LEAST_GAIN, MOST_ERROR, measured_bf16, measured_onednn

    rows = [
        [what, f"{found.share:.2f}", f"{found.error:.1e}"] if found else [what, "cannot be used", ""]
        for what, found in (("fp32 by oneDNN / by torch", measured_onednn()), ("bf16 / fp32", measured_bf16()))
    ]
    notes = [
        f"The first is taken where its time is at most {LEAST_GAIN} of the second's, and oneDNN where "
        f"its error is at most {MOST_ERROR:.0e} too. Errors are RMS over RMS against fp64.",
    ]
    return Table("Products of this CPU", notes, ["", "time", "error of the first"], rows)


def add_goals(goals: list[Goal], what: str, seconds: dict[str, list[float]], error: float | None = None) -> None:
    """Those of a CPU, by the worst of all checkpoints."""
    share = statistics.median(seconds["ours"]) / statistics.median(seconds["diffusers"])
    goals.append(Goal(f"{what} on this CPU in fp32, of diffusers' time", share, MOST_SHARE))
    if error is not None:
        goals.append(Goal(f"{what} on this CPU in fp32, error", error, MOST_ERROR))


def timing_cells(seconds: dict[str, list[float]]) -> list[str]:
    ratios = [ratio(seconds["ours"], seconds[name]) for name in seconds if name != "ours"]
    return [*(median_spread(values) for values in seconds.values()), *ratios]


def dtype_name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(dtype, str(dtype))


if __name__ == "__main__":
    main()
