"""Build example_workflows/*.json with ComfyUI's own frontend.

    python -m cogvideox.devtools.build_example_workflow [NAME ...]

Each workflow is a table (devtools/example_workflows): columns of nodes from left to right, a titled group each. The
frontend itself makes the nodes, links and sizes and writes the file, so it is what File > Save would write. Needs
COMFYUI_PATH, a Chromium and the packages of requirements-dev.txt (all there after `python3 dev.py test`).
"""

import json
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .browser import find_browser
from .comfyui import prepare_base
from .errors import DevError
from .example_workflows import EXAMPLES, Example
from .frontend import Frontend, launched_browser, open_frontend, settings
from .named import chosen_by_name
from .paths import EXAMPLE_WORKFLOW, PACK_NAME, ROOT
from .server import running_server

FOLDER = EXAMPLE_WORKFLOW.parent

# Runs in the page: [example, gap in px] -> app.graph.serialize() as JSON. A wrong name is an error here, since the
# frontend would ignore it and build the rest.
_BUILD = """
async ([example, gap]) => {
  const need = (found, what) => { if (!found) throw new Error(`there is no ${what}`); return found }
  const nodes = {}, bottom = []
  let left = 0
  for (const column of example.columns) {
    let top = 0
    for (const spec of column.nodes) {
      const node = nodes[spec.name] = need(LiteGraph.createNode(spec.type), `node ${spec.type}`)
      app.graph.add(node)
      if (spec.title) node.title = spec.title
      if (spec.color) { node.color = spec.color; node.bgcolor = spec.color }
      for (const [name, value] of Object.entries(spec.widgets)) {
        const widget = need(node.widgets?.find(w => w.name === name), `widget ${spec.type}.${name}`)
        if (widget.type === 'combo' && !widget.options.values.includes(value))
          throw new Error(`${value} is not in the list of ${spec.type}.${name}`)
        widget.value = value
      }
      node.pos = [left, top]
      node.setSize([column.width, Math.max(spec.height, node.computeSize()[1])])
      top += node.size[1] + LiteGraph.NODE_TITLE_HEIGHT + gap
    }
    bottom.push(top)
    left += column.width + 3 * gap
  }
  for (const column of example.columns)
    for (const spec of column.nodes)
      for (const [input, source] of Object.entries(spec.links)) {
        const [from, output] = source.split('.')
        const slot = need(nodes[from], `node named ${from}`).findOutputSlot(output)
        if (slot < 0) throw new Error(`${from} has no output ${output}`)
        need(nodes[from].connect(slot, nodes[spec.name], input), `link from ${source} to ${spec.name}.${input}`)
      }
  const end = Math.max(...bottom)
  example.columns.forEach((column, i) => {
    const last = nodes[column.nodes.at(-1).name]
    if (column.nodes.at(-1).stretch) last.setSize([last.size[0], last.size[1] + end - bottom[i]])
    const group = new LiteGraph.LGraphGroup(column.title)
    group.color = column.color
    app.graph.add(group)
    const top = -LiteGraph.NODE_TITLE_HEIGHT - gap - group.titleHeight
    group.pos = [nodes[column.nodes[0].name].pos[0] - gap, top]
    group.size = [column.width + 2 * gap, end - LiteGraph.NODE_TITLE_HEIGHT - top]
  })
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
  return JSON.stringify(app.graph.serialize())
}
"""
_GAP_PX = 20


def build(frontend: Frontend, example: Example) -> dict:
    """The workflow as the frontend saves it. Raises: playwright's Error naming what the frontend does not know."""
    workflow = json.loads(frontend.page.evaluate(_BUILD, [asdict(example), _GAP_PX]))
    # Random and per-machine values are replaced, so that building the same example again gives the same file.
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/{example.name}"))
    workflow["extra"] = {"ds": {"scale": 0.8, "offset": [90, 150]}}
    return workflow


def main(names: Sequence[str]) -> None:
    """Write the examples called `names`, all of them if there are none. Raises: DevError."""
    chosen = chosen_by_name(EXAMPLES, names, "example")
    chromium = find_browser()
    if chromium is None:
        raise DevError("No Chromium starts here: install one, or name it in the environment variable CHROMIUM.")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        prepare_base(base, ROOT, PACK_NAME)
        host = Path(os.environ["COMFYUI_PATH"])
        with (
            running_server(host, base, log=base / "server.log", cpu=True, settings=settings()) as server,
            launched_browser(chromium) as browser,
        ):
            for example in chosen:
                with open_frontend(browser, server.url) as frontend:
                    workflow = build(frontend, example)
                file = FOLDER / f"{example.name}.json"
                file.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", "utf-8")
                print(file.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DevError as error:
        sys.exit(f"error: {error}")
