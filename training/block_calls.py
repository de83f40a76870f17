"""A transformer's blocks as modules that are called, which gradient checkpointing and FSDP need."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from ..transformer.block import block_forward


class NoCast:
    """Holds rotary positions, which FSDP's mixed precision must not cast as it casts a module's inputs: in bf16 they
    would be other positions.

    It must not be a dataclass or a tuple, for FSDP looks for tensors in those (torch.distributed.utils,
    _apply_to_tensors).
    """

    def __init__(self, rotary: torch.Tensor | None):
        self.rotary = rotary


def call_blocks(dit: torch.nn.Module, recompute: bool = False) -> RemovableHandle:
    """Let `dit`, a CogVideoXDiT, call each of its blocks as a module in every forward.

    By itself it calls block_forward, a function that uses a block's layers directly. Nothing then calls the block, and
    the hooks by which FSDP gathers its weights never run. ComfyUI's patches_replace, which can put a function in a
    block's place, is the way in without a change to the transformer.

    recompute: keep only what enters a block, and run it again when its gradient is due (gradient checkpointing): about
    a third more time for a fraction of the memory.

    Returns a handle whose remove() ends it; the blocks compute the same either way.
    """
    blocks: Any = dit.transformer_blocks
    replacements: dict[tuple[str, int], Callable] = {}
    for index, block in enumerate(blocks):
        # diffusers' own forward of a block has other arguments, and knows no attention function of ComfyUI's.
        block.forward = partial(_forward, block)
        replacements["double_block", index] = partial(_call, block, recompute)

    def add(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        options = dict(kwargs.get("transformer_options") or {})
        replaced = options.get("patches_replace", {})
        # A block that another node has replaced stays replaced.
        options["patches_replace"] = {**replaced, "dit": {**replacements, **replaced.get("dit", {})}}
        return args, {**kwargs, "transformer_options": options}

    return dit.register_forward_pre_hook(add, with_kwargs=True)


@contextmanager
def before_blocks(dit: torch.nn.Module, ask: Callable[[], object]) -> Iterator[None]:
    """While this lasts `ask` is called before each block of `dit` in a forward, and after each in a backward, which end
    with what it raises. The blocks have to be called as modules, see call_blocks."""

    def hook(block: torch.nn.Module, args: tuple) -> None:
        ask()
        video = args[1]
        if video.requires_grad:
            video.register_hook(lambda _: ask())

    blocks: Any = dit.transformer_blocks
    handles = [block.register_forward_pre_hook(hook) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward(
    block: Any,
    text: torch.Tensor,
    video: torch.Tensor,
    embedding: torch.Tensor,
    positions: NoCast,
    transformer_options: dict,
) -> tuple[torch.Tensor, torch.Tensor]:
    return block_forward(block, text, video, embedding, positions.rotary, transformer_options)


def _call(block: torch.nn.Module, recompute: bool, args: dict, extra: dict) -> dict:
    """A patches_replace function: arguments and result have the names that transformer.block, replaced_block gives."""
    inputs = args["txt"], args["img"], args["vec"], NoCast(args["pe"]), args["transformer_options"]
    if recompute and torch.is_grad_enabled():
        output: Any = checkpoint(block, *inputs, use_reentrant=False)
    else:
        output = block(*inputs)
    text, video = output
    return {"txt": text, "img": video}
