"""What a kernel is tried with before it is given a video: random values, and a comparison with fp64.

A compiler that is too new, or made for another kind of card, may compute something else without a word.
"""

from collections.abc import Iterable

import torch

# Times the type's own precision: rounding leaves less than one. In fp32 a card's quick exp and division leave a few.
# Anything else is a mistake.
_MOST, _MOST_IN_FP32 = 4.0, 1e-5


class Draw:
    """Random numbers in one type on one device, the same in each process, and none of torch's own generators'."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self._generator = device, dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        # By name, because another node may have chosen another default for all of torch.
        values = torch.randn(shape, generator=self._generator, device="cpu", dtype=torch.float32)
        return values.to(self.device, self.dtype)

    def rows(self, *shape: int) -> torch.Tensor:
        """[1, C, r, W], channels last."""
        return self(*shape).contiguous(memory_format=torch.channels_last)


def can_wait(device: torch.device) -> bool:
    """Whether the host may wait for `device`, as a comparison does: not while a CUDA graph is captured."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return True
    with torch.cuda.device(device):
        return not torch.cuda.is_current_stream_capturing()


def require_exact(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """pairs: what a kernel made, and the same in fp64. Raises RuntimeError where one value differs by more than
    rounding, measured by itself and by the RMS of all: a kernel may be wrong in a few columns only."""
    for found, exact in pairs:
        size = exact.abs() + exact.square().mean().sqrt()
        error = float(((found.double() - exact).abs() / size).max())
        if not error <= max(_MOST * torch.finfo(found.dtype).eps, _MOST_IN_FP32):  # NaN fails it, as it should
            raise RuntimeError(f"on a few values its result has an error of {error:.1e}")
