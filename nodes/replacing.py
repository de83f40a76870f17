"""ComfyUI's node replacement, for workflows of ComfyUI-CogVideoXWrapper."""

import logging
import sys
from typing import Any

from comfy_api import latest

from ..host.messages import prompt_server
from ..host.patches import handle_prompts
from ..host.standalone import comfyui_nodes
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
    handle_prompts(replace_incomplete)


def replace_incomplete(request: dict[str, Any]) -> dict[str, Any]:
    """Replace the nodes of a queued prompt on which ComfyUI's own replacement would fail, and return the prompt.

    It takes from a node `_meta`, which the browser adds and a script need not, and each input that is renamed
    (app/node_replace_manager.py). Without them ComfyUI answers with an error 500; an unknown node gets a sentence.
    """
    known, prompt = comfyui_nodes().NODE_CLASS_MAPPINGS, request.get("prompt")
    for node in prompt.values() if isinstance(prompt, dict) else ():
        old = node.get("class_type") if isinstance(node, dict) else None
        replacement = REPLACEMENTS.get(old) if isinstance(old, str) and old not in known else None
        inputs = node.get("inputs") if replacement is not None else None
        if replacement is None or not isinstance(inputs, dict) or replacement.new not in known:
            continue
        if isinstance(node.get("_meta"), dict) and set(replacement.inputs.values()) <= inputs.keys():
            continue  # ComfyUI does it
        given = {new: inputs[name] for new, name in replacement.inputs.items() if name in inputs}
        node |= {"class_type": replacement.new, "inputs": {**given, **replacement.values}}
    return request
