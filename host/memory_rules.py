"""ComfyUI's rules of what a card holds, asked before anything runs.

Source: comfy/model_management.py, load_models_gpu; comfy/model_patcher.py, ModelPatcher.load and partially_load;
comfy/samplers.py, _calc_cond_batch; comfy/sampler_helpers.py, prepare_sampling.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import torch

from .compat import available_memory, free_memory, freeable_memory, is_dynamic

GIB = 1 << 30
# What the driver, CUDA's context, the desktop and the browser hold of a card that is named by its size alone. An
# assumption: of the card in this machine ComfyUI knows what is free.
TAKEN_BYTES = GIB
# Of a card that is not in this machine, as ComfyUI has it on Linux (EXTRA_RESERVED_VRAM); on Windows it is 600 MiB.
RESERVED_BYTES = 400 << 20
_STREAMS = 2  # ComfyUI's NUM_STREAMS on NVIDIA's and AMD's cards
# ComfyUI evaluates prompt and negative prompt in one batch where this many times its memory is free.
_BATCH_ROOM = 1.5
# The card that a forecast is about; None for this machine's.
_asked_about: ContextVar["Card | None"] = ContextVar("cogvideox_card", default=None)


class Card(NamedTuple):
    """The device that computes, as ComfyUI deals with its memory.

    free_bytes: what ComfyUI can have free there once it has unloaded every model. reserved_bytes: of them it leaves
    alone (--reserve-vram). weight_share: the share of free memory that weights get at least, whatever a run needs.
    streams: how many copies of weights run beside the computation. is_dynamic: weights are loaded on demand (dynamic
    VRAM). keeps_all: weights are never streamed, as on a CPU. keeps_none: they always are (--novram).
    """

    device: torch.device
    free_bytes: float
    reserved_bytes: float
    weight_share: float = 0.0
    streams: int = _STREAMS
    is_dynamic: bool = False
    keeps_all: bool = False
    keeps_none: bool = False

    @property
    def least_bytes(self) -> float:
        """What ComfyUI leaves free of weights whatever a run asks for."""
        return mm.minimum_inference_memory() - mm.extra_reserved_memory() + self.reserved_bytes

    def with_less(self, taken_bytes: float) -> "Card":
        """The same card with something else on it."""
        return self._replace(free_bytes=max(0.0, self.free_bytes - taken_bytes))


def this_card(patcher: comfy.model_patcher.ModelPatcher) -> Card:
    """The device of `patcher`, with what is free on it now and what ComfyUI can unload there."""
    device: torch.device = patcher.load_device
    is_cpu = device.type == "cpu"
    return Card(
        device,
        available_memory(patcher) + (0 if is_cpu else patcher.loaded_size()),
        0 if is_cpu else mm.extra_reserved_memory(),
        mm.MIN_WEIGHT_MEMORY_RATIO,
        mm.NUM_STREAMS,
        is_dynamic(patcher),
        keeps_all=is_cpu or mm.vram_state in (mm.VRAMState.HIGH_VRAM, mm.VRAMState.SHARED, mm.VRAMState.DISABLED),
        keeps_none=not is_cpu and mm.vram_state == mm.VRAMState.NO_VRAM,
    )


def card_of(gigabytes: float, is_dynamic: bool = False) -> Card:
    """An NVIDIA card that is sold as one of `gigabytes`, which are GiB, under Linux."""
    return Card(torch.device("cuda:0"), max(0.0, gigabytes * GIB - TAKEN_BYTES), RESERVED_BYTES, is_dynamic=is_dynamic)


def total_ram() -> int:
    """Bytes of this machine's main memory."""
    total: Any = mm.get_total_memory(torch.device("cpu"))
    return total


class LayerSize(NamedTuple):
    """What one layer's weights take: on the card, and as a buffer where they are streamed (with what a cast or a LoRA
    adds to them)."""

    streamed_bytes: int
    bytes: int


def layer_sizes(patcher: comfy.model_patcher.ModelPatcher) -> list[LayerSize]:
    """The layers of `patcher` as ComfyUI counts them, patches included."""
    load_list: Any = patcher._load_list()  # (streamed bytes, bytes, name, module, parameters)
    return [LayerSize(int(entry[0]), int(entry[1])) for entry in load_list]


class Weights(NamedTuple):
    """One model's weights on a card. buffer_bytes: of what is streamed, on its way."""

    bytes: int
    resident_bytes: int
    buffer_bytes: int = 0

    @property
    def streamed_bytes(self) -> int:
        """What is copied to the card each time that the model is computed."""
        return self.bytes - self.resident_bytes


def weight_budget(card: Card, working_bytes: float) -> float:
    """How many bytes of weights ComfyUI loads at most. working_bytes: as for weights_on_card."""
    if card.keeps_all:
        return math.inf
    if card.keeps_none:
        return 0.0
    least = max(card.least_bytes, working_bytes + card.reserved_bytes)
    share = min(card.free_bytes * card.weight_share, card.free_bytes - card.least_bytes)
    return max(0.0, card.free_bytes - least, share)


def weights_on_card(card: Card, total_bytes: int, layers: Sequence[LayerSize], working_bytes: float) -> Weights:
    """How many of a model's `total_bytes` of weights stay on `card`.

    working_bytes: what ComfyUI is told that the model needs beside them, at least (minimum_memory_required).
    """
    budget = weight_budget(card, working_bytes)
    if budget > total_bytes:
        return Weights(total_bytes, total_bytes)
    resident = buffer = 0
    order = sorted(layers, key=lambda layer: (layer.streamed_bytes, layer.bytes), reverse=True)
    for index, layer in enumerate(order):
        following = order[index + 1 : index + 1 + card.streams]
        wanted = max(buffer, layer.streamed_bytes + sum(each.bytes for each in following))
        if resident + layer.bytes + wanted < budget:
            resident += layer.bytes
        else:
            buffer = wanted
    return Weights(total_bytes, resident, buffer)


def told_memory(
    patcher: comfy.model_patcher.ModelPatcher, latent_shape: Sequence[int], card: Card | None = None
) -> tuple[float, float]:
    """What ComfyUI is told that a step on latents of `latent_shape` [B, C, T, H, W] takes: with prompt and negative
    prompt in one batch, and one after the other. The nodes on the MODEL have their say, as when a run begins.

    card: another one than the device of this machine."""
    options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(patcher.model_options)
    kept = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    comfy.patcher_extension.merge_nested_dicts(kept, patcher.wrappers, copy_dict1=False)

    def estimate(model: Any, shape: list[int], conds: dict, **_: Any) -> tuple[float, float]:
        return comfy.sampler_helpers.estimate_memory(model, shape, conds)

    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    wrappers = comfy.patcher_extension.get_all_wrappers(kind, options, is_model_options=True)
    executor = comfy.patcher_extension.WrapperExecutor.new_executor(estimate, wrappers)
    token = _asked_about.set(card)
    try:
        with options_known(patcher):
            return executor.execute(patcher, list(latent_shape), {}, model_options=options)
    finally:
        _asked_about.reset(token)


@contextmanager
def options_known(patcher: comfy.model_patcher.ModelPatcher) -> Iterator[None]:
    """Let the model see which patcher it is asked for, whose options say what nodes have done to the blocks: compiled
    or patched ones take more memory. ComfyUI tells it (ModelPatcher.pre_run) after having asked how much."""
    model: Any = patcher.model
    before, model.current_patcher = getattr(model, "current_patcher", None), patcher
    try:
        yield
    finally:
        model.current_patcher = before


def free_for_run(device: torch.device) -> float:
    """Bytes that activations may take in a run: all but what ComfyUI leaves alone, once it has unloaded all weights, of
    `device` or of the card that told_memory is about."""
    card = _asked_about.get()
    if card is not None:
        return card.free_bytes - card.reserved_bytes
    reserved: float = 0 if device.type == "cpu" else mm.extra_reserved_memory()
    return freeable_memory(device) - reserved


def free_in_step(device: torch.device) -> float:
    """Bytes that activations may take now, with the weights where they are."""
    if device.type == "meta":  # on which shapes alone are computed
        return math.inf
    return free_memory(device)


def both_in_one_batch(card: Card, weights: Weights, told_bytes: float) -> bool:
    """Whether ComfyUI evaluates prompt and negative prompt in one batch. told_bytes: of told_memory, for both.

    Weights that are loaded on demand make room for the batch, others stay.
    """
    free = card.free_bytes - (0 if card.is_dynamic else weights.resident_bytes)
    return told_bytes * _BATCH_ROOM < free
