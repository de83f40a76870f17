"""A transformer's blocks as modules that are called, which gradient checkpointing and FSDP need."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from ..transformer.dit import block_forward


@dataclass(frozen=True)
class NoCast:
    """Wraps rotary positions, or FSDP's mixed precision would cast them: in bf16 they would be other positions."""

    rotary: torch.Tensor | None


def call_blocks(dit: torch.nn.Module, recompute: bool = False) -> RemovableHandle:
    """Let `dit`, a CogVideoXDiT, call each of its blocks as a module, in every forward from now on.

    recompute: keep only what enters a block, and run it again when its gradient is due (gradient checkpointing): about
    a third more time for a fraction of the memory.

    Returns a handle whose remove() ends it; the blocks compute the same either way.
    """
    blocks: Any = dit.transformer_blocks
    replacements: dict[tuple[str, int], Callable] = {}
    for index, block in enumerate(blocks):
        block.forward = partial(_forward, block)
        replacements["double_block", index] = partial(_call, block, recompute)

    def add(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        options = dict(kwargs.get("transformer_options") or {})
        replaced = options.get("patches_replace", {})
        options["patches_replace"] = {**replaced, "dit": {**replacements, **replaced.get("dit", {})}}
        return args, {**kwargs, "transformer_options": options}

    return dit.register_forward_pre_hook(add, with_kwargs=True)


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
    """A `patches_replace` hook, as transformer.dit calls it."""
    inputs = args["txt"], args["img"], args["vec"], NoCast(args["pe"]), args["transformer_options"]
    if recompute and torch.is_grad_enabled():
        output: Any = checkpoint(block, *inputs, use_reentrant=False)
    else:
        output = block(*inputs)
    text, video = output
    return {"txt": text, "img": video}
