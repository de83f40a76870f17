"""Messages to the user while a node runs."""

import logging
from collections.abc import Callable

from .protocols import PromptServer

Notify = Callable[[str], object]  # takes a sentence for the user


def show_on_node(text: str, node_id: str | None) -> None:
    """Show `text` on the node `node_id`, the one that runs. (ComfyUI's ui.PreviewText shows nothing on custom nodes.)

    Nothing happens without a node or a server, as in scripts.
    """
    server = prompt_server()
    if node_id is not None and server is not None:
        server.send_progress_text(text, node_id)


def show_on_running_node(text: str) -> None:
    """Show `text` on whichever node runs now, and in the log.

    It is the `notify` that loaders hand to the rooms below. What they load also runs inside stock nodes, such as VAE
    Decode, so that the node to show a text on is known only when there is something to show.
    """
    logging.warning(text)
    show_on_node(text, getattr(prompt_server(), "last_node_id", None))


def prompt_server() -> PromptServer | None:
    """ComfyUI's server; None in a script."""
    import server

    return getattr(server.PromptServer, "instance", None)
