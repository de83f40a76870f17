"""Build example_workflows/*.json with ComfyUI's own frontend.

    python -m cogvideox.devtools.build_example_workflow [NAME ...]

Each workflow is a table (devtools/example_workflows): columns of nodes from left to right, a titled group each. The
frontend itself makes the nodes and links and writes the file, so it is what File > Save would write; how high each node
must be is measured in both of its renderers. Needs COMFYUI_PATH, a Chromium and the packages of requirements-dev.txt
(all there after `python3 dev.py test`).
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .browser import find_browser
from .comfyui import prepare_base
from .errors import DevError
from .example_workflows import EXAMPLES, Example, file_name
from .example_workflows.layout import lay_out
from .example_workflows.stamp import stamp
from .frontend import Frontend, launched_browser, open_frontend, settings
from .named import chosen_by_name
from .paths import PACK_NAME, ROOT, TEMPLATES
from .server import running_server

# Runs in the page: example -> [app.graph.serialize() as JSON, the height that each node needs in the classic renderer].
# A wrong name is an error here, since the frontend would ignore it and build the rest.
BUILD = """
async example => {
  const need = (found, what) => { if (!found) throw new Error(`there is no ${what}`); return found }
  const drawn = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))
  const nodes = {}, heights = {}
  app.graph.clear()  // numbers begin at 1 again
  for (const column of example.columns)
    for (const spec of column.nodes) {
      const node = nodes[spec.name] = need(LiteGraph.createNode(spec.type), `node ${spec.type}`)
      // The frontend remembers widgets by their node's number: what an example before this one has set would come back.
      const own = (node.widgets ?? []).map(widget => widget.value)
      app.graph.add(node)
      node.widgets?.forEach((widget, i) => {
        if (i < own.length && widget.value !== own[i]) widget.value = own[i]
      })
      if (spec.title) node.title = spec.title
      if (spec.color) { node.color = spec.color; node.bgcolor = spec.color }
      if (spec.bypassed) node.mode = 4  // LGraphEventMode.BYPASS
      if (spec.models.length) node.properties.models = spec.models
      for (const [name, value] of Object.entries(spec.widgets)) {
        const widget = need(node.widgets?.find(w => w.name === name), `widget ${spec.type}.${name}`)
        const later = spec.later || spec.models.some(model => model.name === value)
        if (widget.type === 'combo' && !later && !widget.options.values.includes(value))
          throw new Error(`${value} is not in the list of ${spec.type}.${name}`)
        widget.value = value
      }
      node.pos = [0, 0]
      node.setSize([column.width, node.computeSize()[1]])
      heights[spec.name] = node.size[1]
    }
  for (const column of example.columns)
    for (const spec of column.nodes)
      for (const [input, source] of Object.entries(spec.links)) {
        const [from, output] = source.split('.')
        const slot = need(nodes[from], `node named ${from}`).findOutputSlot(output)
        if (slot < 0) throw new Error(`${from} has no output ${output}`)
        need(nodes[from].connect(slot, nodes[spec.name], input), `link from ${source} to ${spec.name}.${input}`)
      }
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = [300, 200]
  for (const [name, node] of Object.entries(nodes)) {
    if (node.type !== 'MarkdownNote') continue
    node.setSize([node.size[0], 200])
    app.graph.setDirtyCanvas(true, true)
    await new Promise(done => setTimeout(done, 300))
    await drawn()
    const box = node.widgets[0].element, text = need(box.querySelector('.tiptap'), 'text in a note')
    heights[name] = node.size[1] - box.clientHeight + [...text.children].at(-1).offsetTop
      + [...text.children].at(-1).offsetHeight - text.offsetTop + 12
  }
  await drawn()
  return [JSON.stringify(app.graph.serialize()), heights]
}
"""
# In Vue nodes, with a workflow loaded: node id -> the height that it needs there.
_VUE_HEIGHTS = """
() => Object.fromEntries(app.graph.nodes.map(node => {
  const box = document.querySelector(`[data-node-id="${node.id}"]`)
  if (!box) throw new Error(`node ${node.id} is not drawn`)
  const text = box.querySelector('.comfy-markdown-content')
  return [node.id, box.offsetHeight - LiteGraph.NODE_TITLE_HEIGHT + (text ? text.scrollHeight - text.clientHeight : 0)]
}))
"""
_DRAWN_MS = 1200  # after which Vue nodes have taken their heights


def build(classic: Frontend, vue: Frontend, example: Example) -> dict:
    """The workflow as the frontend saves it. Raises: playwright's Error naming what the frontend does not know."""
    saved, heights = classic.page.evaluate(BUILD, asdict(example))
    workflow = json.loads(saved)
    workflow["nodes"].sort(key=lambda node: node["id"])
    lay_out(example, workflow, dict.fromkeys(heights, 0.0))  # as low as the second renderer lets them be
    vue.load(workflow, example.name)
    vue.page.evaluate("() => { app.canvas.ds.scale = 0.4; app.canvas.ds.offset = [100, 300] }")
    vue.page.wait_for_timeout(_DRAWN_MS)
    needed = vue.page.evaluate(_VUE_HEIGHTS)
    names = [spec.name for column in example.columns for spec in column.nodes]
    both = {name: max(heights[name], needed[str(node["id"])]) for name, node in zip(names, workflow["nodes"])}
    lay_out(example, workflow, both)
    label_inputs(example, workflow, names)
    leave_out_no_values(workflow)
    # Random and per-machine values are replaced, so that building the same example again gives the same file.
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/{example.name}"))
    workflow["extra"] = {"ds": {"scale": 0.8, "offset": [90, 150]}} | app_mode(example, names)
    stamp(workflow, comfyui_version())
    return workflow


def app_mode(example: Example, names: Sequence[str]) -> dict:
    """The entries of `extra` that make a workflow open in ComfyUI's app mode. names: of the nodes, in their order."""
    if not example.app:
        return {}
    inputs = [[names.index(node) + 1, widget] for node, widget, _ in example.app]
    return {"linearMode": True, "linearData": {"inputs": inputs, "outputs": [names.index("save") + 1]}}


def label_inputs(example: Example, workflow: dict, names: Sequence[str]) -> None:
    """Give the inputs of an app the names that a person reads, as the frontend saves inputs that a user has renamed."""
    for node, widget, label in example.app:
        inputs = workflow["nodes"][names.index(node)]["inputs"]
        (entry,) = (entry for entry in inputs if entry.get("widget", {}).get("name") == widget)
        entry["label"] = label


def leave_out_no_values(workflow: dict) -> None:
    """Delete the lists of values of nodes without any. A preview is a widget whose value is not saved: the frontend
    writes an empty list where it has shown one on a node of this number, in whichever example was built before."""
    for node in workflow["nodes"]:
        if node.get("widgets_values") == []:
            del node["widgets_values"]


def comfyui_version() -> str:
    """Of the ComfyUI that the templates are built with."""
    file = Path(os.environ["COMFYUI_PATH"]) / "comfyui_version.py"
    return file.read_text("utf-8").partition('__version__ = "')[2].partition('"')[0]


@contextlib.contextmanager
def opened_renderers() -> Iterator[tuple[Frontend, Frontend]]:
    """A page with classic nodes and one with Vue nodes, of a server with the pack alone. Raises: DevError."""
    chromium = find_browser()
    if chromium is None:
        raise DevError("No Chromium starts here: install one, or name it in the environment variable CHROMIUM.")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as cleanup:
        base, host = Path(scratch), Path(os.environ["COMFYUI_PATH"])
        prepare_base(base, ROOT, PACK_NAME)
        shutil.copy(host / "input" / "example.png", base / "input")  # as in every ComfyUI
        server = cleanup.enter_context(
            running_server(host, base, log=base / "server.log", cpu=True, settings=settings())
        )
        browser = cleanup.enter_context(launched_browser(chromium))
        stored = server.user_directory / "default" / "comfy.settings.json"  # read when a page is opened
        pages = []
        for is_vue in (False, True):
            stored.write_text(json.dumps(settings(Comfy__VueNodes__Enabled=is_vue)), "utf-8")
            pages.append(cleanup.enter_context(open_frontend(browser, server.url)))
        yield pages[0], pages[1]


def main(names: Sequence[str]) -> None:
    """Write the examples called `names`, all of them if there are none. Raises: DevError."""
    chosen = chosen_by_name(EXAMPLES, names, "example")
    with opened_renderers() as (classic, vue):
        for example in chosen:
            file = TEMPLATES / f"{file_name(example)}.json"
            workflow = build(classic, vue, example)
            file.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", "utf-8")
            print(file.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DevError as error:
        sys.exit(f"error: {error}")
