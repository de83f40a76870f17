"""The official VAE on a simulated card: fake tensors know their device, and their bytes are counted. And a card that
holds models by their sizes alone, for what ComfyUI loads onto it and takes away."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import comfy.ops
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cogvideox.host.compat import mm
from cogvideox.host.ops import adopt_ops
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.vae import blocks, kernels, norms
from cogvideox.vae.network import CogVideoXAutoencoder
from cogvideox.vae.plan import OffloadPlan
from cogvideox.vae.stream import Stream

CARD = torch.device("cuda:0")


class Everything(set):
    """In the place of kernels.WITHOUT, where no kernel of the VAE works."""

    def __contains__(self, _: object) -> bool:
        return True


def official_vae() -> torch.nn.Module:
    """Without weights; peak_on_card puts some there."""
    with torch.device("meta"):
        network = CogVideoXAutoencoder()
    adopt_ops(network, comfy.ops.disable_weight_init)
    return network.eval()


def peak_on_card(
    network: torch.nn.Module,
    walk: Callable[..., Iterator[torch.Tensor]],
    shape: tuple[int, ...],
    plan: OffloadPlan,
    dtype: torch.dtype,
) -> int:
    """The most bytes on the card while decode_stream or encode_stream works on a video of `shape`, without weights."""
    with fake_card():
        for module in network.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=dtype, device=CARD)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
        video = torch.empty(shape)
        with PeakBytes("cuda") as used:
            for part in walk(network, video, plan, CARD, dtype):
                assert part.device == CARD
                del part
    return used.peak


@contextmanager
def fake_card() -> Iterator[None]:
    """Tensors are fake, and a few empty numbers stand for the statistics, which fake ones cannot have. Without Triton,
    whose kernel takes less."""

    def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = rows.new_empty(rows.shape[1], dtype=torch.float32)
        return channels, channels

    def numbers(self: Stream, values: tuple[float, ...]) -> torch.Tensor:
        return torch.empty(len(values), device=self.device)

    with (
        mock.patch.object(norms, "_channel_moments", moments),
        mock.patch.object(kernels, "WITHOUT", Everything()),
        mock.patch.object(Stream, "numbers", numbers),
        mock.patch.object(mm, "device_supports_non_blocking", lambda device: False),
        mock.patch.object(Stream, "finish_copies", lambda self: None),  # it would ask a card that is not there
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.inference_mode(),
    ):
        yield


def failing_convolutions(monkeypatch: pytest.MonkeyPatch, fails: Callable[[OffloadPlan, int], bool]) -> None:
    """Let the causal convolutions for which fails(plan, number so far) run out of memory."""
    count, convolution = 0, blocks.causal_convolution

    def convolve(stream: Stream, *rest: Any) -> Iterator[tuple[int, int, torch.Tensor]]:
        nonlocal count
        count += 1
        if fails(stream.plan, count):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return convolution(stream, *rest)

    monkeypatch.setattr(blocks, "causal_convolution", convolve)


class SizedPatcher:
    """What comfy.model_management asks of a ModelPatcher: `bytes` of weights, of which `on_card` are on CARD.

    It stands for its own model as well. ComfyUI 0.18.2 alone asks for the memory that is mapped and pinned.
    """

    parent = None
    load_device = CARD

    def __init__(self, bytes: int, on_card: int = 0, offload_device: torch.device = torch.device("cpu")):
        self.bytes, self.on_card, self.offload_device = bytes, on_card, offload_device
        self.model = self

    def model_size(self) -> int:
        return self.bytes

    def loaded_size(self) -> int:
        return self.on_card

    def current_loaded_device(self) -> torch.device:
        return CARD if self.on_card else self.offload_device

    def partially_load(self, device: torch.device, extra_memory: float, **_: Any) -> int:
        before, self.on_card = self.on_card, min(self.bytes, self.on_card + max(0, int(extra_memory)))
        return self.on_card - before

    def partially_unload(self, device: torch.device, memory_to_free: float, **_: Any) -> int:
        if self.offload_device == CARD:
            return 0
        freed = min(self.on_card, math.ceil(memory_to_free))
        self.on_card -= freed
        return freed

    def detach(self, unpatch_all: bool = True) -> None:
        if unpatch_all and self.offload_device != CARD:
            self.on_card = 0

    def is_clone(self, other: object) -> bool:
        return other is self

    def is_dynamic(self) -> bool:
        return False

    def model_mmap_residency(self, free: bool = False) -> tuple[int, int]:
        return 0, 0

    def pinned_memory_size(self) -> int:
        return 0

    def model_patches_models(self) -> list:
        return []

    def model_patches_to(self, device: object) -> None: ...

    def model_dtype(self) -> torch.dtype:
        return torch.bfloat16


class SizedCard:
    """A card of `total` bytes with models on it, for ComfyUI's own load_models_gpu and free_memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, *models: SizedPatcher):
        self._models = [*models]
        self.total = total
        monkeypatch.setattr(mm, "get_free_memory", self._free_memory)
        monkeypatch.setattr(mm, "soft_empty_cache", lambda *_, **__: None)
        monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NORMAL_VRAM)
        monkeypatch.setattr(mm, "lowvram_available", True)
        monkeypatch.setattr(mm, "current_loaded_models", [])
        for model in models:
            loaded: Any = mm.LoadedModel(cast(Any, model))
            loaded.real_model, loaded.model_finalizer = weakref.ref(model), weakref.finalize(model, int)
            mm.current_loaded_models.append(loaded)

    def add(self, model: SizedPatcher) -> None:
        """Count a model that ComfyUI has not loaded yet."""
        if model not in self._models:
            self._models.append(model)

    def free(self) -> int:
        return self.total - sum(model.on_card for model in self._models)

    def _free_memory(self, device: Any = None, torch_free_too: bool = False) -> Any:
        return (self.free(), 0) if torch_free_too else self.free()
