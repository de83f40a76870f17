"""Words for the user while a node runs."""

import logging


def warn(text: str, node_id: str | None) -> None:
    """Log `text` and show it on the node (ui.PreviewText shows nothing on custom nodes)."""
    from server import PromptServer

    logging.warning(text)
    if node_id is not None and getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id)
