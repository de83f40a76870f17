// Where a switch chooses between CogVideoX Example Input and a Load Image or Load Video of the user's: bypasses the
// latter until the switch is on. ComfyUI's app mode has no fields for a bypassed node; the picture that is chosen there
// at first looked like the one that is used.
import { app } from "../../../scripts/app.js"

const NAME = "CogVideoX.SwitchedInputs"
const [SWITCH, EXAMPLE, OWN] = ["ComfySoftSwitchNode", "CogVideoXExample", ["LoadImage", "LoadVideo"]]
const [ALWAYS, BYPASSED] = [0, 4] // modes of a node

const graph = () => app.rootGraph ?? app.graph

function sourceOf(node, name) {
  const index = node.inputs?.findIndex((input) => input.name === name)
  return index < 0 ? undefined : node.getInputNode?.(index)
}

function follow(node) {
  const own = sourceOf(node, "on_true")
  if (sourceOf(node, "on_false")?.type !== EXAMPLE || !OWN.includes(own?.type)) return
  const widget = node.widgets?.find((found) => found.name === "switch")
  const mode = widget?.value ? ALWAYS : BYPASSED
  if (own.mode === mode) return
  own.mode = mode
  graph().setDirtyCanvas?.(true, true)
  // The form looks at modes again where a label has changed.
  graph().events?.dispatch?.("node:slot-label:changed", { nodeId: own.id, slotType: 1 })
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    nodeCreated(node) {
      const widget = node.type === SWITCH ? node.widgets?.find((found) => found.name === "switch") : undefined
      const before = widget?.callback
      if (!widget) return
      widget.callback = function (...values) {
        before?.apply(this, values)
        follow(node)
      }
    },
    afterConfigureGraph() {
      for (const node of graph()?.nodes ?? []) if (node.type === SWITCH) follow(node)
    },
  })
}
