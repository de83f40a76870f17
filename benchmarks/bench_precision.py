"""Every precision against fp32: error, size, time of a product and of a forward, time to convert; beside torchao's."""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench_forward import (
    forward_comfy,
    forward_diffusers,
    load_diffusers,
    make_inputs,
    relative_error,
    write_checkpoint,
)

from cogvideox.benchmarks.common import (
    Table,
    arguments,
    interleave,
    median_spread,
    ratio,
    report,
    use_comfyui,
)

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


@dataclass
class Case:
    """What is measured of one kind."""

    run: Callable[[], object]  # returns what is compared with fp32's
    size: float  # in multiples of bf16's
    weight_error: float = 0.0
    seconds_per_gb: float | None = None  # of bf16 weights


@dataclass
class Cases:
    """Kind -> its case, or why there is none."""

    found: dict[str, Case] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, make: Callable[[], Case]) -> None:
        """What a device or a package cannot do is told in the table and stops nothing."""
        try:
            case = make()
            case.run()
        except Exception as error:
            self.lacking[kind] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            print(kind, self.lacking[kind], flush=True)
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
    options.kinds = list(dict.fromkeys([*BASES, *options.kinds]))  # what the others are compared with
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    use_comfyui(cpu=options.device == "cpu")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():  # as ComfyUI runs nodes
        forwards = forward_cases(Path(folder), options)
        tables = [forward_table(forwards, options)]
        del forwards.found
        for shape in SHAPES:
            tables.append(matrix_table(shape, matrix_cases(shape, forwards.lacking, options), options))
    report("precision", tables, options.save, options.device)


def forward_table(cases: Cases, options: object) -> Table:
    header = ["precision", "error", "size", "forward", "of fp32's", "of bf16's"]
    rows = [
        [kind, f"{error:.1e}", f"{case.size:.2f}", *times]
        for (kind, case), error, times in zip(cases.found.items(), *measure(cases, options))
    ]
    what = [
        f"{options.layers} layers, {options.heads} heads of 64, 1546 tokens, seeded random weights; {options.device}.",
        "What is not quantised (norms, embeddings, the time path) is stored in the type that is computed in. With 16 "
        "heads it is over a third of the weights, with 5b's 48 a seventh: the matrices' own sizes stand below.",
    ]
    return Table("One forward of a transformer", [*what, *notes(cases, options)], header, rows)


def matrix_table(shape: tuple[int, int], cases: Cases, options: object) -> Table:
    header = ["precision", "error of weights", "of the product", "size", "product", "of fp32's", "of bf16's"]
    rows = []
    for (kind, case), error, times in zip(cases.found.items(), *measure(cases, options)):
        convert = "" if case.seconds_per_gb is None else f"{case.seconds_per_gb:.2f} s"
        rows.append([kind, f"{case.weight_error:.1e}", f"{error:.1e}", f"{case.size:.2f}", *times, convert])
    more = [
        f"A Gaussian matrix {list(shape)} and {options.rows} Gaussian rows; {options.device}.",
        "to convert: seconds for a GB of bf16 weights; GGUF by the gguf package, as converters do it beforehand.",
        "What is missing here was not possible above.",
    ]
    title = f"A matrix {shape[1]} x {shape[0]}"
    return Table(title, [*more, *notes(cases, options)], [*header, "to convert"], rows)


def notes(cases: Cases, options: object) -> list[str]:
    computes = "fp32" if options.device == "cpu" else "bf16"
    return [
        "Errors are RMS over RMS against fp32; sizes in multiples of bf16's, scales included; times are medians "
        f"(least - most) of {options.repeats}, in turn.",
        f"All but fp32 compute in {computes}, as ComfyUI does on this device; fast and dynamic multiply in 8 bits with "
        "an input that is quantised on the way. torchao quantises diffusers' model or torch's Linear, the same "
        "matrices.",
        *(f"{kind} is not here: {why}" for kind, why in cases.lacking.items()),
    ]


def measure(cases: Cases, options: object) -> tuple[list[float], list[list[str]]]:
    """(errors against fp32, cells of time) of every case in order."""
    import torch

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


def forward_cases(folder: Path, options: object) -> Cases:
    write_checkpoint(folder, VARIANT, options.layers, options.heads)
    exact = load_diffusers(folder, VARIANT, "fp32").transformer
    weights = {name: parameter.data for name, parameter in exact.named_parameters()}
    bf16_bytes = 2 * sum(weight.numel() for weight in weights.values())
    inputs = tuple(value.to(options.device) for value in make_inputs(VARIANT, exact.config))
    del exact

    def make(kind: str) -> Case:
        if kind in TORCHAO:
            model = load_torchao(folder, kind, options.device)
            run, parameters = (lambda: forward_diffusers(model, *inputs)), model.transformer.parameters()
        else:
            model = load_ours(folder, kind, weights)
            run, parameters = (lambda: forward_comfy(model, *inputs)), model.model.diffusion_model.parameters()
        return Case(run, sum(map(stored_bytes, parameters)) / bf16_bytes)

    cases = Cases()
    for kind in options.kinds:
        cases.add(kind, lambda kind=kind: make(kind))
    return cases


def load_ours(folder: Path, kind: str, weights: dict) -> object:
    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.tests import layout_files

    path, weight_dtype = folder / "transformer", kind
    if kind.startswith("GGUF"):
        path, weight_dtype = folder / kind, "default"
        path.mkdir()
        (path / "config.json").write_text((folder / "transformer" / "config.json").read_text())
        layout_files.write_gguf(path / "model.gguf", weights, kind.split()[1])
    patcher = load_model(path, weight_dtype)
    mm.load_models_gpu([patcher])
    return patcher


def load_torchao(folder: Path, kind: str, device: str) -> object:
    """diffusers' pipeline with the blocks' matrices as torchao holds them."""
    import torch

    from cogvideox.tests.layout_files import is_matrix

    with torch.inference_mode(False):
        pipeline = load_diffusers(folder, VARIANT, "fp32" if device == "cpu" else "bf16")
        pipeline.transformer.requires_grad_(False).to(device)
        quantize_torchao(
            pipeline.transformer,
            kind,
            lambda module, name: isinstance(module, torch.nn.Linear) and is_matrix(f"{name}.weight"),
        )
    return pipeline


def quantize_torchao(module: object, kind: str, choose: Callable | None = None) -> None:
    if importlib.util.find_spec("torchao") is None:
        raise ModuleNotFoundError("the package torchao is not installed")
    import torchao.quantization

    torchao.quantization.quantize_(module, getattr(torchao.quantization, TORCHAO[kind])(), filter_fn=choose)


def matrix_cases(shape: tuple[int, int], lacking: dict[str, str], options: object) -> Cases:
    """Of every kind that a forward was possible in."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(options.device)
    rows = torch.randn(options.rows, shape[1], generator=generator).to(options.device)
    compute = torch.float32 if options.device == "cpu" else torch.bfloat16

    def make(kind: str) -> Case:
        dtype = torch.float32 if kind == "fp32" else compute
        layer, seconds = torchao_layer(kind, weight, dtype) if kind in TORCHAO else our_layer(kind, weight, dtype)
        held = layer.weight.data
        numbers = held.dequantize() if type(held) is not torch.Tensor else held
        return Case(
            lambda: layer(rows.to(dtype)),
            stored_bytes(held) / (2 * weight.numel()),
            relative_error(numbers.float(), weight),
            None if kind in PLAIN else seconds / (2 * weight.numel() / 1e9),
        )

    cases = Cases()
    for kind in options.kinds:
        if kind not in lacking:
            cases.add(kind, lambda kind=kind: make(kind))
    return cases


def our_layer(kind: str, weight: object, compute: object) -> tuple[object, float]:
    """(a Linear of the pack's operations, seconds that making its weight took)."""
    import torch

    from cogvideox.host import quantized_ops as operations
    from cogvideox.host.ops import adopt_ops

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    fast = kind.endswith("_fast")
    adopt_ops(layer, operations.FastQuantizedOps if fast else operations.QuantizedOps)
    layer.weight = torch.nn.Parameter(convert(kind, weight, compute), requires_grad=False)
    seconds = time_on(lambda: weight.to(torch.bfloat16), lambda source: convert(kind, source, compute), weight.is_cuda)
    return layer, seconds


def convert(kind: str, weight: object, compute: object) -> object:
    """The weight of `kind`."""
    import torch

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


def torchao_layer(kind: str, weight: object, compute: object) -> tuple[object, float]:
    """(torch's Linear with a weight of torchao's, seconds that making it from one in bf16 took)."""
    import torch

    def linear(dtype: object) -> object:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = torch.nn.Parameter(weight.clone().to(dtype), requires_grad=False)
        return torch.nn.Sequential(layer)

    with torch.inference_mode(False):
        held = linear(compute)
        quantize_torchao(held, kind)
        convert = time_on(lambda: linear(torch.bfloat16), lambda module: quantize_torchao(module, kind), weight.is_cuda)
    return held[0], convert


def time_on(prepare: Callable[[], object], call: Callable[[object], object], on_card: bool) -> float:
    """Seconds of `call` on what `prepare` returns: the median of three, after one that is not counted."""
    import torch

    seconds = []
    for _ in range(4):
        prepared = prepare()
        if on_card:
            torch.cuda.synchronize()
        began = time.perf_counter()
        call(prepared)
        if on_card:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def stored_bytes(tensor: object) -> int:
    """Bytes of a tensor, or of the plain tensors that a subclass consists of."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name, None) for name in tensor.__tensor_flatten__()[0]]
        return sum(stored_bytes(part) for part in parts if part is not None)
    return tensor.numel() * tensor.element_size()


if __name__ == "__main__":
    main()
