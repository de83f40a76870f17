"""Ray: started for this ComfyUI alone, or joined where the server's owner has allowed an address.

Whoever reaches an open port of Ray's can run code, and by default Ray asks nobody for a token. Here Ray listens on this
machine alone, with a token of its own for each start, without dashboard and usage statistics; a cluster has to ask for
a token.
"""

import logging
import os
import socket
import sys
import threading
from typing import Any

from ..errors import UserError
from ..host.optional_packages import import_package
from ..host.ray_environment import prepare_ray

PURPOSE = "Running a model on several cards"
ALLOWED = "COGVIDEOX_RAY_ADDRESSES"  # of clusters, in the environment of ComfyUI, divided by commas
_STORE_BYTES = 512 << 20  # shared memory for what travels: latents, prompts and LoRAs
# Of ray.init, wherever it connects to: the log is ComfyUI's.
_OPTIONS = {
    "namespace": "cogvideox",
    "configure_logging": False,
    "log_to_driver": False,
    "logging_level": logging.ERROR,
}
_SECONDS = 8  # within which a cluster has to answer
_lock = threading.Lock()
_joined: str | None = None  # the address that Ray is connected to; "" for the one of this process


def start(address: str, cards: int) -> Any:
    """The module `ray`, connected to `address`, or to a Ray of this process's own where that is "".

    cards: GPUs of this machine, for a Ray of its own.

    Raises UserError where Ray is not installed, or the address is not allowed, has no token, or does not answer.
    """
    global _joined
    with _lock:
        check_address(address)
        ray = _ray()
        if ray.is_initialized():
            if _joined == address:
                return ray
            if _joined is None:
                raise UserError(
                    "Another node pack has started Ray in this ComfyUI, and a process can be in one cluster only. "
                    "Switch off that pack, and start ComfyUI again."
                )
            ray.shutdown()
            _joined = None
        _join(ray, address) if address else _start_own(ray, cards)
        _joined = address
        return ray


def session() -> str:
    """Which Ray this process is connected to; "" for none. The actors of an earlier one are gone."""
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray is not None and ray.is_initialized() else ""


def all_cards() -> int:
    """Every card of this machine; two processes where there is none."""
    import torch  # late: dev.py asks check_address in a Python that has no packages

    return torch.cuda.device_count() or 2


def shut_down() -> None:
    """End what `start` has begun, and all that runs in it."""
    global _joined
    with _lock:
        if _joined is not None:
            _ray().shutdown()
            _joined = None


def check_address(address: str) -> None:
    """Raises UserError for a cluster that a workflow may not call, or that would run anybody's code."""
    if not address:
        return
    allowed = {part.strip() for part in os.environ.get(ALLOWED, "").split(",")}
    if address not in allowed:
        raise UserError(
            f"This ComfyUI does not call {address}: a workflow could otherwise send data anywhere. Whoever runs this "
            f"ComfyUI can allow it: start it with the environment variable {ALLOWED}={address}, or leave the address "
            "empty for the cards of this machine."
        )
    has_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or not has_token:
        raise UserError(
            f"The cluster at {address} is not used without a token: whoever reaches a Ray without one can run code on "
            "every machine of it. Start Ray and ComfyUI with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN."
        )


def _ray() -> Any:
    if "ray" not in sys.modules:
        prepare_ray(is_alone=ALLOWED not in os.environ)
    return import_package("ray", PURPOSE)


def _start_own(ray: Any, cards: int) -> None:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise UserError(
            "Ray is not started without a token, for any program of this machine could run code in it: its environment "
            "says so, or another node pack has imported it before. Start ComfyUI with RAY_AUTH_MODE=token."
        )
    try:
        ray.init(
            address="local",
            num_cpus=1,
            num_gpus=cards,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            **_OPTIONS,
        )
    except Exception as error:  # of the system: no shared memory, no room for its files, no process to be started
        raise UserError(
            f"Ray cannot start on this machine ({type(error).__name__}: {str(error)[:300]}). Take CogVideoX Parallel "
            "out to run on one card."
        ) from error


def _join(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS / 2).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"Nothing answers at {address} ({error}). Start Ray there (ray start --head --port=…), or correct the "
            "address: it is a name or number of a machine, a colon, and Ray's port."
        ) from error
    failed: list[Exception] = []

    def connect() -> None:
        try:
            ray.init(address=address, **_OPTIONS)
        except Exception as error:
            failed.append(error)

    # In a thread, for Ray goes on trying for a minute where something else answers at the port.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if thread.is_alive() or failed:
        reason = f"{type(failed[0]).__name__}: {str(failed[0])[:300]}" if failed else f"no answer in {_SECONDS} seconds"
        raise UserError(
            f"Ray at {address} does not let this ComfyUI in ({reason}). The token has to be the same, and so has the "
            "version of Ray and of Python."
        )
