"""A ComfyUI on a card's machine, supervised: started, given workflows, and started again where it ends by itself.

It listens on 127.0.0.1 alone, has folders of its own, and ends with this process.
"""

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import filelock

from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads import repositories
from cogvideox.model_loaders.downloads.fetch import download_checkpoint
from cogvideox.system.complete_file import scratch_folder
from cogvideox.system.inside import is_below

from .. import client, comfyui, environment, paths
from ..errors import DevError
from ..process import last_line
from ..run.local_models import write_extra_paths
from ..run.remote import server_lists
from ..server import Server, request, running_server

_PORTS_TRIED = 3
_DYING_S = 2.0
_CARD_ERROR = "CUDA error"  # after which nothing in that process can use the card
# Of exceptions of torch's, whatever module has them, and of this pack's: host.compat.is_out_of_memory needs ComfyUI.
_NO_MEMORY = ("OutOfMemoryError", "NoMemoryLeftError")
_NO_MEMORY_ON_CPU = "DefaultCPUAllocator: "
_LOCK = ".cogvideox-farm.lock"


@dataclass(frozen=True)
class Place:
    """Where a server finds what it needs. in_cluster: on a machine whose own COMFYUI_PATH and COGVIDEOX_PATH count.

    package, comfyui, models: the pack's folder, ComfyUI's and that of the models. cpu: None to let torch decide.
    threads: of each server on the CPU. limit_minutes: of a workflow; None for none. fetch: checkpoints that it needs,
    from the hub source.
    """

    package: str
    comfyui: str
    models: str
    in_cluster: bool
    cpu: bool | None
    threads: int
    limit_minutes: int | None
    fetch: tuple[str, ...]
    source: str


class FarmServer:
    """What an actor does. Each method returns plain values, as they travel between machines; `progress` and `stop` may
    be called while another one works."""

    def __init__(self, place: Place):
        self._place, self._folders, self._running = place, ExitStack(), ExitStack()
        self._server: Server | None = None
        self._host, self._base, self._arguments = Path(), Path(), list[str]()
        self._doing, self._kept, self._inputs = "", set[Path](), set[str]()

    def start(self) -> dict[str, Any]:
        """Start the server; {"machine", "supervisor", "process", "versions", "lists"}, the two in the middle being
        process ids, or {"error"} for what a second try would not mend."""
        try:
            self._doing = "looks for ComfyUI"
            self._host, models = self._find_comfyui()
            self._fetch(models / "diffusers")
            self._prepare(models)
            server = self._begin()
            lists = server_lists(server.url)
        except (DevError, UserError, OSError) as error:
            self.stop()
            return {"error": str(error)}
        return {
            "machine": socket.gethostname(),
            "supervisor": os.getpid(),
            "process": server.process.pid,
            "versions": self._versions(server),
            "lists": lists,
        }

    def make(self, graph: dict, inputs: Mapping[str, bytes]) -> dict[str, Any]:
        """Run a workflow. inputs: files, by their names in the server's input folder.

        Returns {"files": [(name, contents)], "seconds"}; {"refused"} where this server cannot run it and another one
        may, for its nodes, models or memory; {"error"} where it failed; {"lost"} where the server ended, took too long,
        or its card is in disorder, so that the next workflow starts another one; {"broken"} where none starts any more.
        """
        limit_s = None if self._place.limit_minutes is None else 60.0 * self._place.limit_minutes
        began = time.monotonic()
        try:
            server = self._server if self._server is not None else self._begin()
        except (DevError, OSError) as error:
            return {"broken": str(error)}
        try:
            self._write_inputs(inputs)
            result = client.run_workflow(server.url, graph, self._note(graph), limit_s)
            if result.error is not None and _CARD_ERROR in result.error.message:
                raise DevError(str(result.error))
            if result.error is not None:
                return {"refused" if _is_for_another(result.error) else "error": str(result.error)}
            files = self._saved(graph, result, server.output)
            made = [(path.name, path.read_bytes()) for path in files]
        except (DevError, OSError, aiohttp.ClientError, asyncio.TimeoutError, ValueError, LookupError) as error:
            return {"lost": self._lost(error)}
        finally:
            self._doing = ""
        self._forget_all_but(files)
        if not made:
            return {"error": "the workflow saved no file: it needs a node such as SaveVideo"}
        return {"files": made, "seconds": round(time.monotonic() - began, 1)}

    def progress(self) -> str:
        """What it does at the moment, the end of a sentence."""
        return self._doing

    def stop(self) -> None:
        """End the server and delete its folders."""
        self._server = None
        self._running.close()
        self._folders.close()

    def _find_comfyui(self) -> tuple[Path, Path]:
        """ComfyUI's folder on this machine, and that of the models. Raises: DevError."""
        own = os.environ.get("COMFYUI_PATH") if self._place.in_cluster else None
        if not own and not self._place.comfyui:
            raise DevError("COMFYUI_PATH is not set there: set it to the folder of ComfyUI before `ray start`.")
        host = comfyui.find_checkout(own or self._place.comfyui, "COMFYUI_PATH" if own else "the farm's command")
        return host, host / "models" if self._place.in_cluster else Path(self._place.models)

    def _fetch(self, folder: Path) -> None:
        """Download what is missing: the first supervisor of a machine does, and the others wait. Raises: UserError."""
        if not self._place.fetch:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._doing = "waits for another download"
        with filelock.FileLock(str(folder / _LOCK)):
            for name in self._place.fetch:
                entry = repositories.find_repository(name)
                download_checkpoint(entry, folder / entry.name, self._note_download, source=self._place.source)

    def _note_download(self, progress: Any) -> None:
        self._doing = progress.describe()

    def _prepare(self, models: Path) -> None:
        """The server's own folders, with the pack and whatever the machine's ComfyUI has."""
        name = Path(tempfile.gettempdir()) / "cogvideox_farm"
        self._base = self._folders.enter_context(scratch_folder(name))
        packs = self._host / "custom_nodes"
        comfyui.prepare_base(self._base, paths.ROOT, paths.PACK_NAME)
        extra = write_extra_paths(models, self._base, packs if packs.is_dir() else None)
        self._arguments = [option for file in extra for option in ("--extra-model-paths-config", str(file))]

    def _begin(self) -> Server:
        """Start the server, again where another program has taken its port meanwhile. Raises: DevError."""
        self._doing = "starts ComfyUI"
        for _ in range(_PORTS_TRIED):
            self._running.close()
            server = self._running.enter_context(
                running_server(
                    self._host,
                    self._base,
                    log=self._base / "server.log",
                    cpu=self._place.cpu,
                    arguments=self._arguments,
                    environ=self._environ(),
                    leashed=True,
                )
            )
            if str(self._base) in str(self._system(server).get("argv")):  # and it is not another one that answers there
                self._server, self._doing = server, ""
                return server
        raise DevError("Other servers have taken the ports that were free: run the command again.")

    def _environ(self) -> dict[str, str]:
        """Without what Ray has set: its token lets run code on all machines of a cluster, and is no workflow's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # Ray gives each actor one thread. The order is that in which it counts the cards.
        return {**kept, "OMP_NUM_THREADS": str(self._place.threads), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def _system(self, server: Server) -> dict[str, Any]:
        return json.loads(request(f"{server.url}/system_stats"))["system"]

    def _versions(self, server: Server) -> dict[str, str]:
        """What results may depend on."""
        system = self._system(server)
        names = {"ComfyUI": "comfyui_version", "torch": "pytorch_version"}
        code = sorted(paths.ROOT.glob("[!.]*/**/*.py"))
        found = {name: str(system.get(key)) for name, key in names.items()}
        return {"this pack": environment.digest_files(code), **found}

    def _write_inputs(self, inputs: Mapping[str, bytes]) -> None:
        """Those of the last workflow go, unless this one has them too: of thousands of clips a disk would be full."""
        folder = self._base / "input"
        for name in self._inputs - inputs.keys():
            (folder / name).unlink(missing_ok=True)
        self._inputs &= inputs.keys()
        for name, data in inputs.items():
            path = folder / name
            if not is_below(path, folder):
                raise DevError(f"The input {name} is not inside of the input folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._inputs.add(name)  # also where the disk is full in the middle of it
            path.write_bytes(data)

    def _note(self, graph: dict) -> client.OnEvent:
        def note(kind: str, data: dict) -> None:
            if kind == "executing" and data["node"] is not None:
                self._doing = str(graph.get(data["node"], {}).get("class_type", data["node"]))
            elif kind == "progress":
                self._doing = f"step {data['value']:g} of {data['max']:g}"

        return note

    def _saved(self, graph: dict, result: client.RunResult, output: Path) -> list[Path]:
        """The files that a workflow has saved, in the order of its nodes, whichever ran first. Raises: DevError."""
        nodes = [*(node for node in graph if node in result.outputs), *(result.outputs.keys() - graph.keys())]
        items = [item for node in nodes for item in client.saved_files(result.outputs[node])]
        return [path for item in items if (path := client.local_file(item, output)).is_file()]

    def _forget_all_but(self, files: list[Path]) -> None:
        """Delete what earlier workflows have saved. What the last one names stays: ComfyUI remembers the results of
        those nodes, and names the same files again without making them."""
        for path in self._kept - set(files):
            path.unlink(missing_ok=True)
        self._kept = set(files)

    def _lost(self, error: Exception) -> str:
        """End what is left of a server that has gone, and say what is known of it; the next workflow starts one."""
        server, self._server = self._server, None
        if server is None:  # `stop` was called meanwhile
            return str(error)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(_DYING_S)  # its connections end before it does
        status, line = server.process.poll(), last_line(server.log)
        self._forget_all_but([])
        self._running.close()
        how = "was ended" if status is None else f"ended with status {status}"
        return f"ComfyUI {how} ({error}), its last line: {line}"


def _is_for_another(error: client.RunError) -> bool:
    """Whether a machine with other nodes or models, or with a larger card, may run what this one could not."""
    kind = error.exception_type.rsplit(".", 1)[-1]
    return error.kind == "rejected" or kind in _NO_MEMORY or _NO_MEMORY_ON_CPU in error.message
