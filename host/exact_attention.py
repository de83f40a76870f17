"""torch's own attention, in the place of a kernel that has no gradients or computes with eight bits."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import CodeType, ModuleType
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch

from ..keys import ATTENTION_OVERRIDE

# What kernels with eight-bit products are called: SageAttention and SpargeAttn, those that name their type, and torch's
# own products. "sage" ends "message" and "usage" as well, and pictures are uint8.
_QUANTISED = r"(?<![a-z])sage|sage(?=at|3)|sparge|fp8|float8|(?<!u)int8|_scaled_mm|\b_int_mm"
_MOST_CODES = 100  # functions within a function
_LEVELS = 4  # of calls: the override, its helper, the kernel's function, and what that calls
_OPAQUE = {"torch", *sys.stdlib_module_names}  # whose code names all types


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
    """What a function is called, and everything that its code names, with the packages that these are from.

    Nodes put a kernel into a small function, method or partial of their own, in which the kernel may have any name: it
    is followed for _LEVELS calls. A kernel of torch's operations shows its products by their names. What a compiled one
    of another package computes in cannot be known: it is taken for exact unless a name says otherwise. A function that
    may call such a kernel and does not counts as quantised too, which costs a look at each step's result.
    """
    values, seen = [function], dict[int, Any]()
    for _ in range(_LEVELS):
        new = {id(value): value for value in values if id(value) not in seen}
        seen |= new  # which also keeps them: the id of a value that is gone may come again
        texts = [text for value in new.values() for text in _safely(_own_names, value)]
        # A path says where something lies. ComfyUI calls the modules of a node pack by their path.
        yield from (text for text in texts if not re.search(r"[/\\]", text))
        values = [used for value in new.values() for used in _safely(_used, value)]


def _safely(look: Callable[[Any], Iterable[Any]], value: Any) -> list[Any]:
    """What `look` finds. An object of another pack may answer any question with any error, as a proxy for something
    that is gone does: it says nothing then, and its run goes on."""
    found = list[Any]()
    with suppress(Exception):
        found.extend(look(value))
    return found


def _own_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, ModuleType):
        return (value.__name__.partition(".")[0],)
    name = str(getattr(value, "__qualname__", type(value).__qualname__))
    return name, str(getattr(value, "__module__", "")).partition(".")[0]


def _used(value: Any) -> Iterator[Any]:
    """What a callable has: the names in its code, and the strings, callables and modules behind these."""
    if isinstance(value, str | type | ModuleType):
        return
    if isinstance(value, functools.partial):
        yield from filter(_can_tell, (value.func, *value.args, *value.keywords.values()))
        return
    yield from filter(callable, (getattr(value, "__wrapped__", None),))
    function: Any = getattr(value, "__func__", value if inspect.isfunction(value) else None)
    if function is None:
        function = type(value).forward if isinstance(value, torch.nn.Module) else type(value).__call__
    scope = getattr(function, "__globals__", {})
    if not scope or str(scope.get("__name__")).partition(".")[0] in _OPAQUE:
        return
    names = [*_code_names(function.__code__)]
    yield from names
    held = getattr(getattr(value, "__self__", value), "__dict__", {})  # of a method's object, or of the object itself
    yield from (each[name] for name in names for each in (scope, held) if name in each and _can_tell(each[name]))
    yield from filter(_can_tell, (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing was assigned to this variable yet, or it was deleted
            yield from filter(_can_tell, (cell.cell_contents,))


def _code_names(code: CodeType) -> Iterator[str]:
    codes = [code]
    for _ in range(_MOST_CODES):
        if not codes:
            return
        one = codes.pop()
        yield from (*one.co_names, *one.co_freevars)
        codes += [inner for inner in one.co_consts if isinstance(inner, CodeType)]  # functions that are defined within


def _can_tell(value: Any) -> bool:
    try:
        return callable(value) or isinstance(value, str | ModuleType)
    except Exception:  # of a proxy for something that is gone
        return False
