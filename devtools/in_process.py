"""The pack inside this process, with the real ComfyUI beside it: how tests and benchmarks come to both."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .paths import ROOT

PACK = "cogvideox_pack"


def use_comfyui(comfyui: Path, *ours: Path, cpu: bool = True) -> None:
    """Make ComfyUI's modules importable, its `nodes` before our folder of that name, with its default options.

    ours: folders to put behind it on sys.path, the clone's root first.
    """
    behind = [str(folder) for folder in (ROOT, *ours)]
    sys.path[:] = [str(comfyui), *(p for p in sys.path if p not in behind), *behind]
    sys.argv = [sys.argv[0], *(["--cpu"] if cpu else [])]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.cli_args")  # reads sys.argv now


def load_pack() -> ModuleType:
    """The pack, imported as ComfyUI imports a custom node."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


def pack(module: str) -> ModuleType:
    """A module of the pack, e.g. pack("samplers.ddim")."""
    return importlib.import_module(f"{PACK}.{module}")
