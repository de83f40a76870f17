"""Whether a Triton kernel can be launched, and what becomes of one that does not work."""

import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..host.compat import is_out_of_memory
from ..host.trials import can_wait

Result = TypeVar("Result")
# A kernel, the channels and groups that it is compiled for (0 groups where it knows none), a device, and the type of
# weights and frames.
Compiled = tuple[str, tuple[int, int], torch.device, torch.dtype]
# Those that have failed, which are not tried, and whose failure is not logged, for each row of each frame again; and
# those that a trial has found right.
WITHOUT: set[Compiled] = set()
TRIED: set[Compiled] = set()
_MODULES = {
    "fused_modulated_silu": "fused",
    "fused_statistics": "fused_statistics",
    "fused_affine": "fused_norms",
    "fused_modulation": "fused_norms",
}


def try_kernel(
    like: torch.Tensor, kernel: str, size: tuple[int, int], launch: Callable[[Any], Result]
) -> Result | None:
    """launch(the kernel, one of _MODULES); None, with nothing done, where it does not work.

    like: of the device and the type for which it is compiled. size: channels and groups. It is tried there before.

    Raises what says that memory ran out: that is not Triton's fault, and streaming.py goes on with a leaner plan.
    """
    key = kernel, size, like.device, like.dtype
    if key in WITHOUT:
        return None
    try:
        # Imported here, because Triton has no package for some systems.
        function = getattr(importlib.import_module(f".{_MODULES[kernel]}", __package__), kernel)
        if key not in TRIED:
            if not can_wait(like.device):
                return None
            importlib.import_module(".frame_trials", __package__).try_frame_kernel(*key)
            TRIED.add(key)
        return launch(function)
    # A compiler, a driver or a half installed package may raise anything.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        WITHOUT.add(key)
        # A system without Triton is an ordinary one; a Triton that does not work is worth a line of log.
        if not isinstance(error, ModuleNotFoundError):
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            logging.warning(
                f"The VAE's kernel {kernel} does not work on {like.device} in {like.dtype} with {size[0]} channels "
                f"({reason}): the VAE goes on without it, somewhat slower and with the same result."
            )
        return None
