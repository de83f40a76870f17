"""The Ray actors that ranks live in, and the folder of the file where those of one machine meet."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..host.standalone import comfyui_folder, plain_options
from ..system.complete_file import scratch_folder
from . import worker

_PACKAGE = Path(__file__).resolve().parent.parent
_NAME = __name__.removesuffix(".parallel.actors")  # of the package: ComfyUI may have loaded it by its path


def new_actors(ray: Any, count: int, on_cards: bool, address: str, places: Any) -> list[Any]:
    """`count` actors of worker.Worker, which start without being waited for.

    address: of the cluster; "" for this machine. places: the placement group that they belong into, bundle by bundle;
    None for anywhere.
    """
    # By value: the process cannot import this package before the class has told it where it is.
    ray.cloudpickle.register_pickle_by_value(worker)
    threads = max(1, (os.cpu_count() or 1) // count)
    variables = {"OMP_NUM_THREADS": str(threads), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if not address:
        # The exchange stays in the machine as well.
        variables |= {"GLOO_SOCKET_IFNAME": _loopback(), "NCCL_SOCKET_IFNAME": _loopback()}
    options = {
        "num_cpus": 1 if address and not on_cards else 0,
        "num_gpus": 1 if on_cards else 0,
        "max_restarts": 0,
        "runtime_env": {"env_vars": variables},
    }
    kind = ray.remote(worker.Worker)
    arguments = _NAME, str(_PACKAGE), str(comfyui_folder()), _options(on_cards), bool(address)
    return [
        kind.options(**options, **_placed(ray, places, number, count)).remote(*arguments) for number in range(count)
    ]


def _placed(ray: Any, places: Any, number: int, count: int) -> dict[str, Any]:
    """Of an actor's options, the place of the one with this number."""
    if places is None:
        return {}
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    return {"scheduling_strategy": strategy(places, number * places.bundle_count // count)}


def _options(on_cards: bool) -> dict[str, Any]:
    """This ComfyUI's, but for the card: a graph without one may ask for those of a cluster."""
    return {**plain_options(), "cpu": not on_cards}


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


@contextmanager
def meeting_folder() -> Iterator[Path]:
    """A new folder. What a ComfyUI that was killed has left is deleted. Raises UserError."""
    try:
        with scratch_folder(Path(tempfile.gettempdir()) / "cogvideox_ranks") as folder:
            yield folder
    except OSError as error:
        raise UserError(
            f"The ranks cannot meet: nothing can be written to the folder for temporary files ({error}). Free some "
            "space there, or start ComfyUI with TMPDIR set to another folder."
        ) from error
