"""What `dev.py run` is asked for, read and checked as far as it can be without packages."""

import argparse
from dataclasses import dataclass

from ..errors import DevError
from .remote import check_server, read_address
from .requests import FILES, Request, read_requests
from .requests import add_arguments as _add_clip_arguments
from .targets import Target, check_apart, plan_targets

# What the run imports where the server is another program: module -> package.
NEEDED = {"aiohttp": "aiohttp", "av": "av", "PIL": "pillow", "filelock": "filelock"}


@dataclass(frozen=True)
class Plan:
    """What is asked for. server: the address of one that runs, None for one of its own. overwrite: replaces files."""

    requests: list[Request]
    targets: list[Target]
    server: str | None
    overwrite: bool


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `dev.py run`."""
    _add_clip_arguments(command)
    command.add_argument(
        "--out", metavar="PATH", required=True, help="the video; a folder, or a name with %%03d, for several"
    )
    command.add_argument("--server", metavar="URL", help="a ComfyUI that runs, such as http://127.0.0.1:8188")
    command.add_argument("--overwrite", action="store_true", help="replace videos that were made with other settings")
    command.add_argument("--ready", help=argparse.SUPPRESS)


def read_plan(arguments: argparse.Namespace) -> Plan:
    """What the command line asks for, checked as far as it can be without packages. Raises: DevError."""
    requests = read_requests(arguments)
    address = read_address(arguments.server) if arguments.server is not None else None
    targets = plan_targets(arguments.out, len(requests))
    check_apart(targets, [arguments.prompts, *(request.file(name) for request in requests for name in FILES)])
    if address is not None:
        _check_own_options(arguments)
    if address is not None and arguments.ready is None:
        check_server(address)
    return Plan(requests, targets, address, arguments.overwrite)


def _check_own_options(arguments: argparse.Namespace) -> None:
    """Raises: DevError for an option about a server of one's own, where another one is named."""
    for name in ("comfyui", "port"):
        if name in arguments:
            raise DevError(
                f"--{name} is for a ComfyUI that the command starts, and --server names one that runs: give one of the "
                "two."
            )
