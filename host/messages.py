"""Words for the user while a node runs."""

def show_on_node(text: str, node_id: str | None) -> None:
    """Show `text` on the node that runs (ui.PreviewText shows nothing on custom nodes)."""
    from server import PromptServer

    if node_id is not None and getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id)
