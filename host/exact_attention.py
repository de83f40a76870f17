"""torch's own attention, in the place of a kernel that has no gradients or computes with eight bits."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch

from ..keys import ATTENTION_OVERRIDE

# What kernels with eight-bit products are called: SageAttention and SpargeAttn, and those that name their type. "sage"
# ends "message" and "usage" as well.
_QUANTISED = r"(?<![a-z])sage|sage(?=at|3)|sparge|fp8|float8|int8"


def exact_attention(_: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
    """An attention override, which ComfyUI calls with the function that it would call otherwise."""
    return attention_pytorch(*args, **kwargs)


def with_exact_attention(transformer_options: Mapping[str, Any]) -> dict[str, Any]:
    """`transformer_options` with torch's attention, whatever ComfyUI was started with or a node has chosen."""
    return {**transformer_options, ATTENTION_OVERRIDE: exact_attention}


def quantised_attention(attend: Callable, transformer_options: Mapping[str, Any]) -> str:
    """The name of the quantised kernel that attention is computed with; "" where none is known to be.

    attend: ComfyUI's attention function (compat.attention_for); a node's override takes its place.
    """
    function: Any = transformer_options.get(ATTENTION_OVERRIDE, attend)
    return _name(function) if re.search(_QUANTISED, " ".join(_names(function)).lower()) else ""


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _names(function: Any) -> Iterator[str]:
    """What a function is called, and what it calls: nodes put a kernel into a small function of their own, whose
    closure has the kernel or its name."""
    while isinstance(function, functools.partial):
        yield from (_name(value) for value in (*function.args, *function.keywords.values()) if callable(value))
        function = function.func
    function = inspect.unwrap(function)
    yield str(getattr(function, "__qualname__", type(function).__qualname__))
    code = getattr(function, "__code__", None)
    if code is not None:
        yield from (*code.co_names, *code.co_freevars)
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # nothing was assigned to this variable yet, or it was deleted
            value = cell.cell_contents
            if not (isinstance(value, str) or callable(value)):
                continue
            yield value if isinstance(value, str) else _name(value)
