"""Words for the user while a node runs."""

import logging
from collections.abc import Callable

Notify = Callable[[str], object]  # takes a sentence for the user


def show_on_node(text: str, node_id: str | None) -> None:
    """Show `text` on the node that runs (ui.PreviewText shows nothing on custom nodes)."""
    server = _server()
    if node_id is not None and server is not None:
        server.send_progress_text(text, node_id)


def show_on_running_node(text: str) -> None:
    """Show `text` on whichever node runs now, and in the log, from code that no node knows of."""
    logging.warning(text)
    show_on_node(text, getattr(_server(), "last_node_id", None))


def _server() -> object | None:
    from server import PromptServer

    return getattr(PromptServer, "instance", None)
