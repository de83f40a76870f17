"""Tensors on their way between processes, as bytes that Ray places in shared memory."""

import hashlib
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


class Kept(NamedTuple):
    """A tensor that stays the same from step to step. parts: None where the other side has it already."""

    key: str
    parts: Packed | None


class Sender:
    """What the other side of a conversation keeps, so that it travels once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def kept(self, x: torch.Tensor) -> Kept:
        """`x`, with its values only where they have not been sent since `forget`."""
        parts = packed(x)
        digest = hashlib.sha256(parts.content.data)  # of the bytes where they are: this is asked in every step
        digest.update(f"{parts.dtype} {parts.shape}".encode())
        key = digest.hexdigest()
        known = key in self._known
        self._known.add(key)
        return Kept(key, None if known else parts)

    def forget(self) -> None:
        """The other side has nothing: at the beginning of a run, and after an answer that did not come."""
        self._known.clear()


class Receiver:
    """The other side of a Sender."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def take(self, kept: Kept) -> torch.Tensor:
        """The tensor, on the CPU, which is not to be written."""
        if kept.parts is not None:
            self._kept[kept.key] = unpacked(kept.parts)
        return self._kept[kept.key]

    def forget(self) -> None:
        """As Sender.forget."""
        self._kept.clear()
