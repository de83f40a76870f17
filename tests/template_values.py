"""What is wrong with the values and links of a saved workflow, by the schemas of its nodes."""

from collections.abc import Iterator

from cogvideox.devtools.workflow import _input_specs, _pair

_FRONTEND_ONLY = ("MarkdownNote",)
# Widgets that the frontend adds to a core node and saves behind its inputs.
_EXTRA = {"LoadImage": ["image"], "CogVideoXOwnImage": ["image"], "SaveVideo": []}
_TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}


def faults(workflow: dict, schemas: dict) -> list[str]:
    """Sentences, one a fault: unknown nodes, lost links, values in another's place or that the node refuses. schemas:
    the server's object_info. A model that is not there yet (a name that `properties.models` has, or the loader's own)
    is none."""
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    inner = {graph["id"] for graph in graphs[1:]}
    found = []
    for graph in graphs:
        nodes = {node["id"]: node for node in graph["nodes"]}
        for node in nodes.values():
            if node["type"] in _FRONTEND_ONLY or node["type"] in inner:
                continue
            if node["type"] not in schemas:
                found.append(f"there is no node {node['type']}")
                continue
            found += [f"{node['type']}: {fault}" for fault in _node_faults(node, schemas[node["type"]])]
        found += _link_faults(graph, nodes)
    return found


_MATCHED = "COMFY_MATCHTYPE_V3"  # ComfyUI's type of inputs and outputs that are all of whatever type is connected


def _given(kind: object, node: dict, known: dict) -> object:
    """The type that the frontend saves for an output: of a matched one, that of the inputs that it matches."""
    if kind != _MATCHED:
        return _type(kind)
    types = {entry["type"] for entry in node["inputs"] if entry["name"] in known and known[entry["name"]][0] == kind}
    return types.pop() if len(types) == 1 else kind


def _node_faults(node: dict, schema: dict) -> Iterator[str]:
    known = dict(_input_specs(schema))
    for entry in node["inputs"]:
        if entry["name"] not in known and "." not in entry["name"] and entry.get("type") != "IMAGEUPLOAD":
            yield f"has no input {entry['name']}"
    if [slot["type"] for slot in node["outputs"]] != [_given(kind, node, known) for kind in schema["output"]]:
        yield f"gives {schema['output']}"
    for name in schema["input"].get("required", {}):
        entry = next((entry for entry in node["inputs"] if entry["name"] == name), None)
        if entry is None or (entry.get("link") is None and "widget" not in entry):
            yield f"lacks {name}"
    values = list(node.get("widgets_values") or [])
    linked = {entry["name"] for entry in node["inputs"] if entry.get("link") is not None}
    for name, value in _pair(list(known.items()), values):
        yield from _value_faults(name, value, known.get(name), linked, node)
    if values != _EXTRA.get(node["type"], []):
        yield f"has {values} too many"


def _type(kind: object) -> object:
    return "COMBO" if isinstance(kind, list) else kind


def _value_faults(name: str, value: object, spec: list | None, linked: set[str], node: dict) -> Iterator[str]:
    if spec is None:  # an input of a dynamic combo's choice
        return
    options = spec[1] if len(spec) > 1 else {}
    offered = spec[0] if isinstance(spec[0], list) else options.get("options")
    if isinstance(offered, list) and spec[0] != "COMFY_DYNAMICCOMBO_V3":
        downloads = {model["name"] for model in node["properties"].get("models", [])}
        if value not in offered and value not in downloads and name not in linked:
            yield f"{name} is {value!r}, which is not offered"
        return
    expected = _TYPES.get(str(spec[0]))
    if expected is None:
        return
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        yield f"{name} is {value!r}, which is no {spec[0]}"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not options.get("min", value) <= value <= options.get("max", value):
            yield f"{name} is {value}, outside its range"


def _link_faults(graph: dict, nodes: dict) -> Iterator[str]:
    """A link has to be known to both of its ends, in slots of its type."""
    links = {}
    for link in graph["links"]:
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        row = link if isinstance(link, dict) else dict(zip(names, link))
        links[row["id"]] = row
    for row in links.values():
        for node_id, slot, side in (
            (row["origin_id"], row["origin_slot"], "outputs"),
            (row["target_id"], row["target_slot"], "inputs"),
        ):
            if node_id in (-10, -20):  # the sides of a subgraph
                continue
            slots = nodes[node_id][side] if node_id in nodes else []
            entry = slots[slot] if slot < len(slots) else {}
            if row["id"] not in (entry.get("links") or [entry.get("link")]):
                yield f"link {row['id']} is lost at node {node_id}"
    for node in nodes.values():
        for entry in node["inputs"]:
            if entry.get("link") is not None and entry["link"] not in links:
                yield f"{node['type']}.{entry['name']} hangs on link {entry['link']}, which is lost"
