"""Workflows in the two formats of ComfyUI: as the frontend saves them ("nodes" and "links"), and as the API takes them.

A workflow comes from anybody: whatever is not as it should be is one UserError.
"""

import json
import math
from typing import Any

from ..errors import UserError, quoted
from .node_graph import Graph, Link, Node
from .node_layout import separate_nodes
from .target_nodes import TARGETS
from .workflow_limits import check_depth, check_nodes, check_slots, check_values, read_integer, refuse_depth
from .wrapper_nodes import NAMES, REQUIRED, WRAPPER, WrapperInput

_CONTROL = ("fixed", "increment", "decrement", "randomize")
_TYPES: dict[str, tuple[type, ...]] = {
    "INT": (int,),
    "FLOAT": (int, float),
    "STRING": (str,),
    "COMBO": (str,),
    "BOOLEAN": (bool,),
}


def parse_workflow(text: str) -> dict[str, Any]:
    """The JSON of a workflow. Raises UserError for what is no JSON, no workflow, or beyond the limits."""
    check_values(text)
    try:
        document = json.loads(text, parse_int=read_integer)
    except RecursionError as error:
        raise refuse_depth() from error
    except ValueError as error:
        raise UserError(f"The file is not JSON ({quoted(str(error))}). Save the workflow in ComfyUI again.") from error
    if not isinstance(document, dict) or not document:
        raise UserError(
            "The file is JSON, but not a workflow of ComfyUI, which is an object with nodes. Choose another."
        )
    check_depth(document)
    return document


def read_graph(document: dict[str, Any]) -> Graph:
    """The nodes of a workflow. Raises UserError."""
    return Graph(_read_saved(document) if "nodes" in document else _read_api(document))


def write_graph(document: dict[str, Any], graph: Graph) -> dict[str, Any]:
    """The workflow `document` with the nodes of `graph`, in the format that it had."""
    return _write_saved(document, graph) if "nodes" in document else _write_api(graph)


def _refuse(what: str) -> UserError:
    return UserError(f"The workflow is damaged: {what}. Open it in ComfyUI and save it again.")


# As saved by the frontend


def _read_saved(document: dict[str, Any]) -> dict[str, Node]:
    saved, links = document["nodes"], document.get("links") or []
    if not isinstance(saved, list) or not isinstance(links, list):
        raise _refuse("its nodes or its links are not lists")
    check_nodes(len(saved))
    _refuse_subgraphs(document)
    sources = dict(_read_link(link) for link in links)
    nodes: dict[str, Node] = {}
    for entry in saved:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or not _is_id(entry.get("id")):
            raise _refuse(f"a node has no id or no type ({quoted(str(entry))})")
        node = _read_saved_node(entry, sources)
        if node.id in nodes:
            raise _refuse(f"two nodes have the id {quoted(node.id)}")
        nodes[node.id] = node
    return nodes


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _read_link(link: Any) -> tuple[Any, Link]:
    """(id, source) of a link: a list [id, origin, its slot, target, its slot, type], or an object with these names."""
    if isinstance(link, dict):
        link = [link.get(name) for name in ("id", "origin_id", "origin_slot")]
    if not isinstance(link, list) or len(link) < 3 or not all(map(_is_id, link[:3])) or not isinstance(link[2], int):
        raise _refuse(f"a link is not [id, node, slot, node, slot, type] ({quoted(str(link))})")
    return link[0], Link(str(link[1]), link[2])


def _refuse_subgraphs(document: dict[str, Any]) -> None:
    found, left = set(), [document.get("definitions")]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            kind = value.get("type")
            found |= {kind} if isinstance(kind, str) and kind in NAMES else set()
            left += value.values()
        elif isinstance(value, list):
            left += value
    inside = sorted(found)
    if inside:
        raise UserError(
            f"The workflow has {', '.join(inside)} in a subgraph, which is not rewritten. Unpack the subgraph in "
            "ComfyUI (right-click, Unpack Subgraph), save the workflow and migrate it again."
        )


def _read_saved_node(entry: dict[str, Any], sources: dict[Any, Link]) -> Node:
    mode, widgets, entries = entry.get("mode") or 0, entry.get("widgets_values"), entry.get("inputs") or []
    outputs = entry.get("outputs") or []
    node = Node(str(entry["id"]), entry["type"], {}, mode if isinstance(mode, int) else 0, widgets, entry)
    for kind, part in (("inputs", entries), ("outputs", outputs)):
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise _refuse(f"the {kind} of {node.label} are not a list of objects")
        check_slots(node.label, len(part), kind)
    taken: set[str] = set()
    for number, item in enumerate(entries):
        name = str(item.get("name"))
        while name in taken:
            name = f"{name} #{number}"
        taken.add(name)
        node.slots.append(name)
        link = item.get("link")
        if _is_id(link) and link in sources:
            node.inputs[name] = sources[link]
    if node.type in WRAPPER:
        _take_widgets(node, _by_name(node, node.widgets))
    return node


def _by_name(node: Node, values: Any) -> dict[str, Any]:
    """The values of a wrapper node's widgets, which are saved in their order."""
    if isinstance(values, dict):
        return values
    if not isinstance(values or [], list):
        raise _refuse(f"the widgets of {node.label} are not a list")
    found, waiting = {}, list(values or [])
    for spec in WRAPPER[node.type]:
        if spec.is_widget and waiting:
            found[spec.name] = waiting.pop(0)
            if spec.name == "seed" and waiting and waiting[0] in _CONTROL:
                waiting.pop(0)
    return found


def _take_widgets(node: Node, values: dict[str, Any]) -> None:
    """Give a wrapper node the values of its widgets, or a problem: another version of the wrapper has others at their
    places, or the file is damaged."""
    for spec in WRAPPER[node.type]:
        value = values.get(spec.name, spec.default)
        if not spec.is_widget or isinstance(node.inputs.get(spec.name), Link):
            continue
        node.inputs[spec.name] = value
        if not _fits(spec, value):
            shown = "no value" if value is REQUIRED else quoted(repr(value))
            expected = f"one of {', '.join(spec.choices)}" if spec.choices else f"of the type {spec.kind}"
            node.problem = (
                f"it has {shown} at {spec.name}, which is not {expected}: it was saved by another version of the "
                "wrapper, or is damaged. Choose its values again in the wrapper's last version and save the workflow."
            )
            return


def _fits(spec: WrapperInput, value: Any) -> bool:
    """Whether a value may be that of a widget."""
    is_number = not isinstance(value, float) or math.isfinite(value)
    has_type = isinstance(value, _TYPES[spec.kind]) and (spec.kind == "BOOLEAN" or not isinstance(value, bool))
    return is_number and has_type and (not spec.choices or value in spec.choices)


def _write_saved(document: dict[str, Any], graph: Graph) -> dict[str, Any]:
    ids = {node.id: _saved_id(node) for node in graph.nodes.values()}
    old = document.get("links") or []
    numbers = [link["id"] if isinstance(link, dict) else link[0] for link in old]
    next_link = max((number for number in numbers if isinstance(number, int)), default=0)
    nodes = {node.id: _saved_node(node) for node in graph.nodes.values()}
    for entry in nodes.values():
        for output in entry.get("outputs") or []:
            output["links"] = []
    rows = []
    for node in graph.nodes.values():
        entries = nodes[node.id].get("inputs") or []
        for number, (name, entry) in enumerate(zip(node.slots, entries, strict=True)):
            link, entry["link"] = node.inputs.get(name), None
            if not isinstance(link, Link) or link.node not in nodes:
                continue
            outputs = nodes[link.node].get("outputs") or []
            next_link += 1
            entry["link"] = next_link
            kind = entry.get("type", "*")
            if 0 <= link.slot < len(outputs):
                outputs[link.slot]["links"].append(next_link)
                kind = outputs[link.slot].get("type", kind)
            rows.append([next_link, ids[link.node], link.slot, ids[node.id], number, kind])
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    if old and isinstance(old[0], dict):
        rows = [dict(zip(names, row, strict=True)) for row in rows]
    last = max((number for number in ids.values() if isinstance(number, int)), default=0)
    written = {**document, "nodes": list(nodes.values()), "links": rows}
    written.pop("reroutes", None)  # the bends of links, by the numbers that these had
    if isinstance(document.get("extra"), dict):
        bends = ("reroutes", "linkExtensions")
        written["extra"] = {name: value for name, value in document["extra"].items() if name not in bends}
    if isinstance(document.get("state"), dict):
        written["state"] = {**document["state"], "lastNodeId": last, "lastLinkId": next_link}
    if "last_node_id" in document or "state" not in document:
        written |= {"last_node_id": last, "last_link_id": next_link}
    return separate_nodes(written, {int(node.id) for node in graph.nodes.values() if node.is_new})


def _saved_id(node: Node) -> int | str:
    return int(node.id) if node.is_new else node.saved["id"]


def _saved_node(node: Node) -> dict[str, Any]:
    """What is written of a node, its links left open."""
    if not node.is_new:
        entries = [dict(entry) for entry in node.saved.get("inputs") or []]
        outputs = [dict(entry) for entry in node.saved.get("outputs") or []]
        copies = {"inputs": entries, "outputs": outputs}
        return {name: copies[name] if name in copies and value else value for name, value in node.saved.items()}
    target = TARGETS[node.type]
    entries = [{"name": name, "type": kind, "link": None} for name, kind, _ in target.sockets]
    entries += [{"name": n, "type": kind, "widget": {"name": n}, "link": None} for n, kind, _ in target.widgets]
    node.slots = [entry["name"] for entry in entries]
    values = []
    for name, _, default in target.widgets:
        value = node.inputs.get(name, default)
        values.append(default if isinstance(value, Link) else value)
        if name == target.control:
            values.append("fixed")
    return {
        "id": int(node.id),
        "type": node.type,
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": entries,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in target.outputs],
        "properties": {"Node name for S&R": node.type},
        "widgets_values": values,
        **node.saved,
    }


# As the API takes them


def _read_api(document: dict[str, Any]) -> dict[str, Node]:
    nodes = {}
    check_nodes(len(document))
    for name, entry in document.items():
        is_node = isinstance(entry, dict) and isinstance(entry.get("class_type"), str)
        if not is_node or not isinstance(entry.get("inputs", {}), dict):
            raise UserError(
                "The file is JSON, but no workflow of ComfyUI: it has neither a list of nodes, nor a class_type and "
                f"inputs at {quoted(str(name))!r}. Save the workflow with ComfyUI again."
            )
        inputs = {str(key): _api_value(value) for key, value in (entry.get("inputs") or {}).items()}
        node = Node(name, entry["class_type"], inputs, saved=entry)
        check_slots(node.label, len(inputs), "inputs")
        if node.type in WRAPPER:
            _take_widgets(node, inputs)
        nodes[name] = node
    return nodes


def _api_value(value: Any) -> Any:
    """A list of a node's id and a number is a link."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
        return Link(value[0], value[1])
    return value


def _write_api(graph: Graph) -> dict[str, Any]:
    written = {}
    for node in graph.nodes.values():
        values = node.inputs
        if node.is_new:  # a prompt needs every required input, also where the default is meant
            given = {name: default for name, _, default in TARGETS[node.type].widgets}
            values = given | node.inputs
        inputs = {name: list(value) if isinstance(value, Link) else value for name, value in values.items()}
        kept = {"_meta": {"title": node.type}} if node.is_new else node.saved
        written[node.id] = {**kept, "class_type": node.type, "inputs": inputs}
    return written
