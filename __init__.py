"""CogVideoX for ComfyUI, exactly as its reference implementation runs it.

ComfyUI imports this file at start, under the folder's path as its name, and asks comfy_entrypoint for the nodes;
nothing here loads ComfyUI or diffusers. Everywhere else this folder is the package `cogvideox`.
"""

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import CogVideoXExtension

PACKAGE = "cogvideox"
WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> "CogVideoXExtension":
    """ComfyUI's V3 entry point."""
    return importlib.import_module(".nodes", _package().__name__).CogVideoXExtension()


def _package() -> ModuleType:
    """This folder under its proper name, whatever ComfyUI calls it.

    Classes then exist once in the process, for nodes and for scripts that import `cogvideox`, and an error shows as
    `cogvideox.errors.…` instead of as a path. Where that name is taken by another folder, everything works under the
    name that ComfyUI has given.
    """
    ours = sys.modules[__name__]
    if __name__ == PACKAGE:
        return ours
    if PACKAGE not in sys.modules:
        folder = Path(__file__).parent
        spec = importlib.util.spec_from_file_location(PACKAGE, __file__, submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    known = sys.modules[PACKAGE]
    if known.__file__ is not None and Path(known.__file__).resolve() == Path(__file__).resolve():
        return known
    logging.warning(f"Another package is called {PACKAGE} already ({known.__file__}): {__file__} works under its path.")
    return ours
