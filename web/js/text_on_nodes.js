// Makes room on a node for the text that the server shows there. The frontend keeps two lines for it, with a scroll bar:
// the sentence that says what to do, or a table, was out of sight.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

const NAME = "CogVideoX.TextOnNodes"
const WIDGET = "$$node-text-preview" // its name in the frontend
const [FONT, LINE_PX, PADDING_PX, MARGIN_PX, MOST_PX, LEAST_PX] = ["12px Inter, sans-serif", 16, 16, 20, 480, 58]
const CSS = `.max-h-\\[200px\\].min-h-\\[28px\\] { max-height: ${MOST_PX}px; }`
const before = new WeakMap() // node -> its height without the text
const measure = document.createElement("canvas").getContext("2d")

function plain(html) {
  return new DOMParser().parseFromString(html.replaceAll("\n", "<br>\n"), "text/html").body.textContent
}

function heightOf(text, width) {
  measure.font = FONT
  const room = Math.max(60, width - 60) // margins, padding and the scroll bar
  const lines = text.split("\n").map((line) => Math.max(1, Math.ceil((1.05 * measure.measureText(line).width) / room)))
  const count = lines.reduce((sum, line) => sum + line, 0)
  return Math.min(MOST_PX, count * LINE_PX + PADDING_PX) + MARGIN_PX
}

function fit(nodeId) {
  if (window.LiteGraph?.vueNodesMode) return // whose nodes grow by themselves
  const node = app.canvas?.graph?.getNodeById(Number(String(nodeId).split(":").pop()))
  const widget = node?.widgets?.find((found) => found.name === WIDGET)
  if (!widget?.options || !node.comfyClass?.startsWith("CogVideoX")) return
  const text = plain(String(widget.value ?? "")).trim()
  if (!before.has(node)) before.set(node, node.size[1])
  const height = text ? heightOf(text, node.size[0]) : LEAST_PX
  widget.options.getMinHeight = () => height
  const least = node.computeSize()[1]
  node.setSize([node.size[0], Math.max(least, before.get(node))])
  if (!text) before.delete(node)
  node.setDirtyCanvas?.(true, true)
}

if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      const style = document.createElement("style")
      style.textContent = CSS
      document.head.append(style)
      // The frontend's own listener puts the text there first.
      api.addEventListener("progress_text", ({ detail }) => setTimeout(fit, 0, detail?.nodeId))
    },
  })
}
