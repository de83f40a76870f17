"""Ray: started for this ComfyUI alone, or joined where the server's owner has allowed an address.

Whoever reaches an open port of Ray's can run code, and by default Ray asks nobody for a token. Here Ray listens on this
machine alone, with a token of its own for each start, without dashboard and usage statistics; a cluster has to ask for
a token.
"""

import logging
import os
import re
import socket
import sys
import threading
from typing import Any

from ..errors import UserError, quoted
from ..host.optional_packages import import_package, is_installed, package_error
from ..host.ray_environment import LOOPBACK, prepare
from . import joining

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
_MOST_ON_CPU = 8  # ranks: each has all of a model's weights
_LAST_PORT = 65535
_SECONDS = 3  # within which what has answered before answers again
_lock = threading.Lock()
_joined: str | None = None  # the address that `start` has connected Ray to; "" for the one of this process
_session = ""  # of Ray, since then: another pack may have ended it, and started one of its own


def start(address: str, cards: int, look: joining.Look = lambda: None) -> Any:
    """The module `ray`, connected to `address`, or to a Ray of this process's own where that is "".

    cards: GPUs of this machine, for a Ray of its own. look: called while a cluster is waited for, for a Cancel.

    Raises UserError where Ray is not installed, or the address is not allowed, has no token, or does not answer.
    """
    global _joined, _session
    with _lock:
        check_address(address)
        joining.require_none_under_way()
        if address and "ray" not in sys.modules:
            joining.require_answer(address)  # before the import decides which kind of Ray this process can have
        ray = _ray(address)
        if ray.is_initialized():
            if not _is_ours():
                raise UserError(
                    "Something else has started Ray in this process, which can be in one cluster only.",
                    advice="switch off what starts Ray",
                )
            if _joined == address and _answers(ray):
                return ray
            _require_network(address)
            ray.shutdown()
            _joined = None
        _require_network(address)
        joining.join(ray, address, _OPTIONS, look) if address else _start_own(ray, cards)
        _joined, _session = address, session()
        return ray


def session() -> str:
    """Which Ray this process is connected to; "" for none. The actors of an earlier one are gone."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return f"{machine()} {ray.get_runtime_context().get_job_id()}"


def machine() -> str:
    """Of Ray's nodes, the one that this process is on."""
    return str(sys.modules["ray"].get_runtime_context().get_node_id())


def _is_ours() -> bool:
    """Whether Ray is connected, and to what `start` has connected it to."""
    return _joined is not None and session() == _session


def all_cards() -> int:
    """Every card of this machine; two processes where there is none."""
    return torch_cards() or 2


def torch_cards() -> int:
    """Every card of this machine; 0 where ComfyUI was started with --cpu."""
    # Late: dev.py asks check_address in a Python that has no packages.
    import torch

    from ..host.standalone import plain_options

    return 0 if plain_options()["cpu"] else torch.cuda.device_count()


def _answers(ray: Any) -> bool:
    """Whether Ray's server, which starts processes, is still there: without it a start would wait for ever."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS).close()
    except OSError:
        return False
    return True


def where(address: str) -> str:
    """Where cards are, in a sentence; "" for this machine."""
    return f"at {address}" if address else "in this machine"


def require_cards(cards: int, found: int, address: str = "") -> None:
    """Raises UserError where fewer cards than `cards` were found at `address`; "" for this machine."""
    if found < cards:
        what = "Start Ray on more machines, or set cards to fewer." if address else "Set cards to 0 for all."
        raise UserError(f"Cards {where(address)}: {found}, fewer than the {cards} asked for. {what}")


def check_cards(cards: int, address: str = "") -> None:
    """The same for this machine, before anything starts. Where it has no card, processes of the CPU stand in, of which
    more than its memory holds are refused."""
    if address:
        return
    if found := torch_cards():
        require_cards(cards, found)
    elif cards > _MOST_ON_CPU:
        raise UserError(
            f"At most {_MOST_ON_CPU} processes of the CPU compute together, and cards is {cards}: this machine has no "
            f"card. Set cards to {_MOST_ON_CPU} or fewer."
        )


def shut_down() -> None:
    """End what `start` has begun, and all that runs in it."""
    global _joined
    with _lock:
        if _is_ours():
            _ray().shutdown()
        _joined = None


def check_installed(cards: int = 0) -> None:
    """Raises UserError where Ray is not installed, before a prompt is encoded for minutes.

    cards: of any number; a check of a node has to be about one of its inputs.
    """
    if not is_installed("ray"):
        raise package_error("ray", PURPOSE, ModuleNotFoundError(name="ray"))


def check_address(address: str) -> None:
    """Raises UserError for a cluster that a workflow may not call, or that would run anybody's code."""
    if not address:
        return
    port = re.fullmatch(r"\S+:([0-9]{1,5})", address)
    if port is None or int(port[1]) > _LAST_PORT:
        raise UserError(
            f"The address {quoted(address)!r} is not of the form machine:port, such as 10.0.0.1:6379.",
            advice="leave the address empty",
        )
    allowed = {part.strip() for part in os.environ.get(ALLOWED, "").split(",")}
    if address not in allowed:
        raise UserError(
            f"{address} is not called: a workflow could otherwise send data anywhere. Whoever starts this program can "
            f"allow it with the environment variable {ALLOWED}={address}.",
            advice="leave the address empty",
        )
    has_token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or not has_token:
        raise UserError(
            f"The cluster at {address} is not used without a token: whoever reaches a Ray without one can run code on "
            "every machine of it. Start Ray there, and this program, with RAY_AUTH_MODE=token and the same "
            "RAY_AUTH_TOKEN."
        )


def _ray(address: str = "") -> Any:
    if "ray" not in sys.modules:
        prepare(os.environ, is_alone=not address)
    return import_package("ray", PURPOSE)


def _require_network(address: str) -> None:
    """Raises UserError where Ray has been imported for the other kind of Ray: when it is imported it reads whether it
    listens on this machine alone."""
    is_alone = os.environ.get(LOOPBACK) == "0"
    if address and is_alone:
        raise UserError(
            f"Ray has been prepared for the cards of this machine alone, and {address} could not answer it until this "
            f"program is restarted. {LOOPBACK}=0 may not be set then.",
            advice="restart for another Ray",
        )
    if not address and not is_alone:
        raise UserError(
            "Ray has been prepared for a cluster, or imported by something else: a Ray of this machine's own would "
            "listen on the network until this program is restarted.",
            advice="restart for another Ray",
        )


def _start_own(ray: Any, cards: int) -> None:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise UserError(
            "Ray is not started without a token, for any program of this machine could run code in it: its environment "
            "says so, or something else has imported it before. Start this program with RAY_AUTH_MODE=token."
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
            f"Ray cannot start on this machine ({type(error).__name__}: {str(error)[:300]}).",
            advice="run on one card",
        ) from error
