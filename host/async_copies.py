"""Copies to a card and from it for which the host does not wait."""

from contextlib import suppress
from typing import Any

import torch
from comfy.cli_args import args

from .compat import empty_on_host

Event = torch.cuda.Event


class LateRead:
    """Some values on their way from a device to the host."""

    def __init__(self, values: torch.Tensor):
        self._values, self._event = copy_later(values) if is_card(values.device) else (values, None)

    def is_ready(self) -> bool:
        """Whether `get` would not wait. On devices other than cards the wait cannot be put off: always."""
        return self._event is None or self._event.query()

    def get(self) -> Any:
        """The values as numbers of Python, in lists as torch.Tensor.tolist makes them, once the card has them."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


def is_card(device: torch.device) -> bool:
    """Whether a device computes while the host goes on, and has events to ask how far it has come."""
    return device.type == "cuda"


def copy_later(values: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """A copy in pinned host memory, and the event after which it holds the values."""
    copy = empty_on_host(values.shape, values.dtype, torch.contiguous_format, values.device)
    copy.copy_(values, non_blocking=True)
    return copy, record_event(values.device)


def upload(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`tensor` in the dtype and on the device of `like`."""
    if tensor.device == like.device or not is_card(like.device):
        return tensor.to(like)
    return pinned(tensor).to(like, non_blocking=True)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, of the host, in memory from which a card copies by itself. Itself where the user has switched that off,
    or the system limits it: from other memory the host may have to wait."""
    if not getattr(args, "disable_pinned_memory", False):
        with suppress(RuntimeError):
            return tensor.pin_memory()
    return tensor


def record_event(device: torch.device, timed: bool = False) -> Any:
    """A CUDA event that is reached once all work so far is done. timed: its elapsed_time can be asked for."""
    event = Event(enable_timing=timed)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(first: Any, last: Any) -> float:
    """The time between two timed events on the card's clock; 0 where the card has not come to the last one yet, for
    which the host does not wait."""
    return first.elapsed_time(last) / 1000 if last.query() else 0.0
