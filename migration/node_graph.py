"""A workflow as nodes whose inputs are values or links, whichever format it was saved in."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import UserError, quoted

MUTED, BYPASSED = 2, 4  # LGraphEventMode of ComfyUI's frontend
# Nodes that only pass on what they are given, and nodes that are nothing but a value.
CARRIERS = ("Reroute", "SetNode", "GetNode")
_CONSTANTS = ("PrimitiveNode", "INTConstant", "FloatConstant", "PrimitiveInt", "PrimitiveFloat")


class Link(NamedTuple):
    """The output of another node. slot: its number, from 0."""

    node: str
    slot: int


@dataclass
class Node:
    """One node.

    inputs: values and links by name; of a node that nothing here knows, the links alone. widgets: as the file has them,
    a list or a mapping by name. saved: everything else that the file says of the node, which is written back as it was.
    slots: the names in `inputs` of the entries of saved["inputs"], in their order. is_new: it comes from the rewriting.
    problem: why its values cannot be read.
    """

    id: str
    type: str
    inputs: dict[str, Any]
    mode: int = 0
    widgets: Any = None
    saved: dict[str, Any] = field(default_factory=dict)
    slots: list[str] = field(default_factory=list)
    is_new: bool = False
    problem: str = ""

    @property
    def label(self) -> str:
        return f"{quoted(self.type)} (node {quoted(self.id)})"

    def widget(self, number: int, name: str) -> Any:
        """A widget's value: the one called `name`, or number `number` of a list; None where the file has none."""
        if name in self.inputs and not isinstance(self.inputs[name], Link):
            return self.inputs[name]
        if isinstance(self.widgets, dict):
            return self.widgets.get(name)
        has_it = isinstance(self.widgets, list) and number < len(self.widgets)
        return self.widgets[number] if has_it else None


@dataclass
class Graph:
    """All nodes by id, and where the outputs of replaced nodes come from now."""

    nodes: dict[str, Node]
    last_id: int = 0
    moved: dict[Link, Link] = field(default_factory=dict)

    def resolve(self, value: Any) -> Any:
        """What an input really gets: a value; a Link to the output that makes it, through reroutes, Set and Get nodes,
        and bypassed ones; or None where nothing is connected or what is connected is muted. Raises UserError."""
        seen: set[Link] = set()
        while isinstance(value, Link):
            if value in seen:
                raise UserError(f"The links of node {quoted(value.node)} lead back to itself. Remove the circle.")
            seen.add(value)
            node = self.nodes.get(value.node)
            if node is None or node.mode == MUTED:
                return None
            if node.mode == BYPASSED and node.type not in CARRIERS:
                value = _bypass(node, value.slot)
            elif node.type in ("Reroute", "SetNode"):
                value = next(iter(node.inputs.values()), None)
            elif node.type == "GetNode":
                value = self._carried(node)
            else:
                return value
        return value

    def source(self, value: Any) -> Node | None:
        """The node that `resolve` ends at, None for a value."""
        found = self.resolve(value)
        return self.nodes[found.node] if isinstance(found, Link) else None

    def constant(self, value: Any) -> Any:
        """The number of an input, through a node that is a constant; None where it is known only in a run."""
        found = self.resolve(value)
        if not isinstance(found, Link):
            return found
        node = self.nodes[found.node]
        return node.widget(0, "value") if node.type in _CONSTANTS else None

    def used_outputs(self) -> dict[str, set[int]]:
        """The outputs that something is linked to, by node; a SetNode that is got has one as well."""
        used: dict[str, set[int]] = {}
        got = {str(node.widget(0, "value")) for node in self.nodes.values() if node.type == "GetNode"}
        for node in self.nodes.values():
            for value in node.inputs.values():
                if isinstance(value, Link):
                    used.setdefault(value.node, set()).add(value.slot)
            if node.type == "SetNode" and str(node.widget(0, "value")) in got:
                used.setdefault(node.id, set()).add(0)
        return used

    def new_id(self) -> str:
        """An id that no node has: a number, as the frontend's."""
        if not self.last_id:
            self.last_id = max((int(name) for name in self.nodes if name.isdecimal() and len(name) < 16), default=0)
        self.last_id += 1
        return str(self.last_id)

    def _carried(self, node: Node) -> Any:
        name = node.widget(0, "value")
        setters = [n for n in self.nodes.values() if n.type == "SetNode" and n.widget(0, "value") == name]
        if len(setters) != 1:
            raise UserError(
                f"{node.label} gets {quoted(str(name))!r}, which {len(setters)} SetNodes set; expected is one. Connect "
                "the nodes directly."
            )
        return next(iter(setters[0].inputs.values()), None)


def _bypass(node: Node, slot: int) -> Any:
    """What a bypassed node passes on, by the frontend's rule: the input opposite the output, else the first of its
    type."""
    outputs, entries = node.saved.get("outputs") or [], node.saved.get("inputs") or []
    if not 0 <= slot < len(outputs):
        return None
    wanted = outputs[slot].get("type")
    order = [*range(slot, min(slot + 1, len(entries))), *range(len(entries))]
    found = next((i for i in order if entries[i].get("type") == wanted), None)
    return None if found is None else node.inputs.get(node.slots[found])


def check_circles(graph: Graph) -> None:
    """Raises UserError for links that lead back to where they come from, which ComfyUI cannot run either."""
    waiting = {
        node.id: {v.node for v in node.inputs.values() if isinstance(v, Link) and v.node in graph.nodes}
        for node in graph.nodes.values()
    }
    setters: dict[str, set[str]] = {}
    for node in graph.nodes.values():
        if node.type == "SetNode":
            setters.setdefault(str(node.widget(0, "value")), set()).add(node.id)
    for node in graph.nodes.values():
        if node.type == "GetNode":
            waiting[node.id] |= setters.get(str(node.widget(0, "value")), set())
    users: dict[str, list[str]] = {}
    for name, sources in waiting.items():
        for source in sources:
            users.setdefault(source, []).append(name)
    free = [name for name, sources in waiting.items() if not sources]
    while free:
        done = free.pop()
        del waiting[done]
        for name in users.get(done, ()):
            waiting[name].discard(done)
            if not waiting[name]:
                free.append(name)
    if waiting:
        node = graph.nodes[next(iter(waiting))]
        raise UserError(f"The links of {node.label} lead in a circle, which ComfyUI cannot run. Remove one of them.")
