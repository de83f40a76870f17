"""The same LoRA as every trainer writes it, and the weights that it must lead to."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.support import reference_transformer

RANK, ALPHA = 4, 8.0
ATTENTION = tuple(f"transformer_blocks.{i}.attn1.{m}" for i in range(2) for m in ("to_q", "to_k", "to_v", "to_out.0"))
LINEAR = (
    *ATTENTION,
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.1.ff.net.2",
    "transformer_blocks.1.norm1.linear",
    "patch_embed.text_proj",
    "time_embedding.linear_1",
    "norm_out.linear",
    "proj_out",
)
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
Files = dict[str, torch.Tensor]


def random_factors(
    shapes: dict[str, tuple[int, ...]], layers: Iterable[str], ranks: dict[str, int] | None = None, seed: int = 0
) -> Factors:
    """Layer -> (A [rank, in, ...], B [out, rank, ...]); a convolution's A has its window."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for layer in layers:
        out, *rest = shapes[layer]
        rank = (ranks or {}).get(layer, RANK)
        a = 0.2 * torch.randn(rank, *rest, generator=generator)
        b = 0.2 * torch.randn(out, rank, *[1] * (len(rest) - 1), generator=generator)
        factors[layer] = a, b
    return factors


def _dotted(prefix: str, down: str = ".lora_A.weight", up: str = ".lora_B.weight") -> Callable[[Factors], Files]:
    def write(factors: Factors) -> Files:
        return {
            f"{prefix}{layer}{suffix}": tensor
            for layer, pair in factors.items()
            for suffix, tensor in zip((down, up), pair)
        }

    return write


def _flat(prefix: str) -> Callable[[Factors], Files]:
    def write(factors: Factors) -> Files:
        renamed = {layer.replace(".", "_"): pair for layer, pair in factors.items()}
        return _dotted(prefix, ".lora_down.weight", ".lora_up.weight")(renamed)

    return write


def _processor(factors: Factors) -> Files:
    renamed = {
        layer.replace(".attn1.", ".attn1.processor.").removesuffix(".0"): pair for layer, pair in factors.items()
    }
    return _dotted("transformer.", "_lora.down.weight", "_lora.up.weight")(renamed)


def _sat(prefix: str) -> Callable[[Factors], Files]:
    places = {
        "to_q": "query_key_value.matrix_{}.0",
        "to_k": "query_key_value.matrix_{}.1",
        "to_v": "query_key_value.matrix_{}.2",
        "to_out.0": "dense.matrix_{}.0",
    }

    def write(factors: Factors) -> Files:
        files = {}
        for layer, pair in factors.items():
            _, number, _, module = layer.split(".", 3)
            for letter, tensor in zip("AB", pair):
                files[f"{prefix}layers.{number}.attention.{places[module].format(letter)}"] = tensor
        return files

    return write


def _comfyui(factors: Factors) -> Files:
    names = {".attn1.to_out.0": ".attn_out", ".attn1.to_": ".", ".ff.net.0.proj": ".ff_proj", ".ff.net.2": ".ff_out"}
    renamed = {}
    for layer, pair in factors.items():
        name = layer.replace("transformer_blocks.", "blocks.").replace("embedding.linear", "embedding_linear")
        for theirs, native in names.items():
            name = name.replace(theirs, native)
        renamed[name] = pair
    return _dotted("diffusion_model.", ".lora_down.weight", ".lora_up.weight")(renamed)


def _diffsynth(factors: Factors) -> Files:
    """DiffSynth-Studio's own modules (diffsynth/models/cog_dit.py), with the adapter's name in the keys."""
    ends = {
        "patch_embed.proj": "patchify.proj",
        "patch_embed.text_proj": "context_embedder",
        "time_embedding.linear_1": "time_embedder.timestep_embedder.0",
        "time_embedding.linear_2": "time_embedder.timestep_embedder.2",
        "attn1.to_out.0": "attn1.to_out",
        "ff.net.0.proj": "ff.0",
        "ff.net.2": "ff.2",
    }
    renamed = {}
    for layer, pair in factors.items():
        name = layer.replace("transformer_blocks.", "blocks.")
        end = next((end for end in ends if name.endswith(end)), None)
        renamed[name.removesuffix(end) + ends[end] if end else name] = pair
    return _dotted("", ".lora_A.default.weight", ".lora_B.default.weight")(renamed)


def _within_blocks(factors: Factors) -> Files:
    """torch.compile and FSDP, applied to each block of a model."""
    renamed = {
        re.sub(r"^(transformer_blocks\.\d+)\.", r"module.\1._fsdp_wrapped_module._orig_mod.", layer): pair
        for layer, pair in factors.items()
    }
    return _dotted("")(renamed)


# What programs wrap a model in before they save: DistributedDataParallel, torch.compile, peft, trainers' own modules.
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "transformer._orig_mod.",
    "module._orig_mod.base_model.model.",
    "a_student.of_mine.",
)


# dialect -> (what writes it, the layers it can have, how it names the alpha of a layer)
DIALECTS: dict[str, tuple[Callable[[Factors], Files], tuple[str, ...], str | None]] = {
    "diffusers": (_dotted("transformer."), LINEAR, "transformer.{}.alpha"),
    "without prefix": (_dotted(""), LINEAR, "{}.alpha"),
    "peft": (_dotted("base_model.model."), LINEAR, "base_model.model.{}.alpha"),
    "peft, named adapter": (
        _dotted("base_model.model.", ".lora_A.my-lora 2.weight", ".lora_B.my-lora 2.weight"),
        LINEAR,
        "base_model.model.{}.alpha",
    ),
    "diffusers around peft": (_dotted("transformer.base_model.model."), LINEAR, None),
    "ComfyUI, diffusers' layers": (_dotted("diffusion_model."), LINEAR, "diffusion_model.{}.alpha"),
    "ComfyUI, its own layers": (_comfyui, LINEAR, None),
    "Fun": (_flat("lora_unet__"), LINEAR, "lora_unet__{_}.alpha"),
    "kohya": (_flat("lora_unet_"), LINEAR, "lora_unet_{_}.alpha"),
    "OneTrainer": (_flat("lora_transformer_"), LINEAR, "lora_transformer_{_}.alpha"),
    "LyCORIS": (_flat("lycoris_"), LINEAR, "lycoris_{_}.alpha"),
    "DiffSynth": (_diffsynth, LINEAR, None),
    "DiffSynth, wrapped": (
        lambda factors: {f"pipe.dit.{key}": tensor for key, tensor in _diffsynth(factors).items()},
        LINEAR,
        None,
    ),
    "compiled, flat": (_flat("lora_unet__orig_mod_"), LINEAR, None),
    "each block compiled": (_within_blocks, LINEAR, None),
    **{f"wrapped, {prefix}": (_dotted(prefix), LINEAR, prefix + "{}.alpha") for prefix in WRAPPERS},
    "raw SAT": (_sat("model.diffusion_model.transformer."), ATTENTION, None),
    "raw SAT, short": (_sat("transformer."), ATTENTION, None),
    "old diffusers": (_dotted("transformer.", ".lora.down.weight", ".lora.up.weight"), LINEAR, "transformer.{}.alpha"),
    "old diffusers' processors": (_processor, ATTENTION, None),
}
ALPHAS = ("none", "tensor", "header", "kohya header")


def write_dialect(dialect: str, factors: Factors, alpha: str = "none") -> tuple[Files, dict[str, str], float]:
    """(tensors, header, scale) of a LoRA whose alpha, if any, is ALPHA."""
    write, _, alpha_name = DIALECTS[dialect]
    files, header = write(factors), {}
    if alpha == "tensor":
        assert alpha_name is not None, f"{dialect} has no alpha tensors"
        for layer in factors:
            files[alpha_name.format(layer, _=layer.replace(".", "_"))] = torch.tensor(ALPHA)
    elif alpha == "header":
        header = adapter_header({"r": RANK, "lora_alpha": ALPHA, "target_modules": list(factors)})
    elif alpha == "kohya header":
        header = {"ss_network_alpha": str(ALPHA), "ss_network_dim": str(RANK)}
    return files, header, 1.0 if alpha == "none" else ALPHA / RANK


def adapter_header(config: dict, prefix: str = "transformer.") -> dict[str, str]:
    """The header that diffusers 0.34 and later writes."""
    return {"format": "pt", "lora_adapter_metadata": json.dumps({prefix + k: v for k, v in config.items()})}


def save(path: Path, files: Files, header: dict[str, str] | None = None) -> Path:
    contiguous = {key: tensor.contiguous().clone() for key, tensor in files.items()}
    safetensors.torch.save_file(contiguous, path, header or None)
    return path


def fused(weights: Files, factors: Factors, scale: float | dict[str, float]) -> Files:
    """The definition: W + scale * B @ A, in the weights' own precision."""
    result = {name: weight.clone() for name, weight in weights.items()}
    for layer, (a, b) in factors.items():
        factor = scale[layer] if isinstance(scale, dict) else scale
        change = (b.flatten(1) @ a.flatten(1)).reshape(result[f"{layer}.weight"].shape)
        result[f"{layer}.weight"] += factor * change
    return result


class Subject:
    """A tiny fp32 model in ComfyUI's hands, and diffusers' view of its weights."""

    def __init__(self, folder: Path, weight_dtype: str = "fp32", weights: Path | None = None):
        self.folder = folder
        self.model = load_model(weights or folder, weight_dtype)
        self.weights: Files = reference_transformer(folder).state_dict()
        ours = {name.removesuffix(".weight"): weight for name, weight in self.weights.items() if "weight" in name}
        self.shapes = {layer: tuple(weight.shape) for layer, weight in ours.items()}

    def factors(self, layers: Iterable[str], ranks: dict[str, int] | None = None, seed: int = 0) -> Factors:
        return random_factors(self.shapes, layers, ranks, seed)


def patched_weights(model: ModelPatcher) -> Files:
    """The transformer's weights as a run uses them; the model is left as it was."""
    model.patch_model(torch.device("cpu"))
    now = {name: p.detach().clone() for name, p in model.model.diffusion_model.named_parameters()}
    model.unpatch_model(torch.device("cpu"))
    return now


def assert_weights(model: ModelPatcher, expected: Files) -> None:
    """Bit-equal, every one of them."""
    now = patched_weights(model)
    wrong = [name for name, weight in now.items() if not torch.equal(weight, expected[name])]
    assert not wrong, f"{wrong[:5]}: {(now[wrong[0]] - expected[wrong[0]]).abs().max()}"


def in_diffusers(folder: Path, path: Path, strength: float) -> Files:
    """The weights by diffusers' load_lora_weights and fuse_lora."""
    pytest.importorskip("peft")
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    # Only the transformer is used; the pipeline's annotations do not allow for missing components.
    components: dict[str, Any] = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": None,
        "transformer": reference_transformer(folder),
    }
    pipeline = CogVideoXPipeline(**components, scheduler=CogVideoXDDIMScheduler())
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="tested")
    assert pipeline.get_list_adapters(), "diffusers ignored the file: this test would show nothing"
    pipeline.fuse_lora(lora_scale=strength, components=["transformer"])
    pipeline.unload_lora_weights()
    return pipeline.transformer.state_dict()
