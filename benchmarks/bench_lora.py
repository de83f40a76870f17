"""A LoRA of rank 128 on the attention layers of a 1 GB transformer: applying it, merging it, patches on the fly."""

import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

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
from cogvideox.benchmarks.implementations import forward_comfy
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.tests import layout_files

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

LAYERS, HEADS, RANK = 4, 48, 128  # of 5b's 42 layers, at its width: 1.1 GB in bf16
MODULES = ("to_q", "to_k", "to_v", "to_out.0")
KINDS = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "GGUF Q8_0": "default"}  # -> weight_dtype
LORA, STRENGTH = "benchmark.safetensors", 0.8
LATENT = (2, 16, 24)  # (T, H, W): 192 video tokens
TEXT_TOKENS = 226
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # a layer's name -> A [rank, in], B [out, rank], bf16


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 5},
        layers={"type": int, "default": LAYERS},
        rank={"type": int, "default": RANK},
        kinds={"nargs": "+", "choices": list(KINDS), "default": list(KINDS)},
    )
    use_comfyui()
    from cogvideox.model_loaders.load_model import load_model

    applied, merged, on_the_fly = [], [], []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():  # as ComfyUI runs nodes
        factors = write_files(Path(folder), options)
        for kind in options.kinds:
            model = load_model(Path(folder) / kind.split()[0], KINDS[kind])
            apply = apply_calls(model, Path(folder))
            applied.append([kind, *compare(interleave(apply, options.repeats), "stock", "ours")])
            merged.append([kind, *compare_loads(model, apply, factors, options.repeats)])
            on_the_fly += [[kind, *cells] for cells in compare_forwards(model, apply["ours"](), options.repeats)]
            for rows in (applied, merged, on_the_fly):
                print(*rows[-1], flush=True)
            del model, apply
            unload_models()
    size = sum(a.numel() + b.numel() for a, b in factors.values()) * 2 / 1e6
    report("lora", tables(options, applied, merged, on_the_fly, size), options.save)


def tables(
    options: Namespace, applied: list[list[str]], merged: list[list[str]], on_the_fly: list[list[str]], size: float
) -> list[Table]:
    """size: MB of the LoRA."""
    what = (
        f"{options.layers} layers of 5b's width; rank {options.rank}, {', '.join(MODULES)} of every layer, {size:.0f} "
        f"MB in bf16. Medians (least - most) of {options.repeats}, in turn."
    )
    return [
        Table(
            "Applying a LoRA",
            [
                what,
                "The node's whole work: reading the file, checking every value for NaN, finding the layers, and "
                "handing the patches to a clone of the model. For our models the stock node reads LoRAs in the same "
                "way.",
            ],
            ["model", "LoraLoaderModelOnly", "CogVideoXApplyLora", "ours / stock"],
            applied,
        ),
        Table(
            "The load that merges it",
            [
                "ComfyUI's load_models_gpu, which merges the patches into the weights, against the same load without a "
                "LoRA.",
                "loop: new = W + s * B @ A in fp32, for the same layers, packed again as W was; ComfyUI "
                "rounds stochastically, which the loop does not. GGUF blocks cannot be "
                "packed again: their patches are kept and applied in every forward.",
            ],
            ["model", "without", "with ours", "with stock", "loop", "ours / stock", "ours / loop"],
            merged,
        ),
        Table(
            "Patches applied on the fly",
            [
                f"One forward of {token_count()} tokens. streamed: every weight stays on the offload device and is "
                "patched when it is used, as on a GPU with little memory; loaded: as on a GPU with enough of it.",
                "The time added does not depend on the number of tokens: 49 frames at 720x480 have 17776, so there "
                "its share is a 40th of the one here.",
            ],
            ["model", "state", "without", "with", "with / without", "added"],
            on_the_fly,
        ),
    ]


def token_count() -> int:
    frames, height, width = LATENT
    return frames * height * width // 4 + TEXT_TOKENS


def write_files(folder: Path, options: Namespace) -> Factors:
    """Write the model as bf16 safetensors (linked under the name of every kind that loads it) and as GGUF, and the
    LoRA; returns the LoRA's factors."""
    plain, blocks = folder / "bf16", folder / "GGUF"
    plain.mkdir()
    weights = random_weights(plain, options.layers, HEADS, text_embed_dim=4096, time_embed_dim=512)
    layout_files.TRANSFORMER_LAYOUTS["diffusers bf16"](plain, weights)
    for name in ("fp32", "int8"):
        (folder / name).symlink_to(plain)
    if "GGUF Q8_0" in options.kinds:
        blocks.mkdir()
        (blocks / "config.json").write_text((plain / "config.json").read_text())
        layout_files.TRANSFORMER_LAYOUTS["GGUF Q8_0"](blocks, weights)
    factors: Factors = {}
    for layer in range(options.layers):
        for module in MODULES:
            name = f"transformer_blocks.{layer}.attn1.{module}"
            out, inputs = weights[f"{name}.weight"].shape
            a, b = torch.randn(options.rank, inputs), 0.01 * torch.randn(out, options.rank)
            factors[name] = (0.1 * a).to(torch.bfloat16), (0.1 * b).to(torch.bfloat16)
    named = {f"transformer.{n}.lora_{k}.weight": t for n, pair in factors.items() for k, t in zip("AB", pair)}
    (folder / "loras").mkdir()
    save_file(named, folder / "loras" / LORA)
    return factors


def apply_calls(model: "ModelPatcher", folder: Path) -> dict[str, Callable[[], Any]]:
    """The two nodes, each as ComfyUI runs it for the first time, when the stock one has no file cached."""
    import folder_paths
    from comfy_api.latest import io

    nodes = comfyui_nodes()
    from cogvideox.nodes.lora import CogVideoXApplyLora

    folder_paths.add_model_folder_path("loras", str(folder / "loras"), is_default=True)
    CogVideoXApplyLora.hidden = io.HiddenHolder.from_dict(None)  # ComfyUI sets it on the class that it runs
    return {
        "ours": lambda: CogVideoXApplyLora.execute(model, LORA, STRENGTH).args[0],
        "stock": lambda: nodes.LoraLoaderModelOnly().load_lora_model_only(model, LORA, STRENGTH)[0],
    }


def compare_loads(
    model: "ModelPatcher", apply: dict[str, Callable[[], Any]], factors: Factors, repeats: int
) -> list[str]:
    """The cells of a row of the table of loads."""
    import comfy.model_management as mm

    models = {"without": model} | {name: call() for name, call in apply.items()}
    calls: dict[str, Callable] = {
        name: lambda patcher=patcher: mm.load_models_gpu([patcher]) for name, patcher in models.items()
    }
    loop = reference_loop(model, factors)
    if loop is not None:
        calls["loop"] = loop
    seconds = interleave(calls, repeats, prepare=lambda name: unload_models())
    unload_models()
    names = ("without", "ours", "stock", "loop")
    cells = [median_spread(seconds[name], digits=3) if name in seconds else "" for name in names]
    against = ratio(seconds["ours"], seconds["loop"]) if loop is not None else ""
    return [*cells, ratio(seconds["ours"], seconds["stock"]), against]


def reference_loop(model: "ModelPatcher", factors: Factors) -> Callable[[], list[torch.Tensor]] | None:
    """new = W + s * B @ A for every layer of the LoRA; None for GGUF, whose blocks cannot be packed again."""
    from cogvideox.host import quantized

    layers = [(model.model.diffusion_model.get_submodule(name).weight.data, *pair) for name, pair in factors.items()]

    def merge(weight: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        new = quantized.dequantized(weight, torch.float32).addmm(b.float(), a.float(), alpha=STRENGTH)
        return quantized.requantize(weight, new) if quantized.is_quantized(weight) else new.to(weight.dtype)

    return None if quantized.is_gguf(layers[0][0]) else lambda: [merge(*layer) for layer in layers]


def compare_forwards(model: "ModelPatcher", patched: "ModelPatcher", repeats: int) -> list[list[str]]:
    """Rows (state, without, with, ratio, added) of every state in which this model applies patches on the fly."""
    import comfy.model_management as mm

    generator = torch.Generator().manual_seed(0)
    config = model.model.diffusion_model.config
    latents = torch.randn(1, config.in_channels, *LATENT, generator=generator)
    inputs = latents, torch.randn(1, TEXT_TOKENS, config.text_embed_dim, generator=generator), torch.tensor([700])
    models, rows = {"without": model, "with": patched}, []
    states: dict[str, Callable] = {
        "streamed": lambda patcher: patcher.partially_load(patcher.load_device, extra_memory=1)
    }
    if holds_gguf(model):
        states["loaded"] = lambda patcher: mm.load_models_gpu([patcher])
    for state, enter in states.items():
        loaded = []

        def prepare(name: str, enter: Callable = enter, loaded: list = loaded) -> None:
            while loaded:
                loaded.pop().detach()
            unload_models()
            enter(models[name])
            loaded.append(models[name])

        calls = {name: lambda patcher=patcher: forward_comfy(patcher, *inputs) for name, patcher in models.items()}
        seconds = interleave(calls, repeats, prepare=prepare)
        loaded.pop().detach()
        unload_models()
        more = statistics.median(seconds["with"]) - statistics.median(seconds["without"])
        rows.append([state, *compare(seconds, "without", "with"), f"{more:.2f} s"])
    return rows


def holds_gguf(model: "ModelPatcher") -> bool:
    from cogvideox.host.quantized import is_gguf

    return any(map(is_gguf, model.model.diffusion_model.parameters()))


def compare(seconds: dict[str, list[float]], first: str, second: str) -> list[str]:
    """The times of both, and the second's over the first's."""
    times = [median_spread(seconds[name], digits=3) for name in (first, second)]
    return [*times, ratio(seconds[second], seconds[first])]


if __name__ == "__main__":
    main()
