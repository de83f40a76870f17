// Makes room on a node for the text that the server shows there. The frontend keeps two lines for it, with a scroll bar:
// the sentence that says what to do, or a table, was out of sight. Down to the next node and not over it: what does not
// fit is scrolled to.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

const NAME = "CogVideoX.TextOnNodes"
const WIDGET = "$$node-text-preview" // its name in the frontend
const VUE_TEXT = ".comfy-markdown-content" // its element in Vue nodes
const [FONT, LINE_PX, PADDING_PX, MARGIN_PX, MOST_PX, LEAST_PX] = ["12px Inter, sans-serif", 16, 16, 20, 480, 58]
const LEAST_VUE_PX = 34 // two lines in Vue nodes
const GAP_PX = 4 // to the next node
const TEXT = ".max-h-\\[200px\\].min-h-\\[28px\\]"
// The frontend breaks lines within words. The rule is for the texts of all nodes: theirs have no mark of a pack.
const CSS = `
  ${TEXT} { max-height: ${MOST_PX}px; }
  ${TEXT} .break-all { word-break: normal; overflow-wrap: anywhere; }
`
const WORDS = /(?<=[\s\u3000-\uffef])/ // a line may end after a space, and after any Chinese sign
const before = new WeakMap() // node -> its height without the text
const limits = new Map() // node id -> how high its text may be, in Vue nodes
const limitSheet = document.createElement("style")
const measure = document.createElement("canvas").getContext("2d")

function plain(html) {
  return new DOMParser().parseFromString(html.replaceAll("\n", "<br>\n"), "text/html").body.textContent
}

const widthOf = (text) => measure.measureText(text).width

function linesOf(paragraph, room) {
  let [count, used] = [1, 0]
  for (const word of paragraph.split(WORDS)) {
    if (used && used + widthOf(word.trimEnd()) > room) [count, used] = [count + 1, 0]
    used += widthOf(word)
    count += Math.floor(used / room) // a word that is longer than a line
    used %= room
  }
  return count
}

function heightOf(text, width) {
  measure.font = FONT
  const room = Math.max(60, width - 60) // margins, padding and the scroll bar
  const count = text.split("\n").reduce((sum, line) => sum + linesOf(line, room), 0)
  return Math.min(MOST_PX, count * LINE_PX + PADDING_PX) + MARGIN_PX
}

// How high a node may be without its title; Infinity where no node is below it.
function roomOf(node) {
  const [{ pos: [left, top], size: [width] }, title] = [node, LiteGraph.NODE_TITLE_HEIGHT]
  const below = app.canvas.graph.nodes.filter(
    ({ pos: [x, y], size }) => y - title > top && x < left + width && x + size[0] > left,
  )
  return Math.min(...below.map((other) => other.pos[1])) - title - GAP_PX - top
}

function fitClassic(node, widget, text) {
  if (!before.has(node)) before.set(node, node.size[1])
  widget.options.getMinHeight = () => LEAST_PX
  const room = roomOf(node) - (node.computeSize()[1] - LEAST_PX)
  const height = Math.max(LEAST_PX, Math.min(heightOf(text, node.size[0]), room))
  widget.options.getMinHeight = () => height
  const least = node.computeSize()[1]
  node.setSize([node.size[0], Math.max(least, before.get(node))])
  node.setDirtyCanvas?.(true, true)
}

// The frontend keeps the room of a text that has been taken back. It also makes some on whatever node has the number in
// the workflow that is open by then.
function remove(node, widget) {
  widget.onRemove?.()
  node.widgets.splice(node.widgets.indexOf(widget), 1)
  dropLimit(node.id)
  if (before.has(node)) node.setSize([node.size[0], Math.max(node.computeSize()[1], before.get(node))])
  before.delete(node)
  node.setDirtyCanvas?.(true, true)
}

// Vue nodes grow by themselves, as far as their texts do.
function fitVue(node) {
  const box = document.querySelector(`[data-node-id="${node.id}"]`)
  const text = [...(box?.querySelectorAll(VUE_TEXT) ?? [])].at(-1)
  const read = text?.scrollTop
  dropLimit(node.id)
  const over = text ? box.offsetHeight - LiteGraph.NODE_TITLE_HEIGHT - roomOf(node) : 0
  if (over > 0) limits.set(node.id, text.offsetHeight - over)
  setLimits()
  if (text) text.scrollTop = read // as far as somebody has read
}

function setLimits() {
  const rule = ([id, height]) =>
    `[data-node-id="${id}"] ${VUE_TEXT} { min-height: 0; max-height: ${Math.max(LEAST_VUE_PX, height)}px; }`
  limitSheet.textContent = [...limits].map(rule).join("\n")
}

function dropLimit(id) {
  limits.delete(id)
  setLimits()
}

function fit(nodeId) {
  const id = Number(String(nodeId).split(":").pop())
  const node = app.canvas?.graph?.getNodeById(id)
  const widget = node?.widgets?.find((found) => found.name === WIDGET)
  if (!widget) return dropLimit(id) // the node is gone, or one of another graph has its number
  const text = plain(String(widget.value ?? "")).trim()
  if (!text) return remove(node, widget)
  if (!widget.options || !node.comfyClass?.startsWith("CogVideoX")) return
  if (window.LiteGraph?.vueNodesMode) return void requestAnimationFrame(() => requestAnimationFrame(() => fitVue(node)))
  fitClassic(node, widget, text)
}

if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      const style = document.createElement("style")
      style.textContent = CSS
      document.head.append(style, limitSheet)
      // The frontend's own listener puts the text there first.
      api.addEventListener("progress_text", ({ detail }) => setTimeout(fit, 0, detail?.nodeId))
      // Where a node has been moved there may be more room, or less.
      document.addEventListener("pointerup", () => setTimeout(() => [...limits.keys()].forEach(fit), 0))
    },
    // Another graph has other nodes of these numbers.
    afterConfigureGraph() {
      limits.clear()
      setLimits()
    },
  })
}
