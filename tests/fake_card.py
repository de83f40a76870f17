"""The official VAE on a card that is not there: fake tensors know their device, and their bytes are counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import comfy.ops
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cogvideox.host.compat import mm
from cogvideox.host.ops import adopt_ops
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.vae import activation
from cogvideox.vae.network import CogVideoXAutoencoder

CARD = torch.device("cuda:0")


def official_vae() -> torch.nn.Module:
    """Without weights; peak_on_card puts some there."""
    with torch.device("meta"):
        network = CogVideoXAutoencoder()
    adopt_ops(network, comfy.ops.disable_weight_init)
    return network.eval()


def peak_on_card(
    network: torch.nn.Module, stream: Callable, shape: tuple[int, ...], plan: object, dtype: torch.dtype
) -> int:
    """The most bytes on the card while decode_stream or encode_stream works on a video of `shape`, weights aside."""
    with fake_card():
        for module in network.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    empty = torch.empty(value.shape, dtype=dtype, device=CARD)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
        video = torch.empty(shape)
        with PeakBytes("cuda") as used:
            for part in stream(network, video, plan, CARD, dtype):
                assert part.device == CARD
                part = None
    return used.peak


@contextmanager
def fake_card() -> Iterator[None]:
    """Tensors are fake, and a few empty numbers stand for the statistics, which fake ones cannot have. Without Triton,
    whose kernel takes less."""
    from cogvideox.vae import norms

    def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (rows.new_empty(rows.shape[1], dtype=torch.float32),) * 2

    def of_groups(self: object, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (self._moments[0][0].new_empty(groups),) * 2

    with (
        mock.patch.object(norms, "_channel_moments", moments),
        mock.patch.object(norms.GroupStatistics, "of_groups", of_groups),
        mock.patch.object(activation, "_fused", lambda *_: False),
        mock.patch.object(mm, "device_supports_non_blocking", lambda device: False),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.inference_mode(),
    ):
        yield
