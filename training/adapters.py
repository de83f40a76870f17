"""A LoRA on a CogVideoX transformer: attached by peft, trained in fp32, written as diffusers writes it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.ops
import torch

from ..errors import UserError
from ..host.ops import adopt_ops
from ..host.optional_packages import import_package
from ..host.quantized import is_quantized
from ..model_loaders.files.safetensors_writer import write_tensors
from ..model_loaders.lora.export import diffusers_lora
from ..model_loaders.lora.layers import HEADER_KEY
from .config import TrainConfig

_ADAPTER = "default"  # the name that peft gives to an adapter without one
_PREFIX = "transformer."


def attach_lora(dit: torch.nn.Module, config: TrainConfig = TrainConfig()) -> None:
    """Freeze `dit`, a CogVideoXDiT, and put a LoRA on the layers whose names end in one of config.targets.

    A is drawn from config.seed as torch draws a Linear's weight, and B is zero: at first the model computes what it
    does without a LoRA. The layers beneath may be of any type, including quantised ones.

    Raises UserError where peft is missing or broken, or the model multiplies in fp8 or int8 and has no gradients.
    """
    peft = import_package("peft", "Training a LoRA")
    _require_gradients(dit, config.targets)
    dit.requires_grad_(False)
    adapter = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), init_lora_weights=True
    )
    # peft draws A from torch's global generator, on the CPU, from which others draw as well.
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(adapter, dit)
    generator = torch.Generator().manual_seed(config.seed)
    for layer in lora_layers(dit).values():
        # Stored in fp32 and computed in the input's type: A and B become ComfyUI's layers, which cast their weights.
        # peft would cast the input to fp32 instead, with activations of twice the size for a model in bf16.
        layer.cast_input_dtype_enabled = False
        adopt_ops(layer.lora_A, comfy.ops.manual_cast)
        adopt_ops(layer.lora_B, comfy.ops.manual_cast)
        a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        # Drawn again, from config.seed, and on the CPU: cards of different kinds have different numbers. The bound is
        # that of kaiming_uniform_ with a = sqrt(5), which torch.nn.Linear uses.
        bound = 1 / math.sqrt(a.shape[1])
        a.data = torch.empty(a.shape).uniform_(-bound, bound, generator=generator).to(a.device)
        b.data = torch.zeros(b.shape, device=b.device)


def detach_lora(dit: torch.nn.Module) -> None:
    """Take the LoRA off `dit`: its layers are again those from before attach_lora."""
    for name, layer in lora_layers(dit).items():
        dit.set_submodule(name, layer.base_layer)
    if hasattr(dit, "peft_config"):
        del dit.peft_config


def lora_layers(dit: torch.nn.Module) -> dict[str, Any]:
    """peft's layers by the name of the layer beneath: "transformer_blocks.0.attn1.to_q"."""
    return {name: module for name, module in dit.named_modules() if hasattr(module, "lora_A")}


def export_lora(dit: torch.nn.Module, weights: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """The LoRA on `dit` by diffusers' names: transformer.transformer_blocks.0.attn1.to_q.lora_A.weight, ..., fp32.

    weights: the parameters by name as loop.train returns them; None takes those in `dit`.

    alpha / rank is multiplied into B. Some programs read an alpha from the header, some from a tensor, some not at all;
    without one all of them apply the same change.
    """
    weights = dict(dit.named_parameters()) if weights is None else weights
    pairs = {}
    for name, layer in lora_layers(dit).items():
        a, b = (weights[f"{name}.{part}.{_ADAPTER}.weight"].detach().cpu() for part in ("lora_A", "lora_B"))
        pairs[name] = a.clone(), b * layer.scaling[_ADAPTER]
    return diffusers_lora(pairs)[0]


def save_lora(
    path: Path, state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, str] = {}, overwrite: bool = False
) -> Path:
    """Write what export_lora gives, with the header that diffusers reads; the file is complete or not there.

    metadata: further strings for the header.

    Raises UserError where `path` is taken and `overwrite` is not set, or the disk has no room.
    """
    names = {key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0]: None for key in state_dict}
    pairs = {
        name: (state_dict[f"{_PREFIX}{name}.lora_A.weight"], state_dict[f"{_PREFIX}{name}.lora_B.weight"])
        for name in names
    }
    tensors, header = diffusers_lora(pairs)
    header = {**metadata, "format": header["format"], HEADER_KEY: header[HEADER_KEY]}
    write_tensors(path, tensors, header, overwrite=overwrite)
    return path


def _require_gradients(dit: torch.nn.Module, targets: Sequence[str]) -> None:
    if lora_layers(dit):
        raise UserError("The model carries a LoRA that is being trained already. Load the model again.")
    fast = [
        name
        for name, module in dit.named_modules()
        if getattr(module, "multiplies_quantized", False) and is_quantized(module.weight)
    ]
    if fast:
        raise UserError(
            f"The model multiplies in its quantised type ({fast[0]} and {len(fast) - 1} more layers), which has no "
            "gradients. Load it with a weight_dtype without _fast."
        )
    if not any(name.endswith(tuple(f".{target}" for target in targets)) for name, _ in dit.named_modules()):
        raise UserError(f"The model has no layer named {' or '.join(targets)}: it is not a CogVideoX transformer.")
