"""What decoding and encoding hold at their peak, so that ComfyUI frees no more and no less.

The pass through the network is written once, in streaming.py and what it calls. It is run here with tensors that have
no values, in a stream that counts what is alive on the device: a change of the pass changes the count by itself.

One count takes 13 to 54 ms of a slow CPU at official sizes (python3 dev.py bench vae prints them), because it leaves
out what cannot be the peak: chunks after the second, and bands of rows between the second and the last. A network's
counts are kept, so that a size is counted once. A table fitted to the pass would be faster still, but it would hold for
the official widths only, and would have to be made again after each change.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, cast

import torch

from .activation import rows_at_once
from .counted import CountedTensor, Tally
from .geometry import latent_frames, video_frames
from .layout import memory_format
from .modulation import Modulation
from .plan import FAST, OffloadPlan
from .shared_rows import SharedRows
from .stream import Stream
from .streaming import FRAMES_AT_ONCE, LATENTS_AT_ONCE, decode_stream, encode_stream

# Chunks of a long video that are counted: the first, which may be longer, and the second, as all after it are.
COUNTED_CHUNKS = 2
# For what an allocator rounds up, and for what libraries allocate for themselves.
MARGIN, MARGIN_BYTES = 1.02, 8 << 20


Around = tuple[int, int]  # SharedRows.above and below
ALONE: Around = 0, 0


class PeakMemory:
    """Counts the bytes that one network holds on `device` at the peak of a decode or an encode.

    around: what a process knows of others' rows, which has only the rows of `shape`.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device):
        self._network, self._device = network, device
        self._known: dict[tuple, int] = {}

    def is_of(self, network: torch.nn.Module, device: torch.device) -> bool:
        """Whether it counts this network on this device."""
        return network is self._network and device == self._device

    def decode_bytes(
        self, shape: tuple[int, ...], dtype: torch.dtype, plan: OffloadPlan = FAST, around: Around = ALONE
    ) -> int:
        """Bytes for latents [B, 16, n, h, w], decoded one video after the other in `dtype`. Without the weights."""
        # decode_stream repeats the last of an even number of latents.
        count = _counted_frames(shape[2] + (shape[2] > 1 and shape[2] % 2 == 0), LATENTS_AT_ONCE)
        return self._peak_bytes(decode_stream, (shape[1], count, *shape[3:]), dtype, plan, around)

    def encode_bytes(
        self, shape: tuple[int, ...], dtype: torch.dtype, plan: OffloadPlan = FAST, around: Around = ALONE
    ) -> int:
        """Bytes for frames [B, 3, t, H, W], encoded one video after the other in `dtype`. Without the weights."""
        # encode_stream leaves out the frames beyond 4 k + 1.
        count = _counted_frames(video_frames(latent_frames(shape[2])), FRAMES_AT_ONCE)
        return self._peak_bytes(encode_stream, (shape[1], count, *shape[3:]), dtype, plan, around)

    def decode_host_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, plan: OffloadPlan) -> int:
        """What the same decode holds in host memory, in a plan that keeps tensors there. Without the result."""
        host = torch.device("cpu")
        if self._device == host:
            return 0  # it is part of decode_bytes
        count = _counted_frames(shape[2] + (shape[2] > 1 and shape[2] % 2 == 0), LATENTS_AT_ONCE)
        size = (shape[1], count, *shape[3:])
        return self._counted(decode_stream, size, dtype, plan, host)

    def _peak_bytes(
        self, walk: Callable, size: tuple[int, ...], dtype: torch.dtype, plan: OffloadPlan, around: Around
    ) -> int:
        return int(self._counted(walk, size, dtype, plan, self._device, around) * MARGIN) + MARGIN_BYTES

    def _counted(
        self,
        walk: Callable,
        size: tuple[int, ...],
        dtype: torch.dtype,
        plan: OffloadPlan,
        on: torch.device,
        around: Around = ALONE,
    ) -> int:
        """count_peak of the bytes that are on a device, once for each size and plan."""
        key = walk, size, dtype, plan, on, around
        if key not in self._known:
            self._known[key] = count_peak(walk, self._network, size, dtype, plan, self._device, on, around)
        return self._known[key]


def count_peak(
    walk: Callable[..., Iterator[torch.Tensor]],
    network: torch.nn.Module,
    size: tuple[int, ...],
    dtype: torch.dtype,
    plan: OffloadPlan,
    device: torch.device,
    counted_on: torch.device | None = None,
    around: Around = ALONE,
) -> int:
    """The most bytes on `device` in the first chunks of decode_stream or encode_stream. size: (C, T, H, W).

    counted_on: another device whose bytes are counted instead, while the pass runs on `device`. around: see PeakMemory.
    """
    tally = Tally(counted_on or device, memory_format(device, dtype))
    # The input belongs to the caller. It is there before ComfyUI is asked for memory, so it does not count.
    shape = 1, *size[:2], size[2] + sum(around), size[3]
    video = CountedTensor.allocate(tally, shape, torch.float32, torch.device("cpu"), counted=False)
    make_stream = partial(_CountingStream, tally, _CountedRows(*around) if any(around) else None)
    chunks = walk(network, cast(torch.Tensor, video), plan, device, dtype, make_stream=make_stream)
    for chunk in islice(chunks, COUNTED_CHUNKS):
        del chunk
    return tally.peak


class _CountingStream(Stream):
    """A stream of CountedTensors: whatever the pass asks a Stream for, as it is, without values."""

    def __init__(self, tally: Tally, rows: SharedRows | None, *arguments: Any):
        super().__init__(*arguments, rows=rows)
        self.activation = _count_activation
        self._tally = tally

    def empty(self, channels: int, height: int, width: int, on_host: bool = False) -> torch.Tensor:
        """See Stream."""
        device = torch.device("cpu") if on_host else self.device
        return self._tensor((1, channels, height, width), self.dtype, device)

    @contextmanager
    def weights(
        self, module: torch.nn.Module, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """See Stream. A copy in another type counts; the weights themselves are ComfyUI's to count."""
        dtype, conv = dtype or self.dtype, cast(torch.nn.Conv3d, module)  # or another layer with these two
        weight, bias = (
            value if value is None else self._tensor(tuple(value.shape), dtype, self.device, dtype != self.dtype)
            for value in (conv.weight, conv.bias)
        )
        yield cast(torch.Tensor, weight), bias

    def numbers(self, values: tuple[float, ...]) -> torch.Tensor:
        """See Stream."""
        if values not in self._numbers:
            self._numbers[values] = self._tensor((len(values),), torch.float32, self.device)
        return self._numbers[values]

    def finish_copies(self) -> None:
        """See Stream. Nothing is copied."""

    def bands(self, height: int, width: int, channels: int = 1) -> Iterator[tuple[int, int]]:
        """See Stream. The third band and those after it are as the second; nothing here waits to be interrupted."""
        bands = list(self.plan.bands(height, width, channels))
        yield from bands if len(bands) <= 3 else (*bands[:2], bands[-1])

    def _tensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, counted: bool = True
    ) -> torch.Tensor:
        return cast(torch.Tensor, CountedTensor.allocate(self._tally, shape, dtype, device, counted))


class _CountedRows(NamedTuple):
    """SharedRows that nobody has."""

    above: int
    below: int

    def neighbours(self, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return torch.empty_like(first) if self.above else None, torch.empty_like(last) if self.below else None

    def gathered(self, moments: torch.Tensor) -> torch.Tensor:
        return torch.stack([moments])


def _count_activation(x: torch.Tensor, modulation: Modulation, top: int, out: torch.Tensor) -> None:
    """modulated_silu, of which one span counts.

    It goes through all rows span by span and holds one of them at a time in fp32. A Triton kernel or a compiled one
    holds nothing, so for these the count is an upper bound.
    """
    if out.dtype != torch.float32:
        x[:, :, : rows_at_once(x)].float()


def _counted_frames(count: int, at_once: int) -> int:
    """The fewest frames that are cut into the same first chunks: the first, COUNTED_CHUNKS - 1 more, and one after.

    The one after is not counted, but it has to follow: the last chunk of a video keeps no caches, and would take less.
    """
    return min(count, count % at_once + (COUNTED_CHUNKS + 1) * at_once)
