"""What a rewriting has changed, left out and refused, in sentences for the user."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property

from ..errors import UserError, printable, shortened
from .node_graph import Graph, Link, Node
from .node_layout import read_pair
from .target_nodes import TARGETS
from .workflow_limits import MAX_WRITTEN_NODES, TooLargeError

CHANGED, LEFT_OUT, REFUSED = "changed", "left out", "refused"
_TITLES = {
    CHANGED: "What differs from the wrapper:",
    LEFT_OUT: "What is left out:",
    REFUSED: "What cannot be migrated:",
}
_SHOWN_LETTERS = 300  # a path is shorter
_NARROW, _WIDE = 270, 315  # px of a new node


@dataclass(frozen=True)
class Options:
    """wrapper_folder: whether the checkpoints lie in the wrapper's models/CogVideo, whose folders have other names.
    leave_out: whether what has no counterpart is left out; else the workflow is refused."""

    wrapper_folder: bool = False
    leave_out: bool = False


def shown(value: object) -> str:
    """What a sentence repeats of a value or of a file's name, which may be of any kind and length."""
    if value is None or isinstance(value, Link):
        return "from another node"
    return printable(shortened(str(value), _SHOWN_LETTERS))


class CannotConvert(Exception):
    """A node without which the rest of its chain cannot be converted; the report has said why."""


@dataclass
class Work:
    """A rewriting under way.

    entries: (CHANGED, LEFT_OUT or REFUSED, node, sentence), each once. made: what an old node has already become, by
    its id and the purpose. failed: what has become nothing, in the same way; the report has said why.
    """

    graph: Graph
    options: Options
    entries: dict[tuple[str, str, str], None] = field(default_factory=dict)
    made: dict[tuple[str, str], Link] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)

    def note(self, kind: str, node: Node, sentence: str) -> None:
        self.entries[kind, node.label, sentence] = None

    def changed(self, node: Node, sentence: str) -> None:
        self.note(CHANGED, node, sentence)

    def left_out(self, node: Node, sentence: str) -> None:
        self.note(LEFT_OUT, node, sentence)

    def lacks(self, node: Node, sentence: str) -> None:
        """Something of `node` has no counterpart, and what the video shows depends on it."""
        self.note(LEFT_OUT if self.options.leave_out else REFUSED, node, sentence)

    def refuse(self, node: Node, sentence: str) -> CannotConvert:
        """To be raised where nothing can stand for `node`."""
        self.note(REFUSED, node, sentence)
        return CannotConvert(sentence)

    def of(self, kind: str) -> list[str]:
        """The lines of the report of one kind."""
        return [f"{node}: {sentence}" for found, node, sentence in self.entries if found == kind]

    def add(self, kind: str, at: Node, place: tuple[int, int] = (0, 0), **inputs: object) -> Node:
        """A new node in the place of `at`. place: how many node widths to the right and heights below of it.
        Raises TooLargeError."""
        if len(self.graph.nodes) >= MAX_WRITTEN_NODES:
            raise TooLargeError(
                f"The workflow would have more than {MAX_WRITTEN_NODES} nodes here: loaders or samplers share long "
                "chains, which each of them gets for itself. Split it."
            )
        target, saved = TARGETS[kind], {}
        if "pos" in at.saved:
            x, y = read_pair(at.saved["pos"]) or (0, 0)
            height = 60 + 26 * (max(len(target.sockets), len(target.outputs)) + len(target.widgets))
            if kind == "CogVideoXEncodeText":
                height += 120  # several lines of text
            saved = {"pos": [x + 340 * place[0], y + 200 * place[1]], "size": [_width(at), height]}
            saved |= {key: at.saved[key] for key in ("color", "bgcolor") if key in at.saved}
        node = Node(self.graph.new_id(), kind, {k: v for k, v in inputs.items() if v is not None}, saved=saved)
        node.is_new = True
        self.graph.nodes[node.id] = node
        return node

    @cached_property
    def decoders(self) -> dict[str, Node]:
        """The first CogVideoDecode behind each node."""
        found: dict[str, Node] = {}
        for node in [node for node in self.graph.nodes.values() if node.type == "CogVideoDecode"]:
            try:
                samples = self.graph.resolve(node.inputs.get("samples"))
            except UserError:
                continue  # the decoder's own conversion says it
            if isinstance(samples, Link):
                found.setdefault(samples.node, node)
        return found

    @contextmanager
    def once(self, node: Node, purpose: str) -> Iterator[None]:
        """A conversion that is not tried again where it has failed: all that need it would try. Raises CannotConvert,
        and what the block raises."""
        if (node.id, purpose) in self.failed:
            raise CannotConvert
        self.failed.add((node.id, purpose))
        yield
        self.failed.remove((node.id, purpose))

    def text(self, node: Node, name: str) -> str:
        """The name of a file or a checkpoint at a widget, with / between folders. Raises CannotConvert."""
        found = self.graph.constant(node.inputs.get(name))
        if not isinstance(found, str):
            raise self.refuse(node, f"its {name} comes from another node. Choose it in the node and migrate again.")
        return found.replace("\\", "/")

    def needed(self, node: Node, name: str, slot: int | None = None) -> Link:
        """The Link at a socket that `node` needs. slot: of the output that it has to be. Raises CannotConvert."""
        found = self.graph.resolve(node.inputs.get(name))
        if not isinstance(found, Link):
            raise self.refuse(node, f"nothing is connected to its input {name}. Connect it and migrate again.")
        if slot is not None and found.slot != slot:
            source = self.graph.nodes[found.node].label
            raise self.refuse(
                node, f"its input {name} comes from output {found.slot} of {source}; connect output {slot}."
            )
        return found


def report_lines(work: Work, told: Callable[[str], str]) -> Iterator[str]:
    """The report, for a terminal or a page: a title and its lines, of each kind that there is.

    told: an English text -> the same in the reader's language.
    """
    told = cache(told)  # hundreds of nodes may have the same sentence
    for kind, title in _TITLES.items():
        entries = [(node, sentence) for found, node, sentence in work.entries if found == kind]
        if entries:
            yield told(title)
        for entry in entries:
            # A line break in a name would begin a line that looks like one of ours.
            node, sentence = (told(" ".join(text.split())) for text in entry)
            # Both are translated apart: where one ends need not be looked for.
            head = f"{node}：" if node.endswith("）") else f"{node}: "
            yield f"  - {printable(head + sentence)}"


def _width(at: Node) -> float:
    """Of a new node in the place of `at`, in px: that of the old one, so that it stays clear of the next column."""
    width, _ = read_pair(at.saved.get("size")) or (_WIDE, 0)
    return min(max(_NARROW, width), _WIDE)  # NaN becomes the first
