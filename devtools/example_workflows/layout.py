"""Where the nodes of an example stand: columns from left to right, a group around each.

The frontend has two renderers, the classic one and Vue nodes, in which the same node has another height. A node gets
the larger of the two, so that nothing overlaps in either.
"""

import math
from collections.abc import Mapping

from .table import Example

GAP_PX, TITLE_PX, GROUP_TITLE_PX = 20, 30, 30  # LiteGraph.NODE_TITLE_HEIGHT, and LGraphGroup's titleHeight


def lay_out(example: Example, workflow: dict, heights: Mapping[str, float]) -> None:
    """Set the nodes' places and sizes in `workflow`, and its groups. heights: what each node needs, by its name, in px.

    A node's place is the corner below its title bar, as LiteGraph has it.
    """
    nodes = dict(zip((spec.name for column in example.columns for spec in column.nodes), workflow["nodes"]))
    left, bottoms = 0, []
    for column in example.columns:
        top = 0
        for spec in column.nodes:
            node, height = nodes[spec.name], max(spec.height, math.ceil(heights[spec.name]))
            node["pos"], node["size"] = [left, top], [column.width, height]
            top += height + GAP_PX + TITLE_PX
        bottoms.append(top - TITLE_PX)
        left += column.width + 3 * GAP_PX
    first = -TITLE_PX - GAP_PX - GROUP_TITLE_PX
    workflow["groups"] = [
        {
            "id": number + 1,
            "title": column.title,
            "bounding": [
                nodes[column.nodes[0].name]["pos"][0] - GAP_PX,
                first,
                column.width + 2 * GAP_PX,
                last - first,
            ],
            "color": column.color,
            "font_size": 24,
            "flags": {},
        }
        for number, (column, last) in enumerate(zip(example.columns, [max(bottoms)] * len(bottoms)))
    ]
