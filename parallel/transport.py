"""Tensors on their way between processes, as bytes that Ray places in shared memory."""

from typing import NamedTuple

import numpy as np
import torch


class Packed(NamedTuple):
    """A tensor without torch: numpy has no bf16. content: its bytes."""

    content: np.ndarray
    dtype: str
    shape: tuple[int, ...]


def packed(x: torch.Tensor) -> Packed:
    """`x`, from any device."""
    flat = x.detach().cpu().contiguous().reshape(-1)
    return Packed(flat.view(torch.uint8).numpy(), str(x.dtype).removeprefix("torch."), tuple(x.shape))


def unpacked(parts: Packed) -> torch.Tensor:
    """The tensor, on the CPU, in memory of its own: Ray's is shared and cannot be written."""
    content = torch.from_numpy(np.array(parts.content))
    return content.view(getattr(torch, parts.dtype)).reshape(parts.shape)
