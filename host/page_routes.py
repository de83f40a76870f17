"""Addresses at which ComfyUI's server answers the pack's scripts in the page (web/js)."""

from typing import Any

from .messages import prompt_server

_PREFIX = "_cogvideox_"  # of an attribute of ComfyUI's server


def new_routes(name: str) -> Any | None:
    """The routes of ComfyUI's server (aiohttp's), the first time that they are asked for under this name.

    None later, since an address that is there twice keeps the server from starting, and in a process without a server.
    """
    server: Any = prompt_server()
    if server is None or not hasattr(server, "routes") or getattr(server, _PREFIX + name, False):
        return None
    setattr(server, _PREFIX + name, True)
    return server.routes
