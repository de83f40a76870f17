// Shows the picture or video of CogVideoX Example Input as soon as the node is there, or another one is chosen, and not
// only after a run. The server (nodes/opened_graph.py) writes what a run would show, and the frontend gets it as the
// result of a run: each of its two renderers then draws it in its own way.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

const NAME = "CogVideoX.ExampleInputs"
const ROUTE = "/cogvideox/example"
const TYPE = "CogVideoXExample"

const graph = () => app.rootGraph ?? app.graph

async function show(node) {
  const widget = node.widgets?.find((found) => found.name === "example")
  const example = widget?.value
  if (!example || graph()?.getNodeById(node.id) !== node) return // gone, or inside a subgraph
  try {
    const answer = await api.fetchApi(`${ROUTE}?example=${encodeURIComponent(example)}`, { method: "POST" })
    if (!answer.ok || widget.value !== example || graph()?.getNodeById(node.id) !== node) return
    const detail = { node: String(node.id), display_node: String(node.id), output: await answer.json() }
    api.dispatchEvent(new CustomEvent("executed", { detail }))
    node.setDirtyCanvas?.(true, true)
  } catch (error) {
    console.debug(NAME, error) // an older server
  }
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    nodeCreated(node) {
      if (node.comfyClass !== TYPE) return
      const widget = node.widgets?.find((found) => found.name === "example")
      const before = widget?.callback
      if (widget)
        widget.callback = function (...values) {
          before?.apply(this, values)
          show(node)
        }
      if (!app.configuringGraph) setTimeout(show, 0, node) // it has no id and no place yet
    },
    // The frontend forgets what nodes show where a graph is opened.
    afterConfigureGraph() {
      for (const node of graph()?.nodes ?? []) if (node.comfyClass === TYPE) setTimeout(show, 0, node)
    },
  })
}
