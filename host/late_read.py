"""What a card has computed, read without making the host wait for it."""

from typing import Any

import torch

from .compat import empty_on_host


class LateRead:
    """A truth value on its way from a device to the host."""

    def __init__(self, value: torch.Tensor):
        """value: a single one, on any device."""
        self._value, self._event = copy_later(value) if is_card(value.device) else (value, None)

    def is_ready(self) -> bool:
        """Whether `get` would not wait. On devices other than cards the wait cannot be put off: always."""
        return self._event is None or self._event.query()

    def get(self) -> bool:
        """The value, once the card has come to it."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)


def is_card(device: torch.device) -> bool:
    """Whether a device computes while the host goes on, and has events to ask how far it has come."""
    return device.type == "cuda"


def copy_later(value: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """A copy in pinned host memory, and the CUDA event after which it holds the value."""
    copy = empty_on_host(value.shape, value.dtype, torch.contiguous_format, value.device)
    copy.copy_(value, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(value.device))
    return copy, event
