"""The class of a Ray actor. It reaches another process by value, before that process can import this package: it uses
nothing of it at its top."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def own_folders(package: str, comfyui: str, in_cluster: bool) -> tuple[Path, Path]:
    """The folders of the package and of ComfyUI to import from. On the graph's machine they are those of its process,
    whatever the environment says: dev.py and comfy-cli set COMFYUI_PATH for other purposes."""
    named: Any = os.environ if in_cluster else {}
    return Path(named.get("COGVIDEOX_PATH") or package), Path(named.get("COMFYUI_PATH") or comfyui)


class Worker:
    """A process with ComfyUI's modules and this package, which holds a rank.Rank."""

    def __init__(self, name: str, package: str, comfyui: str, options: dict[str, Any], in_cluster: bool):
        """name: of this package in the graph's process. package, comfyui: its folder and ComfyUI's. options: of
        ComfyUI's command line (host.standalone.plain_options). in_cluster: this may be another machine, which says
        where the two are if they are elsewhere."""
        folder, own = own_folders(package, comfyui, in_cluster)
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        importlib.import_module(f"{name}.host.standalone").use_comfyui(comfyui=own, options=options)
        self.rank = importlib.import_module(f"{name}.parallel.rank").Rank()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the rank returns, as rank.Answer."""
        return self.rank.answer(method, *arguments)
