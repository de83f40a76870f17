"""ComfyUI's modules in a process that is not ComfyUI: a script, a headless training, a test or a benchmark."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError


def use_comfyui(cpu: bool = True, comfyui: Path | None = None, options: dict[str, Any] = {}) -> None:
    """Make ComfyUI's modules importable, with its default options, whatever this program's own arguments are.

    Call it before the first import of `comfy`, and so before most of the package. comfyui: its checkout; None takes the
    one that COMFYUI_PATH names. options: plain_options of another process, in the place of the default ones.

    Raises UserError where there is no ComfyUI.
    """
    comfyui = comfyui or comfyui_from_environment()
    # It has to come first: ComfyUI's modules have common names, such as `nodes` and `server`, and a folder of that name
    # in the current directory would be found instead.
    if str(comfyui) not in sys.path[:1]:
        sys.path.insert(0, str(comfyui))
    # comfy.cli_args parses sys.argv when it is imported, and exits at an argument that it does not know, such as one of
    # this program's: it gets to see a command line of its own.
    arguments, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if cpu else [])]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        cli_args = importlib.import_module("comfy.cli_args")
        vars(cli_args.args).update(options)
        if "fast" in options:
            cli_args.args.fast = set(map(cli_args.PerformanceFeature, options["fast"]))
        # As main.py does. Before 0.30 the module `nodes` puts ComfyUI's folder `comfy` in front, and its utils.py would
        # be found in place of this package, without which `server` cannot be imported.
        importlib.import_module("utils")
    finally:
        sys.argv = arguments


def plain_options() -> dict[str, Any]:
    """The options of ComfyUI's command line in this process, as far as they are numbers, texts and switches, and
    "fast", the optimizations to use, as a list of their names: all of it can be sent to another process."""
    options = vars(importlib.import_module("comfy.cli_args").args)
    plain = {name: value for name, value in options.items() if isinstance(value, bool | int | float | str | None)}
    return {**plain, "fast": sorted(feature.value for feature in options["fast"])}


def comfyui_folder() -> Path:
    """The folder that ComfyUI's modules of this process are in."""
    return Path(str(importlib.import_module("comfy.cli_args").__file__)).parent.parent


def comfyui_from_environment() -> Path:
    """The ComfyUI that COMFYUI_PATH names, as dev.py's commands set it. Raises UserError."""
    path = os.environ.get("COMFYUI_PATH")
    if not path or not (Path(path) / "main.py").is_file():
        found = f"is {path!r}, which is not a folder with ComfyUI's main.py" if path else "is not set"
        raise UserError(
            f"The environment variable COMFYUI_PATH {found}. Set it to the folder of your ComfyUI, or use dev.py, "
            "which sets it."
        )
    return Path(path)


def comfyui_nodes() -> Any:
    """ComfyUI's own module `nodes`, once use_comfyui has been called. A type checker takes that name for our room."""
    return importlib.import_module("nodes")
