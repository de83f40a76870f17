"""Placeholders in the names of new files: %date:yyyy-MM-dd%, %year%, and %KSampler.seed% for a value of the workflow.

ComfyUI's frontend fills them in before it queues a prompt, but for a fixed list of ComfyUI's own save nodes only
(Comfy.SaveImageExtraOutput). Nodes of packs get them as they are, and so does every node in a prompt that a script
queues. Source: applyTextReplacements and formatDate of ComfyUI_frontend, src/utils/searchAndReplace.ts and
src/utils/formatUtil.ts.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from ..system.file_names import FORBIDDEN, MAX_PART_BYTES, find_problem, is_invisible

_PLACEHOLDER = re.compile(r"%([^%]+)%")
_DATE_PARTS = "d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy"
_MOST_LINKS, _MOST_DEPTH = 8, 8
_MOST_DRAWN = 4  # nodes of the workflow for each of the prompt: muted ones and notes are not in the prompt
_STAND_IN = "0"


def fill_in(
    name: str,
    prompt: Mapping[str, Any] | None,
    extra_pnginfo: Mapping[str, Any] | None,
    size: tuple[int, int] | None = None,
) -> str:
    """`name` with its dates, with the video's size and with the values of the nodes that it names, each put in once: a
    value that contains %year% keeps it.

    %Node.widget%: Node is what a node is called for it in its properties ("Node name for S&R", by default its class),
    or else its title. What is not found stays as it is, as in the frontend. A value becomes a valid part of a name: it
    is known only while the workflow runs, which is too late to refuse it.

    prompt, extra_pnginfo: ComfyUI's hidden inputs, None in scripts. The second one holds the workflow. size: (width,
    height) for %width% and %height%, None for a file that has neither.
    """
    if not isinstance(name, str):
        return name
    if not has_values(name):
        return _replaced(name, lambda *_: None, size)
    nodes = list(_nodes(prompt or {}, extra_pnginfo or {}))

    def value(called: str, widget: str) -> str | None:
        by_name = [inputs for known, _, inputs in nodes if known == called]
        by_title = [inputs for _, title, inputs in nodes if title == called]
        inputs = next(iter(by_name or by_title), {})
        found = _follow(inputs[widget], widget, prompt or {}) if widget in inputs else []
        return None if isinstance(found, (list, dict)) else _sanitized(_as_text(found))

    filled = _replaced(name, value, size)
    return "/".join(map(_valid_part, filled.strip().replace("\\", "/").split("/")))


def stand_in(name: str) -> str:
    """`name` as fill_in gives it, with a 0 for each value: to check a name before the values are known."""
    return _replaced(name, lambda *_: _STAND_IN) if isinstance(name, str) else name


def _replaced(name: str, value_of: Callable[[str, str], str | None], size: tuple[int, int] | None = None) -> str:
    """`name` with what its placeholders stand for, from left to right and each of them once.

    value_of(node, widget): None leaves the placeholder as it is.
    """
    now = time.localtime()
    # ComfyUI's own save nodes know these in their prefixes (folder_paths.get_save_image_path).
    words = {
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    } | ({} if size is None else {"width": str(size[0]), "height": str(size[1])})

    def replacement(text: str) -> str | None:
        if text.startswith("date:") and len(text) < 50:
            return _date(text.removeprefix("date:"), now)
        called, _, widget = text.partition(".")
        return value_of(called, widget) if text.count(".") == 1 else words.get(text)

    parts, done = [], 0
    while match := _PLACEHOLDER.search(name, done):
        found = replacement(match[1])
        parts += [name[done : match.start()], match[0] if found is None else found]
        done = match.end()
        # For the frontend the second % of what is no placeholder is used up, as that of one is. ComfyUI's own words are
        # filled in wherever they stand: in 100%_%year%.
        following = _PLACEHOLDER.match(name, done - 1)
        if found is None and following and following[1] in words:
            parts[-1], done = match[0][:-1], done - 1
    return "".join([*parts, name[done:]])


def has_values(name: str) -> bool:
    """Whether a name holds values that are not known before the workflow runs."""
    found: list[tuple[str, str]] = []
    if isinstance(name, str):
        _replaced(name, lambda called, widget: found.append((called, widget)))
    return bool(found)


def _date(pattern: str, now: time.struct_time) -> str:
    values = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(match: re.Match[str]) -> str:
        letters = match[0]
        if letters.startswith("y"):
            return str(now.tm_year) if len(letters) == 4 else f"{now.tm_year % 100:02}"
        return f"{values[letters[0]]:0{len(letters)}}"

    return re.sub(_DATE_PARTS, part, pattern)


def _nodes(prompt: Mapping[str, Any], extra_pnginfo: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name for search and replace, title, inputs) of each node of the prompt, in the order of the workflow."""
    workflow = extra_pnginfo.get("workflow")
    # A stranger's subgraphs may hold each other, so that a few nodes become billions.
    most = _MOST_DRAWN * (len(prompt) + 100)
    drawn = dict(islice(_drawn_nodes(workflow, "", 0), most)) if isinstance(workflow, Mapping) else {}
    order = {node_id: place for place, node_id in enumerate(drawn)}
    for node_id in sorted(map(str, prompt), key=lambda node_id: order.get(node_id, len(order))):
        node = prompt.get(node_id)
        if not isinstance(node, Mapping) or not isinstance(node.get("inputs"), Mapping):
            continue
        known, meta = drawn.get(node_id, {}), node.get("_meta")
        properties = known.get("properties")
        name = properties.get("Node name for S&R") if isinstance(properties, Mapping) else None
        title = known.get("title") or (meta.get("title") if isinstance(meta, Mapping) else None)
        yield str(name or node.get("class_type")), str(title or ""), node["inputs"]


def _drawn_nodes(workflow: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(id in the prompt, node) of a workflow and of its subgraphs: node 3 of the subgraph that node 12 is, is 12:3."""
    definitions = workflow.get("definitions")
    listed = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    subgraphs = {str(graph.get("id")): graph for graph in _list(listed) if isinstance(graph, Mapping)}

    def walk(nodes: object, prefix: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for node in _list(nodes):
            if isinstance(node, Mapping):
                yield f"{prefix}{node.get('id')}", node
                inner = subgraphs.get(str(node.get("type")))
                if inner is not None and depth < _MOST_DEPTH:
                    yield from walk(inner.get("nodes"), f"{prefix}{node.get('id')}:", depth + 1)

    yield from walk(workflow.get("nodes"), prefix, depth)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _follow(value: Any, widget: str, prompt: Mapping[str, Any]) -> Any:
    """The value that a link comes from, where it is a widget's: ComfyUI's primitive nodes call it `value`."""
    for _ in range(_MOST_LINKS):
        if not isinstance(value, list) or not value:
            return value
        node = prompt.get(str(value[0]))
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        inputs = inputs if isinstance(inputs, Mapping) else {}
        value = next((inputs[name] for name in ("value", widget) if name in inputs), None)
        if value is None:
            return []
    return value


def _as_text(value: Any) -> str:
    """As JavaScript writes it."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _sanitized(text: str) -> str:
    """`text` without what no name may contain, separators of folders among it."""
    return "".join("_" if one in FORBIDDEN or one in "/\\" or is_invisible(one) else one for one in text)


def _valid_part(part: str) -> str:
    """A file's or folder's name that is `part` as far as it may be."""
    if find_problem(part) is None:
        return part
    text = _sanitized(part).encode("utf-8", "replace")[: MAX_PART_BYTES - 1].decode("utf-8", "ignore").rstrip(". ")
    return text if find_problem(text) is None else f"_{text}"
