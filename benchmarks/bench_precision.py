"""Every precision, and torchao's, against fp32: error, size, time of a product and of a forward, time to convert."""

import importlib
import importlib.util
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import CogVideoXPipeline

from cogvideox.benchmarks.common import (
    Table,
    arguments,
    interleave,
    median_spread,
    ratio,
    report,
    stored_bytes,
    use_comfyui,
)
from cogvideox.benchmarks.implementations import (
    forward_comfy,
    forward_diffusers,
    load_diffusers,
    make_inputs,
    relative_error,
    write_checkpoint,
)
from cogvideox.tests import layout_files

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

PLAIN = ("fp32", "bf16", "fp16")
QUANTIZED = ("fp8_e4m3fn", "fp8_e4m3fn_fast", "int8", "int8_fast")
GGUF = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # what the gguf package can write; it only reads the K types
TORCHAO = {
    "torchao fp8": "Float8WeightOnlyConfig",
    "torchao fp8, dynamic": "Float8DynamicActivationFloat8WeightConfig",
    "torchao int8": "Int8WeightOnlyConfig",
    "torchao int8, dynamic": "Int8DynamicActivationInt8WeightConfig",
}
KINDS = (*PLAIN, *QUANTIZED, *(f"GGUF {kind}" for kind in GGUF), *TORCHAO)
BASES = ("fp32", "bf16")
SHAPES = ((3072, 3072), (12288, 3072))  # [out, in] of 5b's attention and feed-forward
VARIANT = "5b"
T = TypeVar("T")


@dataclass
class Case:
    """What is measured of one kind."""

    run: Callable[[], torch.Tensor]  # returns what is compared with fp32's
    size: float  # in multiples of bf16's
    weight_error: float = 0.0
    seconds_per_gb: float | None = None  # of bf16 weights


@dataclass
class Cases:
    """Kind -> its case, or why it is missing."""

    found: dict[str, Case] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, make: Callable[[], Case]) -> None:
        """Try a kind. Where the device or a package lacks support, the table says why, and the others go on."""
        try:
            case = make()
            case.run()
        except Exception as error:
            self.missing[kind] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            print(kind, self.missing[kind], flush=True)
        else:
            self.found[kind] = case


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 5},
        layers={"type": int, "default": 2},
        heads={"type": int, "default": 16, "help": "of 64 each"},
        rows={"type": int, "default": 1024, "help": "of the input that a matrix is multiplied with"},
        kinds={"nargs": "+", "choices": KINDS, "default": list(KINDS)},
        device={"choices": ("cpu", "cuda"), "help": "cuda by default where there is one"},
    )
    options.kinds = list(dict.fromkeys([*BASES, *options.kinds]))  # the bases are what the others are compared with
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    use_comfyui(cpu=options.device == "cpu")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():  # as ComfyUI runs nodes
        forwards = forward_cases(Path(folder), options)
        tables = [forward_table(forwards, options)]
        forwards.found.clear()  # frees the models
        for shape in SHAPES:
            tables.append(matrix_table(shape, matrix_cases(shape, forwards.missing, options), options))
    report("precision", tables, options.save, options.device)


def forward_table(cases: Cases, options: Namespace) -> Table:
    header = ["precision", "error", "size", "forward", "of fp32's", "of bf16's"]
    rows = [
        [kind, f"{error:.1e}", f"{case.size:.2f}", *times]
        for (kind, case), error, times in zip(cases.found.items(), *measure(cases, options))
    ]
    what = [
        f"{options.layers} layers, {options.heads} heads of 64, 1546 tokens, seeded random weights; {options.device}.",
        "What is not quantised (norms, embeddings, the time path) is stored in the compute type. With 16 heads it is "
        "over a third of the weights, with 5b's 48 a seventh: the matrices' own sizes are in the tables below.",
    ]
    return Table("One forward of a transformer", [*what, *notes(cases, options)], header, rows)


def matrix_table(shape: tuple[int, int], cases: Cases, options: Namespace) -> Table:
    header = ["precision", "error of weights", "of the product", "size", "product", "of fp32's", "of bf16's"]
    rows = []
    for (kind, case), error, times in zip(cases.found.items(), *measure(cases, options)):
        convert = "" if case.seconds_per_gb is None else f"{case.seconds_per_gb:.2f} s"
        rows.append([kind, f"{case.weight_error:.1e}", f"{error:.1e}", f"{case.size:.2f}", *times, convert])
    more = [
        f"A Gaussian matrix {list(shape)} and {options.rows} Gaussian rows; {options.device}.",
        "to convert: seconds for a GB of bf16 weights; GGUF by the gguf package, as converters do it beforehand.",
        "Kinds that the first table lacks are left out.",
    ]
    title = f"A matrix {shape[1]} x {shape[0]}"
    return Table(title, [*more, *notes(cases, options)], [*header, "to convert"], rows)


def notes(cases: Cases, options: Namespace) -> list[str]:
    computes = "fp32" if options.device == "cpu" else "bf16"
    return [
        "Errors are RMS over RMS against fp32; sizes in multiples of bf16's, scales included; times are medians "
        f"(least - most) of {options.repeats}, in turn.",
        f"All but fp32 compute in {computes}, as ComfyUI does on this device; fast and dynamic quantise the input too "
        "and multiply in 8 bits. torchao quantises diffusers' model or torch's Linear, the same matrices.",
        *(f"{kind} is missing: {why}" for kind, why in cases.missing.items()),
    ]


def measure(cases: Cases, options: Namespace) -> tuple[list[float], list[list[str]]]:
    """(errors against fp32, cells of time) of every case in order."""
    reference = cases.found["fp32"].run().float().cpu()
    errors = [relative_error(case.run().float().cpu(), reference) for case in cases.found.values()]

    def finished(run: Callable) -> Callable:
        def call() -> None:
            run()
            if options.device == "cuda":
                torch.cuda.synchronize()

        return call

    calls = {kind: finished(case.run) for kind, case in cases.found.items()}
    seconds = interleave(calls, options.repeats)
    digits = 4 if options.device == "cuda" else 3
    times = [
        [median_spread(values, digits=digits), *(ratio(values, seconds[base]) for base in BASES)]
        for values in seconds.values()
    ]
    return errors, times


def forward_cases(folder: Path, options: Namespace) -> Cases:
    """A forward of a transformer in every kind."""
    write_checkpoint(folder, VARIANT, options.layers, options.heads)
    exact = load_diffusers(folder, VARIANT, "fp32").transformer
    weights = {name: parameter.data for name, parameter in exact.named_parameters()}
    bf16_bytes = 2 * sum(weight.numel() for weight in weights.values())
    latents, text, timestep = (value.to(options.device) for value in make_inputs(VARIANT, exact.config))
    inputs = latents, text, timestep
    del exact

    def make(kind: str) -> Case:
        if kind in TORCHAO:
            model = load_torchao(folder, kind, options.device)
            size = sum(map(stored_bytes, model.transformer.parameters()))
            return Case(lambda: forward_diffusers(model, *inputs), size / bf16_bytes)
        patcher = load_ours(folder, kind, weights)
        size = sum(map(stored_bytes, patcher.model.diffusion_model.parameters()))
        return Case(lambda: forward_comfy(patcher, *inputs), size / bf16_bytes)

    cases = Cases()
    for kind in options.kinds:
        cases.add(kind, lambda kind=kind: make(kind))
    return cases


def load_ours(folder: Path, kind: str, weights: dict[str, torch.Tensor]) -> "ModelPatcher":
    """weights: the transformer's, for GGUF, which is written first."""
    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model

    path, weight_dtype = folder / "transformer", kind
    if kind.startswith("GGUF"):
        path, weight_dtype = folder / kind, "default"
        path.mkdir()
        (path / "config.json").write_text((folder / "transformer" / "config.json").read_text())
        layout_files.write_gguf(path / "model.gguf", weights, kind.split()[1])
    patcher = load_model(path, weight_dtype)
    mm.load_models_gpu([patcher])
    return patcher


def load_torchao(folder: Path, kind: str, device: str) -> CogVideoXPipeline:
    """diffusers' pipeline with the blocks' matrices quantised by torchao."""
    with torch.inference_mode(False):
        pipeline = load_diffusers(folder, VARIANT, "fp32" if device == "cpu" else "bf16")
        pipeline.transformer.requires_grad_(False).to(device)
        quantize_torchao(
            pipeline.transformer,
            kind,
            lambda module, name: isinstance(module, torch.nn.Linear) and layout_files.is_matrix(f"{name}.weight"),
        )
    return pipeline


def quantize_torchao(
    module: torch.nn.Module, kind: str, choose: Callable[[torch.nn.Module, str], bool] | None = None
) -> None:
    """Quantise, in place, the Linear layers that `choose` accepts, all of them by default."""
    if importlib.util.find_spec("torchao") is None:
        raise ModuleNotFoundError("the package torchao is not installed")
    # By name: torchao is no requirement, and a type checker could not find it.
    torchao: Any = importlib.import_module("torchao.quantization")
    torchao.quantize_(module, getattr(torchao, TORCHAO[kind])(), filter_fn=choose)


def matrix_cases(shape: tuple[int, int], missing: dict[str, str], options: Namespace) -> Cases:
    """Of every kind that a forward was possible in."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(options.device)
    rows = torch.randn(options.rows, shape[1], generator=generator).to(options.device)
    compute = torch.float32 if options.device == "cpu" else torch.bfloat16

    def make(kind: str) -> Case:
        dtype = torch.float32 if kind == "fp32" else compute
        layer, seconds = torchao_layer(kind, weight, dtype) if kind in TORCHAO else our_layer(kind, weight, dtype)
        held: Any = layer.weight.data  # a plain tensor, or a subclass with dequantize()
        values = held.dequantize() if type(held) is not torch.Tensor else held
        return Case(
            lambda: layer(rows.to(dtype)),
            stored_bytes(held) / (2 * weight.numel()),
            relative_error(values.float(), weight),
            None if kind in PLAIN else seconds / (2 * weight.numel() / 1e9),
        )

    cases = Cases()
    for kind in options.kinds:
        if kind not in missing:
            cases.add(kind, lambda kind=kind: make(kind))
    return cases


def our_layer(kind: str, weight: torch.Tensor, compute: torch.dtype) -> tuple[torch.nn.Linear, float]:
    """(a Linear of the pack's operations, seconds that converting its weight from bf16 took)."""
    from cogvideox.host.ops import adopt_ops
    from cogvideox.host.quantized_ops import FastQuantizedOps, QuantizedOps

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    adopt_ops(layer, FastQuantizedOps if kind.endswith("_fast") else QuantizedOps)
    layer.weight = torch.nn.Parameter(convert(kind, weight, compute), requires_grad=False)
    seconds = time_on(lambda: weight.to(torch.bfloat16), lambda source: convert(kind, source, compute), weight.is_cuda)
    return layer, seconds


def convert(kind: str, weight: torch.Tensor, compute: torch.dtype) -> torch.Tensor:
    """`weight` as `kind` stores it."""
    from cogvideox.host import quantized
    from cogvideox.model_loaders.files.gguf_blocks import gguf_tensor

    if kind in PLAIN:
        return weight.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind])
    if not kind.startswith("GGUF"):
        return quantized.quantize(weight, kind.removesuffix("_fast"), compute)
    from gguf import GGMLQuantizationType, quants

    name = kind.split()[1]
    blocks = torch.from_numpy(quants.quantize(weight.float().cpu().numpy(), GGMLQuantizationType[name]))
    return gguf_tensor(blocks.to(weight.device), name, tuple(weight.shape), compute)


def torchao_layer(kind: str, weight: torch.Tensor, compute: torch.dtype) -> tuple[torch.nn.Module, float]:
    """(torch's Linear with a weight of torchao's, seconds that converting it from bf16 took)."""

    def linear(dtype: torch.dtype) -> torch.nn.Sequential:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = torch.nn.Parameter(weight.clone().to(dtype), requires_grad=False)
        return torch.nn.Sequential(layer)

    with torch.inference_mode(False):
        held = linear(compute)
        quantize_torchao(held, kind)
        seconds = time_on(lambda: linear(torch.bfloat16), lambda module: quantize_torchao(module, kind), weight.is_cuda)
    return held[0], seconds


def time_on(prepare: Callable[[], T], call: Callable[[T], object], on_gpu: bool) -> float:
    """Seconds of `call` on what `prepare` returns: the median of three, after one that is not counted."""
    seconds = []
    for _ in range(4):
        prepared = prepare()
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        call(prepared)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
