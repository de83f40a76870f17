"""torch.compile: whether it works on this machine, how long it has taken, and where it keeps what it has made."""

import logging
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import comfy.model_management as mm

from .compat import is_out_of_memory


class Compiled(NamedTuple):
    """How a call that compiles has gone: its seconds, and why it has failed; "" where it has not."""

    seconds: float
    reason: str


def compile_by_calling(call: Callable[[], object]) -> Compiled:
    """Call `call`, which makes torch.compile compile, and say how that went.

    Raises what `call` raises where memory runs out or the user cancels: that says nothing about torch.compile.
    """
    start = time.perf_counter()
    try:
        call()
    # It depends on compilers, drivers and versions of Python, and each fails in its own way.
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, mm.InterruptProcessingException):
            raise
        logging.debug("torch.compile has failed:", exc_info=error)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The first line names the backend alone.
        return Compiled(time.perf_counter() - start, f"{type(error).__name__}: {' '.join(lines[:2])}")
    return Compiled(time.perf_counter() - start, "")


def kept_in() -> str:
    """The folder in which torch keeps what it has compiled, for later starts of ComfyUI as well; "" before torch has
    chosen one."""
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")  # torch sets it where the user has not
