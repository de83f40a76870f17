"""ComfyUI's patches of blocks and attention: which of them CogVideoX's transformer can serve, and who has set them.

A node stores functions in `transformer_options`, under "patches" (by kind, several of each) and "patches_replace" (by
place, one for each). A transformer calls those that it knows and, in ComfyUI, passes over all others in silence. The
functions of one kind have different arguments in ComfyUI's families of models: `attn1_patch` is f(q, k, v,
extra_options) in the U-Nets, f(q, k, v, pe=, attn_mask=, extra_options=) in models with joint attention, such as Flux,
and f({"x": ..., "q": ..., "k": ...}) in Wan. Those with joint attention are CogVideoX's kin, and their form is served.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..keys import POSITIONS, SERVED_PATCHES

Function = TypeVar("Function", bound=Callable)

# Kind -> arguments of a call in the form of ComfyUI's models with joint attention (comfy/ldm/flux, comfy/ldm/lens).
_SERVED: Mapping[str, tuple[tuple, dict[str, None]]] = {
    "attn1_patch": ((None, None, None), {"pe": None, "attn_mask": None, "extra_options": None}),
    "attn1_output_patch": ((None, None), {}),
    "double_block": ((None,), {}),
    "post_input": ((None,), {}),
}
# Patches that bring weights or entries of another model along: on CogVideoX they would fail in the first step. These
# modules hold nothing else.
_FOREIGN_MODULES = ("comfy.ldm.", "comfy_extras.nodes_model_patch", "comfy_extras.nodes_flux")


@dataclass(frozen=True)
class AttentionPatches:
    """What one block's attention calls. The functions of a kind are called one after the other."""

    before: tuple[Callable, ...]  # f(q, k, v, pe=, attn_mask=, extra_options=) -> {"q": ..., ...}
    instead: Callable | None  # f(q, k, v, extra_options) -> out, each [B, N, heads * D]
    after: tuple[Callable, ...]  # f(out [B, N, heads * D], extra_options) -> out


@dataclass(frozen=True)
class ServedPatches:
    """What the transformer calls."""

    attention: tuple[AttentionPatches, ...]  # of each block
    block_output: tuple[Callable, ...]  # f({"img": ..., "txt": ..., ...}) -> the same with other tokens
    input: tuple[Callable, ...]  # f({"img": ..., "txt": ..., ...}), before the first block


class ComparedOptions:
    """Entries of transformer_options that torch.compile compares from call to call, as its guards.

    ComfyUI's TorchCompileModel takes what is called transformer_options for the same in every call, and would leave out
    a patch that is there in some calls only, such as that of perturbed attention. Not a dictionary, in which ComfyUI
    might look for tensors to be cast.
    """

    def __init__(self, entries: dict[str, Any]):
        self.entries = entries


def compared_options(transformer_options: Mapping[str, Any], blocks: int) -> ComparedOptions:
    """What decides how a transformer with this many blocks computes a step, and may differ from one to the next."""
    entries = {key: transformer_options[key] for key in ("patches_replace", POSITIONS) if key in transformer_options}
    return ComparedOptions({**entries, SERVED_PATCHES: serve_patches(dict(transformer_options), blocks)})


def _not_compiled(function: Function) -> Function:
    """`function`, kept out of torch.compile's graphs."""
    excluded: Any = torch.compiler.disable(function)
    return excluded


def serve_patches(transformer_options: dict[str, Any], blocks: int) -> ServedPatches | None:
    """The patches that a transformer with this many blocks serves; None without any."""
    if SERVED_PATCHES in transformer_options:
        return transformer_options[SERVED_PATCHES]
    # The sets are empty where nothing is patched: torch.compile traces as far as here, and a graph has no break.
    patches = transformer_options.get("patches", {})
    replacements = transformer_options.get("patches_replace", {}).get("attn1", {})
    if not replacements and not any(patches.get(kind) for kind in _SERVED):
        return None
    return _serve(patches, replacements, blocks)


@_not_compiled  # torch.compile cannot trace the signatures of functions
def _serve(
    patches: Mapping[str, Sequence[Callable]], replacements: Mapping[tuple, Callable], blocks: int
) -> ServedPatches:
    taken = {kind: tuple(patch for patch in patches.get(kind, ()) if _is_served(kind, patch)) for kind in _SERVED}
    # Two patches of one node work together: ToMe's second one gives back the tokens that its first one has merged.
    left_out = {_origin(patch) for patch in patches.get("attn1_patch", ()) if patch not in taken["attn1_patch"]}
    before, after = taken["attn1_patch"], taken["attn1_output_patch"]
    after = tuple(patch for patch in after if _origin(patch) not in left_out)
    instead = (_replacement(replacements, index, blocks) for index in range(blocks))
    attention = tuple(AttentionPatches(before, replacement, after) for replacement in instead)
    return ServedPatches(attention, taken["double_block"], taken["post_input"])


def _replacement(replacements: Mapping[tuple, Callable], index: int, blocks: int) -> Callable | None:
    """What replaces the attention of block `index`.

    Nodes for ComfyUI's U-Nets name a block ("middle", 0): here it is the block in the middle.
    """
    places: list[tuple] = [("double_block", index)]
    if index == blocks // 2:
        places += [("middle", 0), ("middle", 0, 0)]
    return next((replacements[place] for place in places if place in replacements), None)


def unserved_patches(transformer_options: Mapping[str, Any], blocks: int) -> Iterator[tuple[str, str]]:
    """(who has set it, its kind) for each patch that a transformer with this many blocks does not call."""
    for kind, functions in transformer_options.get("patches", {}).items():
        for patch in functions:
            if not _is_served(kind, patch):
                yield owner_of(patch), kind
    for kind, functions in transformer_options.get("patches_replace", {}).items():
        for place, patch in functions.items():
            if not _is_place(kind, place, blocks):
                place = " ".join(map(str, place)) if isinstance(place, tuple) else place
                yield owner_of(patch), f"{kind} in {place}"


def foreign_patches(transformer_options: Mapping[str, Any]) -> list[str]:
    """Who has set patches that belong to another of ComfyUI's models."""
    functions = [patch for several in transformer_options.get("patches", {}).values() for patch in several]
    return sorted({owner_of(patch) for patch in functions if _module(patch).startswith(_FOREIGN_MODULES)})


def owner_of(function: Any) -> str:
    """The node that has made `function`, as far as its name tells: the class in whose method it was defined, or its own
    class."""
    name = _qualified_name(function).split(".")[0]
    return name if name[:1].isupper() else _module(function).rpartition(".")[2]


def _is_served(kind: str, patch: Any) -> bool:
    if kind not in _SERVED:
        return False
    arguments, named = _SERVED[kind]
    try:
        inspect.signature(patch).bind(*arguments, **named)
    except Exception:  # other arguments; a signature that Python does not know; or an odd object's own error
        return False
    return True


def _is_place(kind: str, place: Any, blocks: int) -> bool:
    # Whatever another pack calls the places of its own model.
    if kind == "attn1" and place in (("middle", 0), ("middle", 0, 0)):
        return True
    return kind in ("attn1", "dit") and place in [("double_block", index) for index in range(blocks)]


def _origin(function: Any) -> tuple[str, str]:
    """The module, and the function or class within it, that `function` was made in."""
    return _module(function), _qualified_name(function).rpartition(".<locals>.")[0]


def _plain(function: Any) -> Any:
    # Patches of U-Nets' layers come as (class of the layer, function).
    while isinstance(function, (functools.partial, tuple)):
        function = function[-1] if isinstance(function, tuple) else function.func
    return function if hasattr(function, "__qualname__") else type(function)


def _named(function: Any, attribute: str) -> str:
    """A name of a function of another pack, which may be an object that answers any question with any error, as a proxy
    for something that is gone does: then that of its class. For the sake of a message no run ends."""
    try:
        return str(getattr(_plain(function), attribute))
    except Exception:
        return str(getattr(type(function), attribute))


def _qualified_name(function: Any) -> str:
    return _named(function, "__qualname__")


def _module(function: Any) -> str:
    # ComfyUI imports its extra nodes by path: their modules are called /path/to/comfy_extras/nodes_nag.
    path = _named(function, "__module__").replace("\\", "/")
    return path.replace("/", ".")[path.rfind("comfy_extras") :] if "comfy_extras" in path else path
