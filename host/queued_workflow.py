"""The workflow of the prompt that is being queued, as the browser shows it: it holds the nodes that are bypassed, which
the prompt itself lacks."""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_DOWNLOAD = "CogVideoXDownload"
_BYPASSED = 4  # a node's mode, in the frontend's numbers
_MOST_NODES = 5000  # that are looked through, of a workflow that anybody may send
# Of the request that is answered now, as host/messages.py has it.
_bypassed: ContextVar[frozenset[str]] = ContextVar("cogvideox_bypassed_downloads", default=frozenset())


def note_workflow(request: object) -> None:
    """Remember, in this task, what of the workflow of a prompt's request is asked for while the prompt is checked."""
    _bypassed.set(frozenset(_checkpoints(request)))


def bypassed_downloads() -> frozenset[str]:
    """The checkpoints of the nodes CogVideoX Download that are there and bypassed, in the workflow that is queued now.

    Empty where nobody says: in a script, for a prompt without its workflow, and while nodes run.
    """
    return _bypassed.get()


def _checkpoints(request: object) -> Iterator[str]:
    workflow = _inside(request, "extra_data", "extra_pnginfo", "workflow")
    nodes = _inside(workflow, "nodes")
    for node in nodes[:_MOST_NODES] if isinstance(nodes, list) else ():
        if _inside(node, "type") != _DOWNLOAD or _inside(node, "mode") != _BYPASSED:
            continue
        values = _inside(node, "widgets_values")
        first = values[0] if isinstance(values, list) and values else None
        if isinstance(first, str):
            yield first


def _inside(value: Any, *names: str) -> Any:
    """The value below these names; None where something on the way is no object, or lacks the name."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
