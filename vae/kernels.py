"""Whether a Triton kernel can be launched, and what becomes of a Triton that does not work."""

import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..host.compat import is_out_of_memory

Result = TypeVar("Result")
# Devices on which Triton has failed: it is not tried, and its failure not logged, for each row of each frame again.
WITHOUT_TRITON: set[torch.device] = set()
# Modules whose kernels have been right on a device, for weights and frames of a type.
TRIED: set[tuple[str, torch.device, torch.dtype]] = set()


def try_kernel(like: torch.Tensor, module: str, launch: Callable[[Any], Result]) -> Result | None:
    """launch(a module of this folder that imports Triton); None, with nothing done, where Triton does not work.

    like: of the device and the type for which the kernels are compiled. They have been tried there before.

    Raises what says that memory ran out: that is not Triton's fault, and streaming.py goes on with a leaner plan.
    """
    device, key = like.device, (module, like.device, like.dtype)
    if device in WITHOUT_TRITON:
        return None
    try:
        # Imported here, because Triton has no package for some systems.
        if key not in TRIED:
            importlib.import_module(".frame_trials", __package__).try_kernels(*key)
            TRIED.add(key)
        return launch(importlib.import_module(f".{module}", __package__))
    # A compiler, a driver or a half installed package may raise anything.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        WITHOUT_TRITON.add(device)
        # A system without Triton is an ordinary one; a Triton that does not work is worth a line of log.
        if not isinstance(error, ModuleNotFoundError):
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            logging.warning(
                f"Triton does not work on {device} ({reason}): the VAE goes on without it, somewhat slower and with "
                "the same result."
            )
        return None
