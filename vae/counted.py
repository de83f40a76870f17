"""Tensors without values: they know their shape, type and device, and their bytes are counted as long as they live.

torch has such tensors as well, and they were tried first: those on the meta device do not know the host from the card,
and FakeTensorMode, which does, takes seconds for one decode of official size. These take milliseconds. They know the
operations that the VAE uses; any other raises, and tests/vae/test_memory.py compares what they count with torch's own.
"""

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F

_ALL = slice(None)


class Tally:
    """Bytes of the storages that are alive on `device`, now and at the peak."""

    def __init__(self, device: torch.device, layout: torch.memory_format):
        self.device, self.layout = device, layout
        self.now = self.peak = 0


class _Storage:
    """What one or more tensors are views of.

    Python frees it with the last tensor that refers to it, at once, just as torch frees a real storage: __del__ runs at
    the statement at which the bytes would go back to the allocator.
    """

    __slots__ = ("tally", "size_bytes")

    def __init__(self, tally: Tally, size_bytes: int):
        self.tally, self.size_bytes = tally, size_bytes
        tally.now += size_bytes
        if tally.now > tally.peak:
            tally.peak = tally.now

    def __del__(self) -> None:
        self.tally.now -= self.size_bytes


class CountedTensor:
    """Stands for a torch.Tensor of this shape, type and device."""

    __slots__ = ("shape", "dtype", "device", "_storage")
    is_cuda = False  # so that nothing starts a kernel on it

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, storage: _Storage):
        self.shape, self.dtype, self.device, self._storage = shape, dtype, device, storage

    @classmethod
    def allocate(
        cls, tally: Tally, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, counted: bool = True
    ) -> "CountedTensor":
        """A new tensor. Its bytes count if `device` is the tally's; not with counted = False."""
        counted = counted and device == tally.device
        return cls(shape, dtype, device, _Storage(tally, math.prod(shape) * dtype.itemsize if counted else 0))

    # torch's functions call this for an argument of any class that has it, a subclass of torch.Tensor or not.
    @classmethod
    def __torch_function__(cls, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        function = _FUNCTIONS.get(func)
        return NotImplemented if function is None else function(*args, **kwargs or {})

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> "CountedTensor":
        return CountedTensor.allocate(self._storage.tally, shape, dtype or self.dtype, self.device)

    def _as_view(self, shape: Sequence[int]) -> "CountedTensor":
        return CountedTensor(tuple(shape), self.dtype, self.device, self._storage)

    # Views

    def stride(self, dim: int) -> int:
        """Of the channels only: 1 with channels last, where they are contiguous; 2 stands for anything else."""
        assert dim == 1
        return 1 if self._storage.tally.layout == torch.channels_last else 2

    def __getitem__(self, index: Any) -> "CountedTensor":
        index = index if isinstance(index, tuple) else (index,)
        shape, result, dim = self.shape, [], 0
        for part in index:
            if part is None:
                result.append(1)
            elif part is Ellipsis:
                # It stands for as many axes as the other parts leave; None takes none.
                stop = len(shape) - sum(other is not None for other in index) + 1 + dim
                result += shape[dim:stop]
                dim = stop
            elif isinstance(part, slice):
                size = shape[dim]
                result.append(size if part == _ALL else len(range(*part.indices(size))))
                dim += 1
            else:  # an integer removes its axis
                dim += 1
        return self._as_view((*result, *shape[dim:]))

    def flatten(self, start: int = 0, end: int = -1) -> "CountedTensor":
        shape = self.shape
        end %= len(shape)
        return self._as_view((*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> "CountedTensor":
        # The product of the sizes without the -1 that is among them. Where there is none, it is not needed.
        known = -math.prod(sizes) if -1 in sizes else 1
        sizes = tuple(self.shape[dim] // known if size == -1 else size for size in sizes)
        return self._as_view((*self.shape[:dim], *sizes, *self.shape[dim + 1 :]))

    def permute(self, *dims: int) -> "CountedTensor":
        return self._as_view([self.shape[dim] for dim in dims])

    def transpose(self, first: int, second: int) -> "CountedTensor":
        shape = list(self.shape)
        shape[first], shape[second] = shape[second], shape[first]
        return self._as_view(shape)

    def movedim(self, source: int, destination: int) -> "CountedTensor":
        shape = list(self.shape)
        size = shape.pop(source)
        shape.insert(destination % len(self.shape), size)
        return self._as_view(shape)

    def view(self, *sizes: int) -> "CountedTensor":
        known = -math.prod(sizes) if -1 in sizes else 1
        return self._as_view([math.prod(self.shape) // known if size == -1 else size for size in sizes])

    def unfold(self, dim: int, size: int, step: int) -> "CountedTensor":
        windows = (self.shape[dim] - size) // step + 1
        return self._as_view((*self.shape[:dim], windows, *self.shape[dim + 1 :], size))

    def split(self, sizes: int | list[int], dim: int) -> tuple["CountedTensor", ...]:
        total, parts = self.shape[dim], sizes
        if isinstance(parts, int):
            parts = [min(parts, total - start) for start in range(0, total, parts)]
        return tuple(self._as_view((*self.shape[:dim], part, *self.shape[dim + 1 :])) for part in parts)

    # Copies

    def to(
        self,
        *target: torch.device | torch.dtype,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> "CountedTensor":
        device = next((part for part in target if isinstance(part, torch.device)), self.device)
        dtype = next((part for part in target if isinstance(part, torch.dtype)), self.dtype)
        if device == self.device and dtype == self.dtype and not copy:
            return self
        return CountedTensor.allocate(self._storage.tally, self.shape, dtype, device)

    def float(self) -> "CountedTensor":
        return self.to(torch.float32)

    def contiguous(self, memory_format: torch.memory_format | None = None) -> "CountedTensor":
        """A copy: the VAE asks for one only of what is not contiguous."""
        return self._new(self.shape)

    def repeat_interleave(self, repeats: int, dim: int = 0) -> "CountedTensor":
        return self._new((*self.shape[:dim], repeats * self.shape[dim], *self.shape[dim + 1 :]))

    # Arithmetic

    # Writing takes no memory of its own: what is written has been counted where it was made.
    def __setitem__(self, index: Any, value: object) -> None:
        pass

    def _in_place(self, *_: object, **__: object) -> "CountedTensor":
        return self

    copy_ = mul_ = square_ = __iadd__ = _in_place

    def _elementwise(self, *others: object) -> "CountedTensor":
        shape = self.shape
        for other in others:
            if isinstance(other, CountedTensor):
                # Broadcast from the last axis on. torch.broadcast_shapes takes as long as all the rest of a count.
                axes = zip_longest(reversed(shape), reversed(other.shape), fillvalue=1)
                shape = tuple(max(pair) for pair in axes)[::-1]
        return self._new(shape)

    __add__ = __sub__ = __mul__ = __truediv__ = __rsub__ = square = _elementwise

    def sum(self, dim: int | tuple[int, ...], keepdim: bool = False) -> "CountedTensor":
        dims = (dim,) if isinstance(dim, int) else dim
        shape = [1 if d in dims else size for d, size in enumerate(self.shape) if keepdim or d not in dims]
        return self._new(tuple(shape))

    mean = sum


def _convolution(
    x: CountedTensor,
    weight: CountedTensor,
    bias: CountedTensor | None = None,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
) -> CountedTensor:
    sides = len(x.shape) - 2
    paddings = (padding,) * sides if isinstance(padding, int) else padding
    sizes = (
        (size + 2 * pad - kernel) // stride + 1 for size, pad, kernel in zip(x.shape[2:], paddings, weight.shape[2:])
    )
    return x._new((x.shape[0], weight.shape[0], *sizes))


def _interpolate(x: CountedTensor, scale_factor: float, **_: object) -> CountedTensor:
    return x._new((*x.shape[:2], *(int(size * scale_factor) for size in x.shape[2:])))


def _pad(x: CountedTensor, pad: tuple[int, int, int, int], **_: object) -> CountedTensor:
    left, right, top, bottom = pad
    return x._new((*x.shape[:-2], x.shape[-2] + top + bottom, x.shape[-1] + left + right))


def _cat(parts: Sequence[CountedTensor], dim: int) -> CountedTensor:
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return parts[0]._new(tuple(shape))


def _stack(parts: Sequence[CountedTensor]) -> CountedTensor:
    return parts[0]._new((len(parts), *parts[0].shape))


# With `out`, torch writes each element without a tensor in between.
def _addcmul(x: CountedTensor, y: CountedTensor, z: CountedTensor, out: CountedTensor | None = None) -> CountedTensor:
    return x._elementwise(y, z) if out is None else out


# Mean and variance come in fp32, whatever the type of x.
def _channel_statistics(x: CountedTensor, *_: object) -> tuple[CountedTensor, CountedTensor]:
    return x._new((x.shape[1],), torch.float32), x._new((x.shape[1],), torch.float32)


_FUNCTIONS: dict[Callable, Callable] = {
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    F.interpolate: _interpolate,
    F.pad: _pad,
    F.silu: lambda x, **_: x,  # the VAE calls it in place only
    torch.cat: _cat,
    torch.stack: _stack,
    torch.add: lambda x, y, out: out,
    torch.addcmul: _addcmul,
    torch.empty_like: lambda x: x._new(x.shape),
    torch.full_like: lambda x, _: x._new(x.shape),
    torch.rsqrt: lambda x: x._new(x.shape),
    torch.batch_norm_update_stats: _channel_statistics,
    torch.linalg.vector_norm: lambda x, dim: x.sum(dim),
}
