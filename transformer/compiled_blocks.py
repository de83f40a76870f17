"""A transformer's blocks by torch.compile: one graph for all of them, whose inputs are a block's weights and tokens.

ComfyUI streams, casts and patches weights outside of the graph, so that a LoRA, a quantised weight or one in main
memory is to the graph a tensor like any other.
"""

import inspect
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

from ..host.compat import attention_for
from ..host.compiling import compile_by_calling, kept_in
from ..host.messages import Notify
from ..host.ops import is_hooked, is_plain_layer, is_product, weights_held
from ..host.protocols import TransformerConfig
from ..host.stock_patches import AttentionPatches
from ..keys import ATTENTION_OVERRIDE
from .memory_modes import DEFAULT, Mode

Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]  # text, video, embedding, rotary
Pair = tuple[torch.Tensor, torch.Tensor]
BlockForward = Callable[..., Pair]
BACKEND = "inductor"
# The transformer_options of the step that computes, by thread: the operation below has no argument for them.
_step = threading.local()


# Attention is one operation of the graph, which is not traced. It has a kernel of its own in any case, and which one
# may depend on the size (host.attention_kernels) or on another node.
@torch.library.custom_op("cogvideox::attention", mutates_args=())
def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    attend, options = attention_for(query.device), _step.options
    return attend(query, key, value, query.shape[1], skip_reshape=True, transformer_options=options).contiguous()


def _describe(query: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    batch, heads, tokens, width = query.shape
    return query.new_empty(batch, tokens, heads * width)


_attention.register_fake(_describe)


def _attend(_: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__: Any, **___: Any) -> Any:
    return _attention(query, key, value)


class _Skeleton(torch.nn.Module):
    """A block of torch's own layers without weights, which torch.func.functional_call lends some."""

    def __init__(self, config: TransformerConfig, compute: BlockForward):
        super().__init__()
        entries: Any = config
        known = {name: entries[name] for name in inspect.signature(CogVideoXBlock).parameters if name in entries}
        with torch.device("meta"):
            self.block = CogVideoXBlock(dim=config.num_attention_heads * config.attention_head_dim, **known).eval()
        self.compute = compute

    def forward(self, *tokens: torch.Tensor | None) -> Pair:
        return self.compute(self.block, *tokens, {ATTENTION_OVERRIDE: _attend})


class _Graphs:
    """The graphs for models with the same config: one for a batch of 1, which torch takes for a constant, and one for
    all others, on each device and for each type.

    reason: why torch.compile has failed; "" where it has not.
    """

    def __init__(self, config: TransformerConfig, compute: BlockForward):
        skeleton = _Skeleton(config, compute)
        self.names = [name.removeprefix("block.") for name, _ in skeleton.named_parameters()]
        self.reason = ""
        self.made: set[tuple[torch.device, torch.dtype, bool]] = set()

        def call(lent_weights: dict[str, torch.Tensor], *tokens: torch.Tensor | None) -> Pair:
            return torch.func.functional_call(skeleton, lent_weights, tokens)

        # With code of its own: torch counts graphs by a function's code, and gives up after 8.
        own: Any = types.FunctionType(call.__code__.replace(), globals(), "call", None, call.__closure__)
        options: Any = {"guard_filter_fn": _without_weights}
        self.call: Callable[..., Pair] = torch.compile(own, backend=BACKEND, fullgraph=True, options=options)


def _without_weights(guards: Sequence[Any]) -> list[bool]:
    """Which of a graph's guards torch checks in each call: not those of weights, whose sizes and types are those of the
    skeleton. The weights of a LoRA are tensors of another kind than a checkpoint's, and would compile again."""
    return ["lent_weights" not in guard.name for guard in guards]


# By a model's config and the backend, for as long as the process lives.
_GRAPHS: dict[tuple[Any, ...], _Graphs] = {}


class CompiledBlocks:
    """What a model's options hold where its blocks are to be compiled, at the first of its steps."""

    def __init__(self, notify: Notify):
        """notify: told how long compiling took, why it did not work, or why blocks are left as they are; each once."""
        self._notify = notify
        self._told: set[str] = set()

    def forward_of(self, config: TransformerConfig, compute: BlockForward) -> BlockForward:
        """`compute`, which is block.block_forward, by a graph where that is possible in a call.

        One graph serves all blocks and LoRAs, and every length of text and size and length of a video. config: of the
        transformer whose blocks are called.
        """
        graphs = _graphs_of(config, compute)  # looked up once for all blocks of a step

        def forward(
            block: CogVideoXBlock,
            text: torch.Tensor,
            video: torch.Tensor,
            embedding: torch.Tensor,
            rotary: torch.Tensor | None,
            transformer_options: dict[str, Any],
            patches: AttentionPatches | None = None,
            in_place: bool = False,
            mode: Mode = DEFAULT,
        ) -> Pair:
            leaves = None if graphs.reason or patches or mode is not DEFAULT else _leaves(block, graphs.names)
            out = None
            if leaves is not None:
                tokens = text.contiguous(), video.contiguous(), embedding, rotary
                out = self._call(graphs, leaves, tokens, transformer_options)
            if out is not None:
                return out
            self._tell_why(graphs, mode)
            return compute(block, text, video, embedding, rotary, transformer_options, patches, in_place, mode)

        return forward

    def _call(
        self, graphs: _Graphs, leaves: "list[_Leaf]", tokens: Tokens, transformer_options: dict[str, Any]
    ) -> Pair | None:
        """The block's result; None where torch.compile has failed."""
        video, out = tokens[1], list[Pair]()
        shape = video.device, video.dtype, video.shape[0] == 1
        _leave_open(tokens)
        with weights_held([leaf.module for leaf in leaves], video.device, video.dtype) as held:
            weights = {}
            for leaf, (weight, bias) in zip(leaves, held):
                weights[f"block.{leaf.name}.weight"] = weight
                if bias is not None:
                    weights[f"block.{leaf.name}.bias"] = bias
            _step.options = transformer_options
            try:
                made = compile_by_calling(lambda: out.append(graphs.call(weights, *tokens)))
            finally:
                _step.options = {}
        graphs.reason = made.reason
        if made.reason:
            return None
        if shape not in graphs.made:
            graphs.made.add(shape)
            device, dtype, _ = shape
            self._tell(
                f"Compiled the transformer's block for {device} and {dtype} in {made.seconds:.1f} s. It stays compiled "
                f"for as long as ComfyUI runs, and the next start takes less time, by what torch keeps in {kept_in()}."
            )
        return out[0]

    def _tell_why(self, graphs: _Graphs, mode: Mode) -> None:
        """Why a block is computed without a graph."""
        reason = graphs.reason
        if reason:
            self._tell(
                f"torch.compile does not work here ({reason}): the transformer goes on without it, with the "
                "same result. It needs a C++ compiler for the CPU (on Windows that of Visual Studio) and Triton for a "
                "card."
            )
        elif mode is not DEFAULT:
            self._tell(
                "The blocks are not compiled at this size: a step needs less memory where they are computed in parts."
            )
        else:
            self._tell(
                "Some blocks are not compiled: another node has patched their attention or layers, or the model's "
                "weight_dtype ends in _fast."
            )

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._notify(text)


def _graphs_of(config: TransformerConfig, compute: BlockForward) -> _Graphs:
    entries: Any = config
    key = BACKEND, *sorted((name, repr(value)) for name, value in entries.items() if name[0] != "_")
    if key not in _GRAPHS:
        _GRAPHS[key] = _Graphs(config, compute)
    return _GRAPHS[key]


class _Leaf(NamedTuple):
    """A layer with weights, and its name in the block."""

    name: str
    module: torch.nn.Module


def _leaves(block: torch.nn.Module, names: Sequence[str]) -> list[_Leaf] | None:
    """The layers of `block` that have weights; None where its weights, which are called `names` in a block of the
    model's config, do not say all that it computes."""
    leaves, found = list[_Leaf](), list[str]()
    for name, module in block.named_modules():
        own = [f"{name}.{key}" for key, weight in module._parameters.items() if weight is not None]
        found += own
        is_known = is_product(module) if isinstance(module, torch.nn.Linear) else is_plain_layer(module)
        if not (is_known if own else not is_hooked(module)):
            return None
        if own:
            leaves.append(_Leaf(name, module))
    return leaves if found == list(names) else None


def _leave_open(tokens: Tokens) -> None:
    """Have torch.compile leave the batch and the counts of tokens open, not only once they have changed."""
    text, video, embedding, rotary = tokens
    open_dims: Any = torch._dynamo.maybe_mark_dynamic
    for tensor, dims in ((text, [0, 1]), (video, [0, 1]), (embedding, [0]), (rotary, [1])):
        if tensor is not None:
            open_dims(tensor, dims)
