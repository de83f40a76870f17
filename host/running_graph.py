"""The graph that runs, as ComfyUI's queue holds it: what comes after a node, which no node is told."""

from collections.abc import Mapping
from typing import Any

from .messages import prompt_server

Graph = Mapping[str, Mapping[str, Any]]  # id -> class_type and inputs, of which a list [id, output] is a link

# Nodes that hand on a video, frame for frame. What interpolates or cuts frames is none of them.
_PASSING = {
    *("KSamplerAdvanced", "KSampler", "SamplerCustomAdvanced", "SamplerCustom", "CogVideoXSample"),
    *("VAEDecode", "VAEDecodeTiled", "CogVideoXDecode", "CogVideoXDraftDecode", "CogVideoXJoinVideos"),
    *("ImageScale", "ImageScaleBy", "ImageUpscaleWithModel", "PreviewImage"),
}
# What plays a video -> its input for the frames a second. The last one is of ComfyUI-VideoHelperSuite.
_PLAYING = {
    "CreateVideo": "fps",
    "CogVideoXDecodeToFile": "fps",
    "SaveWEBM": "fps",
    "SaveAnimatedWEBP": "fps",
    "SaveAnimatedPNG": "fps",
    "VHS_VideoCombine": "frame_rate",
}
# of a graph that is looked through, and of a rate that is taken for one
_MOST_NODES, _HIGHEST_FPS = 2000, 1e4


def running_graph() -> tuple[Graph, str] | None:
    """The graph that runs and the id of the node that does; None in a script, or where this ComfyUI does not say."""
    server: Any = prompt_server()
    running = getattr(getattr(server, "prompt_queue", None), "currently_running", None)
    node_id, prompt_id = getattr(server, "last_node_id", None), getattr(server, "last_prompt_id", None)
    if not isinstance(running, Mapping) or node_id is None:
        return None
    # (number, prompt_id, graph, ...), see execution.py, PromptQueue
    graphs = [item[2] for item in list(running.values()) if len(item) > 2 and item[1] == prompt_id]
    return (graphs[0], node_id) if graphs and isinstance(graphs[0], Mapping) else None


def is_linked(graph: Graph, node_id: str, output: int) -> bool:
    """Whether a node of `graph` is connected to this output of the node `node_id`."""
    # ComfyUI checks only what an output needs: the inputs of other nodes are whatever a workflow says.
    inputs = [node.get("inputs") for node in graph.values()]
    return any([node_id, output] in each.values() for each in inputs if isinstance(each, Mapping))


def frame_rates_after(graph: Graph, node_id: str) -> set[float]:
    """The frames a second at which the video of the node `node_id` is played, as far as they are typed in."""
    found, seen, waiting = set(), {node_id}, [node_id]
    if len(graph) > _MOST_NODES:  # each passing node is compared with all: not worth minutes
        return found
    while waiting:
        source = waiting.pop()
        for name, node in graph.items():
            inputs = node.get("inputs")
            if name in seen or not isinstance(inputs, Mapping):  # ComfyUI checks only what an output needs
                continue
            if not any(isinstance(value, list) and value[:1] == [source] for value in inputs.values()):
                continue
            seen.add(name)
            rate = inputs.get(_PLAYING.get(node.get("class_type", ""), ""))
            if isinstance(rate, (int, float)) and 0 < rate < _HIGHEST_FPS:
                found.add(float(rate))
            if node.get("class_type") in _PASSING:
                waiting.append(name)
    return found
