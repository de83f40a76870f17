"""Convert a workflow from the format that ComfyUI's frontend saves to the API format of /prompt.

comfy-cli has a converter too, but depends on two dozen packages, two of them for telemetry, which a demo should not
install; the tests compare the two. Subgraphs are not supported and lead to a message.
"""

from collections.abc import Iterator

from .errors import DevError

_MUTED, _BYPASSED = 2, 4  # LGraphEventMode of the frontend
_WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
_FRONTEND_ONLY = {"Note", "MarkdownNote", "PrimitiveNode", "Reroute"}
_CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}


def convert_to_api(workflow: dict, object_info: dict) -> dict:
    """A workflow as saved ("nodes" and "links") in API format: {node id: {"class_type", "inputs"}}.

    object_info: the server's schemas, by node type. A workflow in API format already comes back as it is.
    Raises: DevError for a node type that the server does not know.
    """
    if "nodes" not in workflow:
        return workflow
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources = {link[0]: (link[1], link[2]) for link in map(_as_row, workflow["links"])}
    api = {}
    for node in nodes.values():
        if node["type"] in _FRONTEND_ONLY or node.get("mode") in (_MUTED, _BYPASSED):
            continue
        if node["type"] not in object_info:
            raise DevError(
                f"ComfyUI has no node {node['type']} (node {node['id']} of the workflow): "
                "the pack that defines it is missing or failed to import, see the server's log."
            )
        inputs = dict(_widget_inputs(node, object_info[node["type"]]))
        for entry in node.get("inputs") or []:
            source = _trace(entry.get("link"), nodes, sources)
            if source is not None:
                inputs[entry["name"]] = source
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return api


def _as_row(link: list | dict) -> list:
    return [link["id"], link["origin_id"], link["origin_slot"]] if isinstance(link, dict) else link


def _trace(link: int | None, nodes: dict, sources: dict) -> list | None:
    """[node id, output slot] that a link comes from, followed through reroutes and bypassed nodes; None if nothing."""
    while link in sources:
        origin, slot = sources[link]
        node = nodes[origin]
        if node["type"] == "Reroute":
            link = node["inputs"][0].get("link")
        elif node["type"] == "PrimitiveNode" or node.get("mode") == _MUTED:
            return None  # a primitive's value is saved in the widget that it drives, too
        elif node.get("mode") == _BYPASSED:
            link = _bypass(node, slot)
        else:
            return [str(origin), slot]
    return None


def _bypass(node: dict, slot: int) -> int | None:
    # As the frontend: the input opposite the output, else the first of its type.
    wanted, inputs = node["outputs"][slot]["type"], node.get("inputs") or []
    candidates = [*inputs[slot : slot + 1], *inputs]
    return next((entry.get("link") for entry in candidates if entry["type"] == wanted), None)


def _widget_inputs(node: dict, schema: dict) -> Iterator[tuple[str, object]]:
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        yield from ((name, saved[name]) for name, _ in _input_specs(schema) if name in saved)
        return
    yield from _pair(list(_input_specs(schema)), list(saved))


def _pair(specs: list, values: list) -> Iterator[tuple[str, object]]:
    """Give each widget its value, in order. The inputs that a dynamic combo's choice adds follow that combo."""
    pending = list(specs)
    while pending:
        name, spec = pending.pop(0)
        options = spec[1] if len(spec) > 1 else {}
        # A widget that is newer than the file has no value in it: the frontend uses the default.
        if not _is_widget(spec) or not (values or "default" in options):
            continue
        value = values.pop(0) if values else options["default"]
        yield name, {"__value__": value} if isinstance(value, list) else value  # a bare list would read as a link
        if spec[0] == "COMFY_DYNAMICCOMBO_V3":
            chosen = next((option for option in options["options"] if option["key"] == value), {"inputs": {}})
            pending[:0] = [(f"{name}.{sub}", sub_spec) for sub, sub_spec in _input_specs({"input": chosen["inputs"]})]
        has_control = options.get("control_after_generate") or (spec[0] == "INT" and name in ("seed", "noise_seed"))
        if has_control and values and values[0] in _CONTROL_VALUES:
            values.pop(0)


def _input_specs(schema: dict) -> Iterator[tuple[str, list]]:
    for section in ("required", "optional"):
        yield from (schema["input"].get(section) or {}).items()


def _is_widget(spec: list) -> bool:
    options = spec[1] if len(spec) > 1 else {}
    if options.get("forceInput"):
        return False
    return isinstance(spec[0], list) or spec[0] in _WIDGET_TYPES or bool(options.get("widgetType"))
