"""Where the nodes of an example stand: columns from left to right, a group around each, or two below one another.

The frontend has two renderers, the classic one and Vue nodes, in which the same node has another height. A node gets
the larger of the two, so that nothing overlaps in either.
"""

import math
from collections.abc import Mapping

from .table import Example

GAP_PX, TITLE_PX, GROUP_TITLE_PX = 20, 30, 30  # LiteGraph.NODE_TITLE_HEIGHT, and LGraphGroup's titleHeight
_ABOVE_PX = TITLE_PX + GAP_PX + GROUP_TITLE_PX  # what a group has above the place of its first node


def lay_out(example: Example, workflow: dict, heights: Mapping[str, float]) -> None:
    """Set the nodes' places and sizes in `workflow`, and its groups. heights: what each node needs, by its name, in px.

    A node's place is the corner below its title bar, as LiteGraph has it.
    """
    nodes = dict(zip((spec.name for column in example.columns for spec in column.nodes), workflow["nodes"]))
    left, next_left, tops, bottoms = 0, 0, [], []
    for column in example.columns:
        if column.is_below:
            top = bottoms[-1] + GAP_PX + _ABOVE_PX
        else:
            left, top = next_left, 0
            next_left += column.width + 3 * GAP_PX
        tops.append(top - _ABOVE_PX)
        for spec in column.nodes:
            node, height = nodes[spec.name], max(spec.height, math.ceil(heights[spec.name]))
            node["pos"], node["size"] = [left, top], [column.width, height]
            top += height + GAP_PX + TITLE_PX
        bottoms.append(top - TITLE_PX)
    # Those with no group below them end together.
    is_last = [*(not column.is_below for column in example.columns[1:]), True]
    ends = [max(bottoms) if last else bottom for last, bottom in zip(is_last, bottoms)]
    workflow["groups"] = [
        {
            "id": number + 1,
            "title": column.title,
            "bounding": [
                nodes[column.nodes[0].name]["pos"][0] - GAP_PX,
                first,
                column.width + 2 * GAP_PX,
                end - first,
            ],
            "color": column.color,
            "font_size": 24,
            "flags": {},
        }
        for number, (column, first, end) in enumerate(zip(example.columns, tops, ends))
    ]
