"""ComfyUI's node replacement, for workflows of ComfyUI-CogVideoXWrapper."""

import logging
import sys
from typing import Any

from comfy_api import latest

from ..host.messages import prompt_server
from ..migration.replacements import REPLACEMENTS


async def register_replacements() -> None:
    """Have ComfyUI offer a node of the pack for those of the wrapper that are the same.

    ComfyUI asks only for nodes that are missing: beside an installed wrapper nothing is replaced. A version without
    replacements, or a process without a server, is left as it is.
    """
    if "server" not in sys.modules or prompt_server() is None:
        return
    try:
        register, entry = latest.ComfyAPI().node_replacement.register, latest.io.NodeReplace
    except AttributeError as error:
        logging.debug(f"This ComfyUI offers no replacements for the nodes of ComfyUI-CogVideoXWrapper: {error}")
        return
    for old, replacement in REPLACEMENTS.items():
        inputs: list[Any] = [{"new_id": new, "old_id": name} for new, name in replacement.inputs.items()]
        values = [{"new_id": new, "set_value": value} for new, value in replacement.values.items()]
        await register(
            entry(
                new_node_id=replacement.new,
                old_node_id=old,
                old_widget_ids=list(replacement.widgets),
                input_mapping=inputs + values,
                output_mapping=[{"new_idx": 0, "old_idx": 0}],
            )
        )
