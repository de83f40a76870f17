"""What comes through a link, compared with what ComfyUI's types promise: other packs' nodes may give anything."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ..errors import UserError
from ..samplers.latent_entries import check_samples


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(entry, (list, tuple))
        and len(entry) > 1
        and isinstance(entry[0], torch.Tensor | None)
        and isinstance(entry[1], Mapping)
        for entry in value
    )


# Of a MODEL and a CLIP what the pack calls: other packs have classes of their own for both.
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "IMAGE": ("pictures as a tensor [frames, height, width, channels]", _is_tensor),
    "MASK": ("a mask as a tensor [frames, height, width]", _is_tensor),
    "CONDITIONING": ("a list of prompts, each a tensor with a dictionary", _is_conditioning),
    "MODEL": (
        "a model of this pack's loaders",
        lambda value: hasattr(value, "get_model_object") and hasattr(value, "clone"),
    ),
    "CLIP": ("a text encoder", lambda value: hasattr(value, "tokenize")),
}


def check_sockets(inputs: Mapping[str, io.Input], values: Mapping[str, Any], is_input_list: bool) -> None:
    """Raises UserError for the first of `values` that is not what its input's type promises.

    is_input_list: each value is a list of such values.
    """
    for name, value in values.items():
        entry = inputs[name]
        for item in value if is_input_list and isinstance(value, list) else [value]:
            if not (item is None and entry.optional):
                _check(name, entry.io_type, item)


def _check(name: str, io_type: str, value: Any) -> None:
    if io_type == "LATENT":
        check_samples(value, f"The latent of {name}")
    if io_type in _EXPECTED and not _EXPECTED[io_type][1](value):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        if io_type == "CONDITIONING" and isinstance(value, (list, tuple)):
            found = "a list of something else"
        raise UserError(
            f"{name} is {found}; it should be {_EXPECTED[io_type][0]}. Check the node that it comes from: its result "
            f"is not a valid {io_type}."
        )
