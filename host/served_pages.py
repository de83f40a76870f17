"""The pack's help pages, scripts and templates, from a folder of any name.

ComfyUI serves them below an address with the folder's name in it, and aiohttp finds no address there with a space, a
bracket, a percent sign or a letter beyond ASCII: it compares the name as an address spells it with the name as it is.
Help was empty then, and no template opened. Names without such letters are left to ComfyUI.
"""

import re
from pathlib import Path
from typing import Any

from ..system.inside import is_below, is_spelled_inside

# Those that an address spells as they are.
_PLAIN = re.compile(r"[\w.~!$&'*+;=:@-]+", re.ASCII)
# Where ComfyUI's page looks, without the name -> the folder that it means. ComfyUI adds /api to each as well.
_PLACES = {"/extensions/": "web", "/workflow_templates/": "example_workflows"}


def serve_pages(server: Any, folder: Path) -> None:
    """Serve the pack's own pages where ComfyUI cannot. server: ComfyUI's. folder: the pack's, in custom_nodes."""
    name = folder.name
    if _PLAIN.fullmatch(name):
        return
    from aiohttp import web

    for place, inner in _PLACES.items():

        async def get_page(request: Any, root: Path = folder / inner) -> Any:
            file = root / request.match_info["file"]
            if not is_spelled_inside(file, root) or not is_below(file, root) or not _is_file(file):
                raise web.HTTPNotFound()
            return web.FileResponse(file)

        server.routes.get(place + "{pack:" + _pattern(name) + "}/{file:.+}")(get_page)


def _pattern(name: str) -> str:
    """A regular expression for a folder's name in an address, as aiohttp compares the two: it reads %20 for what it
    means, but leaves the %25 of a percent sign as it is. Braces are its own, and are written as numbers."""
    pattern = re.escape(name.replace("%", "%25"))
    return pattern.replace(r"\{", r"\x7b").replace(r"\}", r"\x7d")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an address may be longer than the name of any file
        return False
