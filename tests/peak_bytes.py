"""Memory counted tensor by tensor, on devices that need not be there."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Bytes of all storages alive at once, of tensors made while it is active: on any device, or on those of a type."""

    def __init__(self, device_type: str | None = None):
        super().__init__()
        self.device_type = device_type
        self.peak = self.now = 0
        self.references: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        for tensor in {id(leaf): leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}.values():
            if self.device_type in (None, tensor.device.type):
                self._count(tensor)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.references:
            self.references[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self.references[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.references[key] -= 1
        if not self.references[key]:
            del self.references[key]
            self.now -= size
