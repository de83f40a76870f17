"""A workflow as nodes whose inputs are values or links, whichever format it was saved in."""

import heapq
from collections import Counter
from collections.abc import Iterable
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

    @property
    def carried_name(self) -> str:
        """The name under which a SetNode hands on its input, and a GetNode gets it; "" where it has none."""
        name = self.widget(0, "value")
        return name if isinstance(name, str) else ""

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

    def __post_init__(self) -> None:
        # Both are for all of a conversion: it adds no carriers, and what it moves leads to the same.
        self._setters: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            if node.type == "SetNode":
                self._setters.setdefault(node.carried_name, []).append(node)
        self._ends: dict[Link, Any] = {}  # of resolve; a UserError where that raises one

    def resolve(self, value: Any) -> Any:
        """What an input really gets: a value; a Link to the output that makes it, through reroutes, Set and Get nodes,
        and bypassed ones; or None where nothing is connected or what is connected is muted. Raises UserError."""
        passed: dict[Link, None] = {}
        while isinstance(value, Link) and value not in self._ends:
            if value in passed:
                raise UserError(f"The links of node {quoted(value.node)} lead back to itself. Remove the circle.")
            passed[value] = None
            try:
                following = self._following(value)
            except UserError as error:
                following = error
            if following == value:
                break
            value = following
        end = self._ends.get(value, value) if isinstance(value, Link) else value
        self._ends |= dict.fromkeys(passed, end)
        if isinstance(end, UserError):
            raise UserError(str(end))
        return end

    def _following(self, link: Link) -> Any:
        """What a carrier or a bypassed node is given for a link from it; the link itself of any other node."""
        node = self.nodes.get(link.node)
        if node is None or node.mode == MUTED:
            return None
        if node.mode == BYPASSED and node.type not in CARRIERS:
            return _bypass(node, link.slot)
        if node.type in ("Reroute", "SetNode"):
            return next(iter(node.inputs.values()), None)
        return self._carried(node) if node.type == "GetNode" else link

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
        got = {node.carried_name for node in self.nodes.values() if node.type == "GetNode"}
        for node in self.nodes.values():
            for value in node.inputs.values():
                if isinstance(value, Link):
                    used.setdefault(value.node, set()).add(value.slot)
            if node.type == "SetNode" and node.carried_name in got:
                used.setdefault(node.id, set()).add(0)
        return used

    def new_id(self) -> str:
        """An id that no node has: a number, as the frontend's."""
        if not self.last_id:
            names = set(self.nodes)  # and those of nodes that are gone, to which links still lead
            for node in self.nodes.values():
                names.update(value.node for value in node.inputs.values() if isinstance(value, Link))
            self.last_id = max((int(name) for name in names if name.isdecimal() and len(name) < 16), default=0)
        self.last_id += 1
        return str(self.last_id)

    def sources(self) -> dict[Any, set[Any]]:
        """What each node is linked to: ids of nodes, and for a GetNode its name, as a tuple of one, which is linked to
        the SetNodes of that name."""
        found: dict[Any, set[Any]] = {
            node.id: {v.node for v in node.inputs.values() if isinstance(v, Link) and v.node in self.nodes}
            for node in self.nodes.values()
        }
        for node in [node for node in self.nodes.values() if node.type == "GetNode" and node.carried_name]:
            name = (node.carried_name,)
            found[node.id].add(name)
            if name not in found:
                found[name] = {setter.id for setter in self._setters.get(name[0], ()) if setter.id in self.nodes}
        return found

    def remove_idle(self, names: Iterable[str]) -> None:
        """Remove those of these nodes that nothing uses, and then those of them that only the removed ones used."""
        may_go, sources = set(names), self.sources()
        users = Counter(source for found in sources.values() for source in found)
        free: list[Any] = [name for name in may_go if not users[name]]
        while free:
            name = free.pop()
            self.nodes.pop(name, None)
            for source in sources[name]:
                users[source] -= 1
                if not users[source] and (source in may_go or isinstance(source, tuple)):
                    free.append(source)

    def _carried(self, node: Node) -> Any:
        setters = self._setters.get(node.carried_name, []) if node.carried_name else []
        if len(setters) != 1:
            raise UserError(
                f"{node.label} gets {quoted(node.carried_name)!r}, which {len(setters)} SetNodes set instead of one. "
                "Connect the nodes directly."
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


def sort_by_links(graph: Graph) -> list[Node]:
    """All nodes, each after those that it is linked to, else as in the file. Raises UserError for links that lead back
    to where they come from, which ComfyUI cannot run either."""
    waiting = graph.sources()
    places = {name: number for number, name in enumerate(waiting)}
    users: dict[Any, list[Any]] = {}
    for name, sources in waiting.items():
        for source in sources:
            users.setdefault(source, []).append(name)
    free, order = [(places[name], name) for name, sources in waiting.items() if not sources], []
    heapq.heapify(free)
    while free:
        _, done = heapq.heappop(free)
        del waiting[done]
        order.append(done)
        for name in users.get(done, ()):
            waiting[name].discard(done)
            if not waiting[name]:
                heapq.heappush(free, (places[name], name))
    if waiting:
        node = graph.nodes[next(name for name in waiting if name in graph.nodes)]
        raise UserError(f"The links of {node.label} lead in a circle, which ComfyUI cannot run. Remove one of them.")
    return [graph.nodes[name] for name in order if name in graph.nodes]
