"""Whether a Triton kernel can be launched, and what becomes of one that does not work."""

import importlib
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..host.compat import is_out_of_memory
from ..host.trials import can_wait

Result = TypeVar("Result")
# Modules of kernels, each with a device and a type of weights and frames: those that have failed there, which are not
# tried, and whose failure is not logged, for each row of each frame again; and those that a trial has found right.
WITHOUT: set[tuple[str, torch.device, torch.dtype]] = set()
TRIED: set[tuple[str, torch.device, torch.dtype]] = set()


def try_kernel(like: torch.Tensor, module: str, launch: Callable[[Any], Result]) -> Result | None:
    """launch(a module of this folder that imports Triton); None, with nothing done, where its kernels do not work.

    like: of the device and the type for which the kernels are compiled. They have been tried there before.

    Raises what says that memory ran out: that is not Triton's fault, and streaming.py goes on with a leaner plan.
    """
    key = module, like.device, like.dtype
    if key in WITHOUT:
        return None
    try:
        # Imported here, because Triton has no package for some systems.
        kernels = importlib.import_module(f".{module}", __package__)
        if key not in TRIED:
            if not can_wait(like.device):
                return None
            importlib.import_module(".frame_trials", __package__).try_kernels(*key)
            TRIED.add(key)
        return launch(kernels)
    # A compiler, a driver or a half installed package may raise anything.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        WITHOUT.add(key)
        # A system without Triton is an ordinary one; a Triton that does not work is worth a line of log.
        if not isinstance(error, ModuleNotFoundError):
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            logging.warning(
                f"Triton's kernels of vae/{module}.py do not work on {like.device} in {like.dtype} ({reason}): the VAE "
                "goes on without them, somewhat slower and with the same result."
            )
        return None
