"""ComfyUI in a process of one's own: how scripts, trainings, tests and benchmarks come to its modules."""

import importlib
import os
import sys
from pathlib import Path

from ..errors import UserError


def use_comfyui(cpu: bool = True, comfyui: Path | None = None) -> None:
    """Make ComfyUI's modules importable, with its default options, whatever this program's own arguments are.

    To be called before the first import of `comfy`, and so before most of the package. ComfyUI's `nodes` comes before
    any other module of that name. comfyui: its checkout; None takes the one that COMFYUI_PATH names. Raises UserError.
    """
    comfyui = comfyui or comfyui_from_environment()
    if str(comfyui) not in sys.path[:1]:
        sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if cpu else [])]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")  # reads sys.argv now
    finally:
        sys.argv = arguments


def comfyui_from_environment() -> Path:
    """The ComfyUI that COMFYUI_PATH names, as dev.py's commands set it. Raises UserError."""
    path = os.environ.get("COMFYUI_PATH")
    if not path or not (Path(path) / "main.py").is_file():
        raise UserError(
            f"COMFYUI_PATH is {path!r}; expected is the folder of a ComfyUI. Set it to yours, or use dev.py."
        )
    return Path(path)
