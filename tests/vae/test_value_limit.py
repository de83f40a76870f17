"""No tensor of a convolution may have 2^31 values, and the host may read no frame that is still being copied."""

from collections.abc import Callable
from typing import Any

import comfy.ops
import pytest
import torch
import torch.nn.functional as F

from cogvideox.host.ops import adopt_ops
from cogvideox.tests.fake_card import CARD, official_vae
from cogvideox.tests.support import relative_error
from cogvideox.vae import counted, frames, plan, streaming
from cogvideox.vae.memory import count_peak
from cogvideox.vae.network import CogVideoXAutoencoder
from cogvideox.vae.plan import LADDER, OffloadPlan
from cogvideox.vae.stream import Stream

CPU = torch.device("cpu")
WALKS = (streaming.decode_stream, streaming.encode_stream)


def small_network(**config: Any) -> torch.nn.Module:
    network = CogVideoXAutoencoder(**config).eval()
    adopt_ops(network, comfy.ops.disable_weight_init)
    return network


def all_of(walk: Callable, network: torch.nn.Module, video: torch.Tensor, mode: OffloadPlan) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([*walk(network, video, mode, CPU, torch.float32)], dim=2)


@pytest.mark.parametrize("mode", LADDER, ids=lambda mode: mode.name)
@pytest.mark.parametrize("walk", WALKS)
def test_official_sizes_beyond_the_limit(walk: Callable, mode: OffloadPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """An 8k video: one ring of the widest convolution would have 25e9 values, on a card with room for them."""
    most, convolution = 0, counted._FUNCTIONS[torch.conv2d]

    def convolve(x: Any, *rest: Any, **more: Any) -> Any:
        nonlocal most
        out = convolution(x, *rest, **more)
        most = max(most, *(torch.Size(tensor.shape).numel() for tensor in (x, out)))
        return out

    monkeypatch.setitem(counted._FUNCTIONS, torch.conv2d, convolve)
    size = (16, 3, 540, 960) if walk is streaming.decode_stream else (3, 9, 4320, 7680)
    count_peak(walk, official_vae(), size, torch.bfloat16, mode, CARD)
    assert 1 << 20 < most < 1 << 31


@pytest.mark.parametrize("mode", LADDER, ids=lambda mode: mode.name)
@pytest.mark.parametrize("walk", WALKS)
def test_bands_for_the_limit_change_nothing(walk: Callable, mode: OffloadPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a limit that a tiny video reaches: the bands' edges must not show."""
    torch.manual_seed(0)
    network = small_network(block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=1)
    shape = (1, 16, 3, 6, 4) if walk is streaming.decode_stream else (1, 3, 9, 48, 32)
    video = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    want = all_of(walk, network, video, mode)
    limit, sizes = 20_000, []
    convolve = F.conv2d
    monkeypatch.setattr(plan, "VALUES_LIMIT", limit)
    monkeypatch.setattr(F, "conv2d", lambda x, *rest, **more: (sizes.append(x.numel()), convolve(x, *rest, **more))[1])
    got = all_of(walk, network, video, mode)
    assert relative_error(got, want) <= 2e-6
    assert limit // 4 < max(sizes) < limit


class _Card(Stream):
    """A stream whose frames are said to be on a card, and that notes what the host does."""

    def __init__(self, notes: list[str]):
        super().__init__(plan.LOW, CPU, torch.float32)
        self.notes = notes

    def finish_copies(self) -> None:
        self.notes.append("wait")


def test_the_host_waits_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that an upsampler has repeated is copied by the host itself once a band of it is written: the copy from
    the device that fills it may not have ended by then, and the rows outside of the band would be noise."""
    notes: list[str] = []
    kept = frames.KeptFrames(_Card(notes), 2, 4, 4, on_host=True)
    copy = torch.Tensor.copy_

    def copy_(into: torch.Tensor, source: torch.Tensor, **options: Any) -> torch.Tensor:
        notes.append("copy")
        return copy(into, source, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    kept.write(0, 0, torch.ones(1, 2, 4, 4))
    kept.repeat(1)
    assert notes == ["copy"]
    kept.write(1, 1, torch.zeros(1, 2, 2, 4))
    assert notes == ["copy", "wait", "copy", "copy"]
    assert torch.equal(kept.read(0, 0, 4), torch.ones(1, 2, 4, 4))
    assert kept.read(1, 0, 4)[0, 0, :, 0].tolist() == [1, 0, 0, 1]


def test_only_cuda_copies_ahead() -> None:
    """Where torch does not keep the order of copies by itself (Metal, say), each copy has to end before the next."""
    ahead = {name: Stream(plan.LOW, torch.device(name), torch.float32).copies_ahead for name in ("cpu", "cuda", "mps")}
    assert ahead == {"cpu": False, "cuda": True, "mps": False}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("walk", WALKS)
def test_every_mode_on_a_card(walk: Callable, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames, caches and weights that go back and forth between card and host must arrive: each mode three times."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its rounding, 1e-3, differs from band to band
    torch.manual_seed(0)
    network = small_network(block_out_channels=(32, 32, 64, 64), norm_num_groups=8)
    torch.nn.Module.to(network, "cuda", dtype)
    shape = (1, 16, 7, 24, 40) if walk is streaming.decode_stream else (1, 3, 25, 192, 320)
    video = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    card = torch.device("cuda", torch.cuda.current_device())
    results = {}
    for mode in LADDER:
        mode = plan.in_bands(mode, 4096) if mode.band_pixels else mode
        for _ in range(3):
            with torch.inference_mode():
                parts = [part.cpu() for part in walk(network, video, mode, card, dtype)]
            got = torch.cat(parts, dim=2)
            assert torch.equal(got, results.setdefault(mode.name, got)), f"{mode.name} differs from run to run"
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert max(relative_error(got, results["fast"]) for got in results.values()) <= tolerance
