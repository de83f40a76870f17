"""Memory counted tensor by tensor, on devices that need not be there."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Bytes of all storages alive at once, of tensors made while it is active: on any device, or on those of a type.

    without: tensors of which views do not count either, such as weights.
    """

    def __init__(self, device_type: str | None = None, without: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.device_type = device_type
        self._without = {tensor.untyped_storage()._cdata for tensor in without}
        self.peak = self.now = 0
        self.references: dict[int, int] = {}  # by storage
        self._watched: dict[int, tuple[weakref.ref, int, int]] = {}  # by id of the weak reference to a tensor

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        leaves = (out,) if isinstance(out, torch.Tensor) else tree_leaves(out)
        for tensor in {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}.values():
            if self.device_type in (None, tensor.device.type):
                self._count(tensor)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._without:
            return
        if key not in self.references:
            self.references[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self.references[key] += 1
        watch = weakref.ref(tensor, self._release)
        self._watched[id(watch)] = watch, key, size

    def _release(self, watch: weakref.ref) -> None:
        _, key, size = self._watched.pop(id(watch))
        self.references[key] -= 1
        if not self.references[key]:
            del self.references[key]
            self.now -= size
