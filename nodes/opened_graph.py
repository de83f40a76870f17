"""What the page asks for where a graph is opened: the example inputs to show, and what to do about missing models.

web/js/example_inputs.js and web/js/missing_models.js show the answers. Whoever may open the page may send anything.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import UserError
from ..host.language import localized_for
from ..host.page_routes import new_routes
from ..host.toy import INPUTS
from .example_input import show_example
from .missing_models import describe_all, describe_missing

EXAMPLE_ROUTE, MISSING_ROUTE = "/cogvideox/example", "/cogvideox/missing_models"
MAX_BYTES = 1 << 18


def serve_opened_graph() -> None:
    """Answer the page; nothing in a process without a server."""
    routes = new_routes("opened_graph")
    if routes is None:
        return
    from aiohttp import web

    async def post_example(request: Any) -> Any:
        shown = await asyncio.to_thread(_shown, request.query.get("example"))
        return web.Response(status=404) if shown is None else web.json_response(shown)

    async def post_missing(request: Any) -> Any:
        body = b""
        # A read gives what has arrived, which may be a part.
        while len(body) <= MAX_BYTES and (part := await request.content.read(MAX_BYTES + 1 - len(body))):
            body += part
        return web.json_response(sentences(body, partial(localized_for, request)))

    # Posted, not got: ComfyUI's temporary folder gets the example's picture. Only the pack's own example is read.
    routes.post(EXAMPLE_ROUTE)(post_example)
    routes.post(MISSING_ROUTE)(post_missing)


def sentences(body: bytes, told: Callable[[str], str]) -> list[str]:
    """What to do about the models that a graph names and no list has; nothing for what is no such question.

    body: the JSON of {"models": [[node type, name], ...], "bypassed": [checkpoint, ...]}, the second of the nodes
    CogVideoX Download that are bypassed. Entries of another form, and nodes that load no models, are skipped.
    told: a text -> the same in the page's language.
    """
    try:
        asked = json.loads(body[:MAX_BYTES])
    except (ValueError, RecursionError):
        return []
    asked = asked if isinstance(asked, dict) else {}
    bypassed = frozenset(filter(_is_text, _list(asked.get("bypassed"))))
    pairs = [pair for pair in _list(asked.get("models")) if len(_list(pair)) == 2 and all(map(_is_text, pair))]
    missing = [one for kind, name in pairs if (one := describe_missing(name, kind, bypassed)) is not None]
    return [told(text)] if (text := describe_all(missing, are_told=False)) else []


def _shown(example: str | None) -> dict[str, Any] | None:
    """None for no example of the pack, and for one whose files are damaged: a run says so."""
    if example is None or example not in INPUTS:
        return None
    try:
        return show_example(example)
    except (UserError, OSError):
        logging.debug("An example input cannot be shown.", exc_info=True)
        return None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_text(value: object) -> bool:
    return isinstance(value, str)
