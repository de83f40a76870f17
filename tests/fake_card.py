"""The official VAE on a simulated card: fake tensors know their device, and their bytes are counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import comfy.ops
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cogvideox.host.compat import mm
from cogvideox.host.ops import adopt_ops
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.vae import activation, blocks, norms
from cogvideox.vae.network import CogVideoXAutoencoder
from cogvideox.vae.plan import OffloadPlan
from cogvideox.vae.stream import Stream

CARD = torch.device("cuda:0")


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

    def of_groups(self: norms.GroupStatistics, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        values = self._moments[0][0].new_empty(groups)
        return values, values

    with (
        mock.patch.object(norms, "_channel_moments", moments),
        mock.patch.object(norms.GroupStatistics, "of_groups", of_groups),
        mock.patch.object(activation, "_fused", lambda *_: False),
        mock.patch.object(mm, "device_supports_non_blocking", lambda device: False),
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
