"""Where the nodes of a rewritten workflow lie: none that is new covers another.

New nodes are higher than those whose places they take, and there may be more of them. Whatever they would cover is
pushed down within its column, in the order in which the nodes lie, and groups grow and move with their nodes. What
nothing pushes stays where its user has put it, and so do a user's own nodes that cover each other.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Any

TITLE = 30  # px above a node's position, which is that of its body
TEXT_ROOM = 50  # px below a new node, for two lines of what a run shows on it
_GAP = 20  # px between a node that is pushed down and what pushes it
_MARGIN = 10  # px of a group below its nodes
_UNKNOWN_SIZE = (210.0, 100.0)
_FARTHEST = 10.0**7  # px: a node or a group further away, or larger, is not in the picture
_MOST_GROUPS = 100  # each is compared with every node; with more of them, groups stay


@dataclass
class _Box:
    """A node with its title, or a group: left, top, right and bottom in px. is_new: it is a node of the rewriting.
    added: px by which it is pushed down. inside: the nodes of a group. groups: those of a node."""

    entry: dict[str, Any]
    left: float
    top: float
    right: float
    bottom: float
    is_new: bool = False
    is_group: bool = False
    added: float = 0
    inside: list["_Box"] = field(default_factory=list)
    groups: list["_Box"] = field(default_factory=list)

    @property
    def end(self) -> float:
        """Its bottom after it was pushed."""
        return self.bottom + self.added


class _Skyline:
    """The lowest bottom so far above each x. Every placing flattens what lies below it, so that a workflow of any size
    takes about as many steps as it has nodes."""

    def __init__(self) -> None:
        self._starts, self._bottoms = [-float("inf")], [-float("inf")]

    def bottom(self, left: float, right: float) -> float:
        """The lowest bottom between two x."""
        between = self._bottoms[bisect_right(self._starts, left) - 1 : bisect_left(self._starts, right)]
        return max(between, default=-float("inf"))  # a node without a width covers nothing

    def lower(self, left: float, right: float, bottom: float) -> None:
        """Let everything between two x end at `bottom`, or where it ends lower."""
        if left >= right:
            return
        first, last = bisect_right(self._starts, left) - 1, bisect_left(self._starts, right)
        bottom = max(bottom, *self._bottoms[first:last])
        starts, bottoms = [left], [bottom]
        if self._starts[first] < left:
            starts, bottoms = [self._starts[first], *starts], [self._bottoms[first], *bottoms]
        if last == len(self._starts) or self._starts[last] > right:
            starts, bottoms = [*starts, right], [*bottoms, self._bottoms[last - 1]]
        self._starts[first:last], self._bottoms[first:last] = starts, bottoms


def separate_nodes(document: dict[str, Any], new: set[int]) -> dict[str, Any]:
    """A saved workflow in which no node covers one that is new or was pushed.

    document: its nodes are changed in their places, all else is copied. new: the ids of the nodes of the rewriting.
    """
    nodes = [box for entry in document["nodes"] if (box := _node_box(entry, entry["id"] in new)) is not None]
    boxes = _read_groups(document, nodes)
    _push(nodes, boxes)
    for box in nodes:
        if box.added:
            x, y = read_pair(box.entry["pos"]) or (0, 0)
            box.entry["pos"] = [x, y + box.added]
    bounds = {id(group.entry): found for group in boxes if (found := _grown(group)) is not None}
    if not bounds:
        return document
    groups = document["groups"]
    return {**document, "groups": [{**e, "bounding": bounds[id(e)]} if id(e) in bounds else e for e in groups]}


def read_pair(value: Any) -> tuple[float, float] | None:
    """The two numbers of a position or a size: a list, or an object as older frontends wrote it. None for others."""
    if isinstance(value, dict):
        value = [value.get("0"), value.get("1")]
    if isinstance(value, list) and len(value) >= 2:
        x, y = value[:2]
        if isinstance(x, (int, float)) and isinstance(y, (int, float)):
            return x, y
    return None


def _node_box(entry: dict[str, Any], is_new: bool) -> _Box | None:
    position, size = read_pair(entry.get("pos")), read_pair(entry.get("size")) or _UNKNOWN_SIZE
    if position is None or not _is_near(*position, *size):
        return None
    (x, y), (width, height) = position, size
    flags = entry.get("flags")
    if isinstance(flags, dict) and flags.get("collapsed"):
        height = 0
    title = 0 if entry["type"] == "Reroute" else TITLE
    return _Box(entry, x, y - title, x + max(width, 0), y + max(height, 0) + (TEXT_ROOM if is_new else 0), is_new)


def _is_near(*numbers: float) -> bool:
    """Whether these are numbers of a picture; NaN is not."""
    return all(-_FARTHEST <= number <= _FARTHEST for number in numbers)


def _read_groups(document: dict[str, Any], nodes: list[_Box]) -> list[_Box]:
    """The groups with the nodes whose centres lie in them, as the frontend counts them."""
    entries = document.get("groups")
    if not isinstance(entries, list) or len(entries) > _MOST_GROUPS:
        return []
    found = []
    for entry in entries:
        bounding = entry.get("bounding") if isinstance(entry, dict) else None
        if not isinstance(bounding, list) or len(bounding) != 4:
            continue
        if not all(isinstance(number, (int, float)) for number in bounding) or not _is_near(*bounding):
            continue
        x, y, width, height = bounding
        group = _Box(entry, x, y, x + width, y + height, is_group=True)
        for box in nodes:
            is_inside = 2 * x <= box.left + box.right < 2 * group.right
            if is_inside and 2 * y <= box.top + box.bottom < 2 * group.bottom:
                group.inside.append(box)
                box.groups.append(group)
        found.append(group)
    return found


def _push(nodes: list[_Box], groups: list[_Box]) -> None:
    """Go down the workflow, and push what is met below whatever of the rewriting lies above it.

    fixed: of the nodes that are new or were pushed, and of the groups that have grown. all_nodes: of all.
    """
    fixed, all_nodes = _Skyline(), _Skyline()
    # A group begins before the nodes at its upper edge, and ends before those at its lower one.
    events = [(group.bottom, 0, group) for group in groups]
    events += [(box.top, 1 if box.is_group else 2, box) for box in (*groups, *nodes)]
    for _, kind, box in sorted(events, key=lambda event: event[:2]):
        if kind == 0:
            box.added = max(box.added, min((inner.added for inner in box.inside), default=0))
            end = max([box.end, *(inner.end + _MARGIN for inner in box.inside)])
            if end > box.bottom:
                fixed.lower(box.left, box.right, end)
            continue
        above = (all_nodes if box.is_new else fixed).bottom(box.left, box.right)
        box.added = max([0, *(group.added for group in box.groups)])
        if above > box.top + box.added:
            box.added = max(above, all_nodes.bottom(box.left, box.right)) + _GAP - box.top
        if not box.is_group:
            for skyline in (all_nodes, fixed) if box.is_new or box.added else (all_nodes,):
                skyline.lower(box.left, box.right, box.end)


def _grown(group: _Box) -> list[float] | None:
    """The bounding of a group around what its nodes have become; None where it is as it was."""
    changed = [box for box in group.inside if box.is_new or box.added]
    left = min([group.left, *(box.left for box in changed)])
    right = max([group.right, *(box.right for box in changed)])
    top = min([group.top + group.added, *(box.top + box.added for box in changed)])
    bottom = max([group.end, *(box.end + _MARGIN for box in changed)])
    found = [left, top, right - left, bottom - top]
    return None if found == [group.left, group.top, group.right - group.left, group.bottom - group.top] else found
