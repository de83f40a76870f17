"""One step of the denoiser, batch 2: time, peak and error beside diffusers' and ComfyUI's own class."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import torch

from cogvideox.benchmarks.gpu_models import (
    Inputs,
    choice_of_kernel,
    forward_ours,
    forward_theirs,
    free,
    loaded,
    make_inputs,
    make_native,
    make_ours,
    make_transformer,
    precision_obstacle,
    step_flops,
    with_attention,
    without_kernels,
)
from cogvideox.benchmarks.gpu_rows import (
    FAILED,
    MISSING,
    PASSED,
    Bench,
    device_events,
    gib,
    peak_bytes,
    relative_error,
    seconds_of,
    spread,
)

LOSSLESS = 1.05  # times diffusers' own error in bf16
FEW_LAYERS = 8
# Of the cost model: 750 TFLOP/s for products, 324 and 413 for FlashAttention-2's and cuDNN's attention, 3.0 TB/s.
PREDICTED = {
    ("5b", "diffusers"): "1.77 s, 2.64 GiB",
    ("5b", "native"): "1.75 s, 3.88 GiB",
    ("5b", "ours, FLASH"): "1.50 s, 1.43 GiB",
    ("5b", "ours, CUDNN"): "1.28 s, 1.43 GiB",
    ("5b", "ours unfused"): "1.35 s, 2.45 GiB",
    ("1.5-5B", "diffusers"): "8.42 s, 6.74 GiB",
    ("1.5-5B", "ours, FLASH"): "7.74 s, 3.64 GiB",
    ("1.5-5B", "ours, CUDNN"): "6.34 s, 3.64 GiB",
    ("1.5-5B", "ours unfused"): "6.50 s, 6.22 GiB",
    ("2b", "diffusers"): "0.64 s, 1.54 GiB",
    ("2b", "ours, FLASH"): "0.60 s, 0.90 GiB",
    ("2b", "ours, CUDNN"): "0.50 s, 0.90 GiB",
    ("2b", "ours unfused"): "0.52 s, 1.53 GiB",
}
RATES = 750e12, 413e12  # FLOP/s of products and of attention, for the floor


def whole(bench: Bench) -> None:
    """The section: errors of four layers of 5b at 17,776 tokens, with diffusers in fp32 as the truth."""
    bench.start_comfyui()
    bench.attempt("errors of four layers", lambda: _errors(bench))


def _errors(bench: Bench) -> None:
    model = make_transformer(bench, "5b", 4)
    inputs = make_inputs(bench, model, "5b", 1)
    found = {"diffusers": forward_theirs(model, inputs).float(), **_by_attention(model, inputs)}
    free()
    exact_model = torch.nn.Module.to(model, torch.float32)
    full = Inputs(inputs.latents.float(), inputs.text.float(), inputs.timestep, inputs.rotary)
    exact = forward_theirs(exact_model, full)
    reference = relative_error(found["diffusers"], exact)
    for name, result in found.items():
        error = relative_error(result, exact)
        what = f"5b, 4 layers, bf16, {name}: error against fp32"
        bench.check(what, error, LOSSLESS * reference, f"diffusers {reference:.1e}")
    in_fp32 = loaded(make_ours(exact_model, "fp32"))
    bench.check("5b, 4 layers, fp32, ours against diffusers", relative_error(forward_ours(in_fp32, full), exact), 5e-6)


def _by_attention(model: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Our results in bf16 by each of the kernels that are compared, as fp32."""
    ours = loaded(make_ours(model))
    calls = {name: with_attention(name, lambda: forward_ours(ours, inputs)) for name in ("FLASH", "CUDNN")}
    calls["CUDNN, unfused"] = without_kernels(calls["CUDNN"])
    return {f"ours, {name}": call().float() for name, call in calls.items()}


def five(bench: Bench) -> None:
    """The section: a step of 5b."""
    _steps(bench, "5b", warm=2, repeats=4, with_native=True, with_profile=True)


def two(bench: Bench) -> None:
    """The section: a step of 2b."""
    _steps(bench, "2b", warm=1, repeats=5)


def long(bench: Bench) -> None:
    """The section: a step of 1.5-5B at 81 frames of 1360 x 768."""
    # FlashAttention-2 beside the others would take more time than there is.
    _steps(bench, "1.5-5B", warm=1, repeats=2, with_flash=False)


def _steps(
    bench: Bench,
    variant: str,
    warm: int,
    repeats: int,
    with_native: bool = False,
    with_profile: bool = False,
    with_flash: bool = True,
) -> None:
    bench.start_comfyui()
    from cogvideox.host.training_mode import settle_attention

    model = make_transformer(bench, variant)
    inputs = make_inputs(bench, model, variant)
    ours = loaded(make_ours(model))
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "diffusers": lambda: forward_theirs(model, inputs),
        "ours, FLASH": with_attention("FLASH", lambda: forward_ours(ours, inputs)),
        "ours, CUDNN": with_attention("CUDNN", lambda: forward_ours(ours, inputs)),
        "ours unfused": without_kernels(with_attention("CUDNN", lambda: forward_ours(ours, inputs))),
    }
    if not with_flash:
        del calls["ours, FLASH"]
    settle_attention(bench.device)  # or the measurement below would take diffusers the order that it has by itself
    began = time.monotonic()
    found, with_choice = choice_of_kernel(ours, inputs)
    took = time.monotonic() - began
    calls["ours, as chosen"] = with_choice(lambda: forward_ours(ours, inputs))
    bench.row(f"{variant}: choice of a kernel", f"{found}; took {took:.2f} s", seconds=took)
    bench.attempt(f"{variant} step", lambda: _time(bench, variant, model, inputs, calls, warm, repeats))
    if with_profile:
        for name in ("ours, as chosen", "ours, CUDNN", "ours unfused", "diffusers"):
            bench.attempt(
                f"{variant} kernels, {name}", lambda name=name: _kernels(bench, variant, name, calls[name]), 5
            )
    if with_native:
        bench.attempt(f"{variant} native", lambda: _native(bench, variant, model, inputs, calls, repeats), 25)


def _time(
    bench: Bench,
    variant: str,
    model: Any,
    inputs: Inputs,
    calls: dict[str, Callable[[], torch.Tensor]],
    warm: int,
    repeats: int,
) -> None:
    """Each call's peak and its result beside diffusers', which also warms it up; then the times, in turn."""
    peaks: dict[str, int] = {}
    kept: list[torch.Tensor] = []
    for name, call in list(calls.items()):

        def once(name: str = name, call: Callable[[], torch.Tensor] = call) -> None:
            results: list[torch.Tensor] = []
            peaks[name] = peak_bytes(bench.device, lambda: results.append(call()))
            kept.extend(results if not kept else [])
            if results[0] is not kept[0]:
                bench.check(
                    f"{variant} step, {name}: bf16 against diffusers'", relative_error(results[0], kept[0]), 0.1
                )

        bench.attempt(f"{variant} step, {name}", once)
        if name not in peaks:
            del calls[name]  # it cannot be timed either
    seconds = seconds_of(bench, calls, repeats, warm - 1)
    _time_rows(bench, variant, model, inputs, seconds, peaks)


def _time_rows(
    bench: Bench, variant: str, model: Any, inputs: Inputs, seconds: dict[str, list[float]], peaks: dict[str, int]
) -> None:
    products, attention = step_flops(model, inputs)
    floor = products / RATES[0] + attention / RATES[1]
    base = seconds.get("diffusers") or [0.0]
    for name, times in seconds.items():
        of_theirs = median(times) / median(base) if median(base) else 0.0
        found = f"{spread(times)}, {of_theirs:.2f} of diffusers', floor {floor:.2f} s, peak {gib(peaks[name])}"
        bench.row(
            f"{variant} step, batch 2, {name}",
            found,
            predicted=PREDICTED.get((variant, name), ""),
            seconds=times,
            of_diffusers=of_theirs,
            of_floor=floor / median(times),
            peak_bytes=peaks[name],
            tflops_products=products / 1e12,
            tflops_attention=attention / 1e12,
        )


def _kernels(bench: Bench, variant: str, name: str, call: Callable[[], torch.Tensor]) -> None:
    """What a step spends its time on, by torch's profiler."""
    events = device_events(bench, call)
    total = sum(event.seconds for event in events)
    top = [(event.name[:90], event.seconds, event.count) for event in events[:40]]
    shares = "; ".join(f"{key[:60]} x{count} {100 * seconds / total:.1f} %" for key, seconds, count in top[:8])
    count = sum(event.count for event in events if event.is_kernel)
    others = sum(event.count for event in events) - count
    unfused = "1413 kernels (1665 where RoPE is eager)"
    predicted = {"diffusers": "2592 kernels", "ours, CUDNN": "702 kernels", "ours unfused": unfused}.get(name, "")
    found = f"{count} kernels and {others} fillings and copies, {total:.3f} s: {shares}"
    bench.row(f"{variant} kernels, {name}", found, predicted=predicted, top=top, kernels=count, seconds=total)


def _native(
    bench: Bench,
    variant: str,
    model: Any,
    inputs: Inputs,
    calls: dict[str, Callable[[], torch.Tensor]],
    repeats: int,
) -> None:
    """ComfyUI's own class beside ours; its result is another one for official checkpoints."""
    native = make_native(model)
    both = {name: call for name, call in calls.items() if name == "ours, FLASH"}
    both["native"] = lambda: forward_ours(native, inputs)
    peak = peak_bytes(bench.device, both["native"])
    seconds = seconds_of(bench, both, min(3, repeats))
    found = f"{spread(seconds['native'])}, peak {gib(peak)}"
    predicted = PREDICTED.get((variant, "native"), "")
    bench.row(f"{variant} step, batch 2, ComfyUI's class", found, predicted=predicted, seconds=seconds, peak_bytes=peak)


def few_bits(bench: Bench) -> None:
    """The section: 8 layers of 5b in fp8 and int8, beside bf16: time, error, peak."""
    bench.start_comfyui()
    model = make_transformer(bench, "5b", FEW_LAYERS)
    inputs = make_inputs(bench, model, "5b")
    plain = loaded(make_ours(model))
    sentence, with_choice = choice_of_kernel(plain, inputs)
    bench.row("5b, 8 layers: attention", sentence)
    best = with_choice(lambda: forward_ours(plain, inputs))
    exact = best().float()
    for kind in ("fp8_e4m3fn", "fp8_e4m3fn_fast", "int8", "int8_fast"):
        if obstacle := precision_obstacle(bench, kind):
            bench.row(f"5b, 8 layers, {kind}", obstacle, MISSING)
            continue

        def one(kind: str = kind) -> None:
            patcher = loaded(make_ours(model, kind))
            call = with_choice(lambda: forward_ours(patcher, inputs))
            error = relative_error(call().float(), exact)
            peak = peak_bytes(bench.device, call)
            seconds = seconds_of(bench, {"bf16": best, kind: call}, 3, warm=0)
            ratio = median(seconds[kind]) / median(seconds["bf16"])
            size = gib(patcher.model_size())
            found = f"{spread(seconds[kind])}, {ratio:.2f} of bf16's, error {error:.1e}, {size}, peak {gib(peak)}"
            predicted = "0.85 of bf16's" if kind.endswith("_fast") else "1.0 to 1.1 of bf16's"
            bench.row(f"5b, 8 layers, {kind}", found, predicted=predicted, seconds=seconds, error=error)

        bench.attempt(f"5b, 8 layers, {kind}", one, 4)


def compiled(bench: Bench) -> None:
    """The section: a step of 5b with CogVideoX Compile beside one without and diffusers compiled; then at another size,
    which must not compile again."""
    bench.start_comfyui()
    from cogvideox.keys import with_compiled_blocks
    from cogvideox.transformer import compiled_blocks

    model = make_transformer(bench, "5b")
    inputs = make_inputs(bench, model, "5b")
    patcher = loaded(make_ours(model))
    said: list[str] = []
    options = with_compiled_blocks({}, compiled_blocks.CompiledBlocks(said.append))
    sentence, with_choice = choice_of_kernel(patcher, inputs)
    plain = with_choice(lambda: forward_ours(patcher, inputs))
    blocks = with_choice(lambda: forward_ours(patcher, inputs, options=options))
    frames = inputs.latents.shape[2] // 2
    shorter = Inputs(inputs.latents[:, :, :frames], inputs.text, inputs.timestep, inputs.rotary)

    def theirs() -> torch.Tensor:
        return forward_theirs(model, inputs)

    def compile_theirs() -> Callable[[], torch.Tensor]:
        for block in model.transformer_blocks:
            block.compile(backend=compiled_blocks.BACKEND, dynamic=False)
        return theirs

    bench.row("5b compiled: attention", sentence)
    with mock.patch.object(compiled_blocks, "BACKEND", compiled_blocks.BACKEND if bench.on_card else "eager"):
        bench.attempt("compiled, ours", lambda: _compare_compiled(bench, "ours", plain, lambda: blocks), 20)
        bench.attempt("compiled, shorter", lambda: _other_size(bench, patcher, shorter, options), 5)
        bench.row("5b compiled: what the node says", " ".join(said) or "nothing", PASSED if said else FAILED)
        bench.attempt("compiled, diffusers", lambda: _compare_compiled(bench, "diffusers", theirs, compile_theirs), 20)


def _other_size(bench: Bench, patcher: Any, inputs: Inputs, options: dict[str, Any]) -> None:
    """A step of fewer frames with the graphs that are there, beside one without."""
    exact = forward_ours(patcher, inputs).float()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    error = relative_error(forward_ours(patcher, inputs, options=options).float(), exact)
    new = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    bench.check("5b, half the frames, compiled: error against eager", error, 0.1, f"{new} new graphs", graphs=new)


def _compare_compiled(
    bench: Bench,
    name: str,
    eager: Callable[[], torch.Tensor],
    compile_it: Callable[[], Callable[[], torch.Tensor]],
) -> None:
    exact = eager().float()
    torch._dynamo.utils.counters.clear()
    eager_seconds, eager_peak = seconds_of(bench, {name: eager}, 3, warm=0)[name], peak_bytes(bench.device, eager)
    call = compile_it()
    first = seconds_of(bench, {name: call}, 1, warm=0)[name][0]
    error = relative_error(call().float(), exact)
    after, peak = seconds_of(bench, {name: call}, 4, warm=0)[name], peak_bytes(bench.device, call)
    counters = torch._dynamo.utils.counters
    breaks, graphs = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
    found = f"{spread(after)}, peak {gib(peak)}; eager {spread(eager_seconds)}, peak {gib(eager_peak)}; the first call "
    found += f"{first:.1f} s, {graphs} graphs, {breaks} graph breaks, error against eager {error:.1e}"
    values = {"seconds": after, "eager_seconds": eager_seconds, "first_s": first, "graph_breaks": breaks}
    bench.row(f"5b step, {name}, compiled", found, peak_bytes=peak, graphs=graphs, error=error, **values)
