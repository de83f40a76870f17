"""Half precision as a card computes it, on any CPU: most have no arithmetic for it, and take 10 to 40 times as long."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HALVES = (torch.float16, torch.bfloat16)


class RoundedOnce(TorchDispatchMode):
    """Convolutions of half-precision values add up in fp32 and round their result once, as cuDNN's and oneDNN's do."""

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is not torch.ops.aten.convolution.default or args[0].dtype not in HALVES:
            return func(*args, **kwargs or {})
        wide = (part.float() if isinstance(part, torch.Tensor) else part for part in args)
        return func(*wide, **kwargs or {}).to(args[0].dtype)
