"""What a pass through the network needs from its surroundings: memory, weights, and bands of rows to work on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from ..host.async_copies import pinned
from ..host.compat import throw_if_interrupted
from ..host.ops import weights_on
from .activation import Activation, modulated_silu
from .layout import empty_frame, memory_format
from .plan import OffloadPlan
from .shared_rows import SharedRows


@dataclass
class Stream:
    """One video's pass through one network: how it is computed, and what the next chunk needs of the last one.

    Every frame that the pass allocates of its own accord, and every weight that it uses, comes from here: vae/memory.py
    replaces these methods to go the same way without computing. A stream is used for one video and thrown away, so that
    a pass that was interrupted leaves no caches to the next.
    """

    plan: OffloadPlan
    device: torch.device
    dtype: torch.dtype
    activation: Activation = modulated_silu
    rows: SharedRows | None = None  # who computes the other rows of each frame; None where this process has all
    last: bool = False  # no chunk comes after this one, so that convolutions keep nothing
    # By convolution: the last two frames that it saw, each [1, C, H, W], the older one first.
    caches: dict[torch.nn.Module, list[torch.Tensor]] = field(default_factory=dict)
    _numbers: dict[tuple[float, ...], torch.Tensor] = field(default_factory=dict)

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of this video's frames."""
        return memory_format(self.device, self.dtype)

    def empty(self, channels: int, height: int, width: int, on_host: bool = False) -> torch.Tensor:
        """An uninitialised frame [1, channels, height, width], on the device or on the host."""
        return empty_frame(channels, height, width, self.dtype, self.device, self.layout, on_host)

    def weights(
        self, module: torch.nn.Module, dtype: torch.dtype | None = None
    ) -> AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight and bias of `module` on the device, in `dtype` or else in the stream's, while the context lasts."""
        return weights_on(module, self.device, dtype or self.dtype)

    def numbers(self, values: tuple[float, ...]) -> torch.Tensor:
        """`values` in fp32 on the device. They are kept: uploading a few numbers takes no time, but each upload from
        ordinary memory makes the host wait until the card has done all its work."""
        if values not in self._numbers:
            numbers = torch.tensor(values, dtype=torch.float32)
            numbers = pinned(numbers) if self.copies_ahead else numbers
            self._numbers[values] = numbers.to(self.device, non_blocking=self.copies_ahead)
        return self._numbers[values]

    @property
    def copies_ahead(self) -> bool:
        """Whether a copy between host and device may go on while the next work is queued.

        The device itself keeps the order: it reads a frame after the copy that fills it. The host does not wait, and
        has to call finish_copies before it reads such a frame. Only for CUDA is that certain; elsewhere copies wait.
        """
        return self.device.type == "cuda"

    def finish_copies(self) -> None:
        """Wait until the host may read what was copied from the device."""
        if self.copies_ahead:
            torch.cuda.current_stream(self.device).synchronize()

    def reach(self, height: int) -> tuple[int, int]:
        """The first row and last + 1 that are known of frames of `height` rows: those of other processes that lie next
        to them are rows -1 and `height`."""
        return (0, height) if self.rows is None else (-self.rows.above, height + self.rows.below)

    def bands(self, height: int, width: int, channels: int = 1) -> Iterator[tuple[int, int]]:
        """Bands of a frame, as OffloadPlan.bands makes them; the user can interrupt between two of them."""
        for band in self.plan.bands(height, width, channels):
            throw_if_interrupted()
            yield band
