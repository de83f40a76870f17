"""A transformer's blocks as modules that are called, which gradient checkpointing and FSDP need."""

from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from ..transformer.dit import block_forward


@dataclass(frozen=True)
class _AsIs:
    """What FSDP's mixed precision must not cast: positions in bf16 would be others."""

    rotary: torch.Tensor | None


def call_blocks(dit: torch.nn.Module, recompute: bool = False) -> object:
    """Let `dit`, a CogVideoXDiT, call each of its blocks as a module, in every forward from now on.

    recompute: keep only what enters a block, and run it again when its gradient is due (gradient checkpointing): about
    a third more time for a fraction of the memory.

    Returns a handle whose remove() ends it; the blocks compute the same either way.
    """
    # accelerate's FSDP looks there for a last norm to wrap, and would take norm_out, whose parts are called one by one
    dit.base_model_prefix = "none"
    replacements = {}
    for index, block in enumerate(dit.transformer_blocks):
        block.forward = partial(_forward, block)
        replacements["double_block", index] = partial(_call, block, recompute)

    def add(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        options = dict(kwargs.get("transformer_options") or {})
        replaced = options.get("patches_replace", {})
        options["patches_replace"] = {**replaced, "dit": {**replacements, **replaced.get("dit", {})}}
        return args, {**kwargs, "transformer_options": options}

    return dit.register_forward_pre_hook(add, with_kwargs=True)


def _forward(
    block: torch.nn.Module,
    text: torch.Tensor,
    video: torch.Tensor,
    embedding: torch.Tensor,
    positions: _AsIs,
    transformer_options: dict,
) -> tuple[torch.Tensor, torch.Tensor]:
    return block_forward(block, text, video, embedding, positions.rotary, transformer_options)


def _call(block: torch.nn.Module, recompute: bool, args: dict, extra: dict) -> dict:
    """A `patches_replace` hook, as transformer.dit calls it."""
    inputs = args["txt"], args["img"], args["vec"], _AsIs(args["pe"]), args["transformer_options"]
    if recompute and torch.is_grad_enabled():
        text, video = checkpoint(block, *inputs, use_reentrant=False)
    else:
        text, video = block(*inputs)
    return {"txt": text, "img": video}
