"""Messages to the user while a node runs."""

import html
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import MAX_LETTERS, printable, shortened
from .protocols import PromptServer

Notify = Callable[[str], object]  # takes a sentence for the user


@dataclass(frozen=True)
class _Shown:
    """What is on a node: the run that it is from, and its texts."""

    run: str | None
    texts: tuple[str, ...]


_shown: dict[tuple[str, str], _Shown] = {}  # by (browser, node)


def show_on_node(text: str, node_id: str | None) -> None:
    """Show `text` on the node `node_id`, the one that runs. (ComfyUI's ui.PreviewText shows nothing on custom nodes.)

    Only the browser that queued the run gets it: a text may contain prompts and names of files. Nothing happens
    without a node, a browser or a server, as in scripts.
    """
    server = prompt_server()
    if node_id is None or server is None or server.client_id is None:
        return
    _show(server, server.client_id, node_id, (text,))


def show_on_running_node(text: str) -> None:
    """Show `text` on whichever node runs now, below what this run has shown there before, and in the log.

    For the `notify` that nodes hand to the rooms below: stock nodes run their code as well.
    """
    logging.warning(printable(text))
    server = prompt_server()
    if server is None or server.client_id is None or server.last_node_id is None:
        return
    before = _shown.get((server.client_id, server.last_node_id))
    texts = before.texts if before is not None and before.run == _run_of(server) else ()
    if text not in texts:
        _show(server, server.client_id, server.last_node_id, (*texts, text))


def _show(server: PromptServer, client_id: str, node_id: str, texts: tuple[str, ...]) -> None:
    # The frontend has one text for a node: the next one takes its place.
    _shown[client_id, node_id] = _Shown(_run_of(server), texts)
    server.send_progress_text(as_html("\n\n".join(texts)), node_id, client_id)


def clear_running_node() -> None:
    """Take away what an earlier run has shown on the node that runs now; what this run has shown stays.

    ComfyUI's frontend keeps a text until another one comes for the same node: a warning would outlive its reason.
    """
    server = prompt_server()
    if server is None or server.client_id is None or server.last_node_id is None:
        return
    key = server.client_id, server.last_node_id
    if key in _shown and _shown[key].run != _run_of(server):
        del _shown[key]
        server.send_progress_text(" ", server.last_node_id, server.client_id)  # the frontend ignores an empty text


def as_html(text: str) -> str:
    """`text` for the frontend, which puts it into the page as HTML (those of ComfyUI 0.16.3 and 0.18.2 unfiltered).

    It may contain names and keys from a stranger's workflow or file. The frontend also makes links, of addresses and of
    [[label|address]]: none of ours is meant as one.
    """
    escaped = html.escape(printable(shortened(text, MAX_LETTERS)), quote=True)
    escaped = escaped.replace("://", ":&#47;/").replace("[[", "[&#91;")
    return re.sub(r"(www)\.", r"\1&#46;", escaped, flags=re.IGNORECASE)


def prompt_server() -> PromptServer | None:
    """ComfyUI's server; None in a script."""
    import server

    return getattr(server.PromptServer, "instance", None)


def _run_of(server: PromptServer) -> str | None:
    return getattr(server, "last_prompt_id", None)
