"""The class of a Ray actor. It reaches another process by value, before that process can import this package: it uses
nothing of it at its top."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


class Worker:
    """A process with ComfyUI's modules and this package, which holds a rank.Rank."""

    def __init__(self, name: str, package: str, comfyui: str, options: dict[str, Any]):
        """name: of this package in the graph's process. package, comfyui: its folder and ComfyUI's, where this machine
        does not say other ones. options: of ComfyUI's command line (host.standalone.plain_options)."""
        folder = Path(os.environ.get("COGVIDEOX_PATH", package))
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        own = Path(os.environ.get("COMFYUI_PATH", comfyui))
        importlib.import_module(f"{name}.host.standalone").use_comfyui(comfyui=own, options=options)
        self.rank = importlib.import_module(f"{name}.parallel.rank").Rank()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the rank returns, as rank.Answer."""
        return self.rank.answer(method, *arguments)
