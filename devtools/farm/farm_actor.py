"""The class of a farm's Ray actors. It reaches another process by value, before that process can import the package: it
uses nothing of it at its top."""

import importlib
import os
import runpy
from pathlib import Path
from typing import Any


class Actor:
    """A process on a card's machine that supervises a ComfyUI there (farm_server.FarmServer)."""

    def __init__(self, place: dict[str, Any]):
        """place: the fields of farm_server.Place, as they are on the machine of the farm's command."""
        self._place, self._server = place, None

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the server returns. start is the first one."""
        if self._server is None and method != "start":  # which another thread is about to make
            return "imports the pack"
        if self._server is None:
            try:
                self._server = self._find_server()
            except (OSError, KeyError, ImportError) as error:
                cause = f"{type(error).__name__}: {error}"
                return {"error": f"The pack cannot be imported there ({cause}): run `ray start` with ComfyUI's Python, "
                        "and set COGVIDEOX_PATH to the pack's folder before."}  # fmt: skip
        return getattr(self._server, method)(*arguments)

    def _find_server(self) -> Any:
        folder = os.environ.get("COGVIDEOX_PATH") if self._place["in_cluster"] else None
        folder = folder or self._place["package"]
        runpy.run_path(str(Path(folder) / "dev.py"))["import_package"]()
        module = importlib.import_module("cogvideox.devtools.farm.farm_server")
        return module.FarmServer(module.Place(**{**self._place, "package": folder}))
