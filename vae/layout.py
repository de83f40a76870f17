"""The memory format of frames: what is fastest, and most exact, on the device that computes."""

import torch

from ..host.compat import empty_on_host


def memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Channels last, except for fp32 on CPUs.

    There torch's convolutions (oneDNN) are as fast with channels first, and sum in another order, whose rounding error
    is half as large.
    """
    if device.type == "cpu" and dtype == torch.float32:
        return torch.contiguous_format
    return torch.channels_last


def empty_frame(
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format,
    on_host: bool = False,
) -> torch.Tensor:
    """[1, channels, height, width], uninitialised, on `device` or in host memory from which it copies fast to `device`.

    layout: its memory format, one for all frames of a pass (memory_format).
    """
    shape = 1, channels, height, width
    if on_host:
        return empty_on_host(shape, dtype, layout, device)
    return torch.empty(shape, dtype=dtype, device=device, memory_format=layout)


def empty_frames(
    count: int,
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format,
) -> torch.Tensor:
    """[1, count, channels, height, width], of which flatten(1, 2) is a view: empty_frame of count * channels."""
    return empty_frame(count * channels, height, width, dtype, device, layout).unflatten(1, (count, channels))
