"""Plain Python numbers among the tensors of a PyTorch file: some trainers keep a LoRA's alpha as one."""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

LORA_CONFIG = "lora_config"  # a LoRA's settings in a header, as finetrainers writes them
ALPHA_NAME = "cogvideox_alpha_name"  # in metadata: what the plain number is called that LORA_CONFIG was made of
# The names of the setting in peft (LoraConfig) and in kohya's sd-scripts (an argument of train_network.py, and what it
# writes into a header): beside the tensors, or one level above them. A bare "alpha" there may be anything.
_ALPHA_OF_ALL = ("lora_alpha", "network_alpha", "ss_network_alpha")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether `value` is a plain number. Python counts True and False among them."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64, which the checks of a LoRA's scales refuse as they do Inf
        return math.inf


def as_tensor(name: str, value: Any) -> torch.Tensor | None:
    """A tensor as it is, and a layer's alpha as a float64 tensor; None for other data, such as the number of a step."""
    if isinstance(value, torch.Tensor):
        return value
    if is_number(value) and name.endswith(".alpha"):
        return torch.tensor(_float(value), dtype=torch.float64)
    return None


def tensors_of(values: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The tensors among `values`, layers' alphas included; see as_tensor. Other data are left out."""
    found = {name: as_tensor(name, value) for name, value in values.items() if isinstance(name, str)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def alpha_of_all(values: Mapping[Any, Any]) -> float | None:
    """The alpha of all layers, None where it is not among `values`."""
    name = _name_of_alpha(values)
    return None if name is None else _float(values[name])


def _name_of_alpha(values: Mapping[Any, Any]) -> str | None:
    return next((name for name in _ALPHA_OF_ALL if is_number(values.get(name))), None)


def alpha_metadata(values: Mapping[Any, Any]) -> dict[str, str]:
    """The alpha of all layers as the metadata of a header have it, with its name; {} where it is not among `values`."""
    name = _name_of_alpha(values)
    return {} if name is None else {LORA_CONFIG: json.dumps({"lora_alpha": _float(values[name])}), ALPHA_NAME: name}
