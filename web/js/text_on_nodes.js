// Makes room on a node for the text that the server shows there. The frontend keeps two lines for it, with a scroll bar:
// the sentence that says what to do, or a table, was out of sight. Down to the next node and not over it: what does not
// fit is scrolled to. Where not even a line fits, a toast has the text until the nodes are moved apart.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { isTold } from "./error_toast.js"
import { titleOfNode } from "./in_app.js"
import { placeToasts } from "./message_places.js"

const NAME = "CogVideoX.TextOnNodes"
const WIDGET = "$$node-text-preview" // its name in the frontend
const VUE_TEXT = ".comfy-markdown-content" // its element in Vue nodes
const [FONT, LINE_PX, PADDING_PX, MARGIN_PX, MOST_PX] = ["12px Inter, sans-serif", 16, 16, 20, 480]
const [FRAME_PX, BETWEEN_PX, LINE_VUE_PX] = [8, 4, 17] // around the text of a classic node; a line of a Vue node
const GAP_PX = 4 // to the next node
const [STYLE, MOST_TOASTS, LIFE_MS, TOLD_MS] = ["cogvideox-text", 3, 15_000, 1_500] // of the toast; errors have had one of their own by then
const TEXT = ".max-h-\\[200px\\].min-h-\\[28px\\]"
// The frontend breaks lines within words. The rule is for the texts of all nodes: theirs have no mark of a pack.
const CSS = `
  ${TEXT} { max-height: ${MOST_PX}px; }
  ${TEXT} .break-all { word-break: normal; overflow-wrap: anywhere; }
  .dom-widget:has(> ${TEXT}) { container-type: size; }
  @container (max-height: ${LINE_PX + PADDING_PX - 1}px) { ${TEXT} { min-height: 0; padding-block: 0; } }
`
const TABLE = /(?:^\|.*\|(?:\n|$))+/gm // in Markdown, which Vue nodes draw
const WORDS = /(?<=[\s\u3000-\uffef])/ // a line may end after a space, and after any Chinese sign
const before = new WeakMap() // node -> its height without the text
const limits = new Map() // node id -> how high its text may be, in Vue nodes
const elsewhere = new Map() // node without room for its text -> {text, timer, message}: of the toast that has it
const squeezed = new Map() // node -> its height, where a classic one has too little room for its text
const [limitSheet, toastSheet] = [document.createElement("style"), document.createElement("style")]
const measure = document.createElement("canvas").getContext("2d")

function plain(html) {
  return new DOMParser().parseFromString(html.replaceAll("\n", "<br>\n"), "text/html").body.textContent
}

// A classic node draws no table, and shows its signs: a row names its columns there.
function withoutTables(text) {
  const cellsOf = (line) => line.split("|").slice(1, -1).map((cell) => cell.trim())
  return text.replace(TABLE, (table) => {
    const [[, ...columns], , ...rows] = table.trim().split("\n").map(cellsOf)
    const named = (cells) => columns.map((column, index) => cells[index] && `${column} ${cells[index]}`).filter(Boolean)
    return rows.map(([name, ...cells]) => `${name}: ${named(cells).join(", ")}\n`).join("")
  })
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

// Of so many pixels those that whole lines fill, without padding where that leaves none; 0 where not even one fits.
function wholeLines(room) {
  const around = room < LINE_PX + PADDING_PX + FRAME_PX ? FRAME_PX : PADDING_PX + FRAME_PX
  return room < LINE_PX + FRAME_PX ? 0 : Math.floor((room - around) / LINE_PX) * LINE_PX + around
}

function fitClassic(node, widget, text) {
  widget.hidden = true
  const [wanted, room] = [heightOf(text, node.size[0]), roomOf(node) - node.computeSize()[1] - BETWEEN_PX]
  const height = room < wanted ? wholeLines(room) : wanted
  widget.hidden = !height
  widget.options.getMinHeight = () => height
  node.setSize([node.size[0], Math.max(node.computeSize()[1], before.get(node) ?? 0)])
  if (height < wanted) squeezed.set(node, node.size[1])
  else squeezed.delete(node)
  if (height) takeBack(node)
  else tellElsewhere(node, text)
  node.setDirtyCanvas?.(true, true)
}

// A node without room for its text has it in a toast. Once, also where that is closed; and not before the text has stood
// for a moment: progress would be one toast after another.
function tellElsewhere(node, text) {
  if (elsewhere.get(node)?.text === text) return
  takeBack(node)
  elsewhere.set(node, { text, timer: setTimeout(addToast, TOLD_MS, node, text) })
}

function takeBack(node) {
  const { timer, message } = elsewhere.get(node) ?? {}
  clearTimeout(timer)
  if (message) app.extensionManager.toast.remove(message)
  elsewhere.delete(node)
}

// Unless a toast says it already or, of several errors, is of the node. Many would cover the page, and stop it.
function addToast(node, text) {
  const [detail] = text.split("\n")
  if (isTold(node) || node.graph !== app.canvas.graph || document.querySelectorAll(`.${STYLE}`).length >= MOST_TOASTS) return
  const known = detail.slice(0, 40)
  if ([...document.querySelectorAll(".p-toast-message")].some(({ innerText }) => innerText.includes(known))) return
  const message = { severity: "info", summary: titleOfNode(node), detail, styleClass: STYLE, life: LIFE_MS }
  elsewhere.get(node).message = message
  app.extensionManager.toast.add(message)
  requestAnimationFrame(() => placeToasts(toastSheet, STYLE, [node.id]))
}

// Where somebody has moved a node there may be more room, or less. A node that somebody has resized stays as it is.
function fitAgain() {
  for (const [node, height] of squeezed)
    if (node.graph === app.canvas.graph && node.size[1] === height) fit(node.id)
    else squeezed.delete(node)
  for (const id of [...limits.keys()]) fit(id)
}

// The frontend keeps the room of a text that has been taken back. It also makes some on whatever node has the number in
// the workflow that is open by then.
function remove(node, widget) {
  widget.onRemove?.()
  node.widgets.splice(node.widgets.indexOf(widget), 1)
  squeezed.delete(node)
  takeBack(node)
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
  if (limits.get(node.id) < LINE_VUE_PX) tellElsewhere(node, text.innerText)
  else takeBack(node)
  setLimits()
  if (text) text.scrollTop = read // as far as somebody has read
}

function setLimits() {
  const rule = ([id, height]) => {
    const text = `[data-node-id="${id}"] ${VUE_TEXT}`
    return height < LINE_VUE_PX ? `${text} { display: none; }` : `${text} { min-height: 0; max-height: ${height}px; }`
  }
  limitSheet.textContent = [...limits].map(rule).join("\n")
}

function dropLimit(id) {
  limits.delete(id)
  setLimits()
}

const idOf = (nodeId) => Number(String(nodeId).split(":").pop())
const nodeOf = (nodeId) => app.canvas?.graph?.getNodeById(idOf(nodeId))

// The next drawing of the page makes the node as high as the frontend's two lines need, of an empty text too.
function noteHeight({ nodeId }) {
  const node = nodeOf(nodeId)
  if (node && !before.has(node)) before.set(node, node.size[1])
}

function fit(nodeId) {
  const [id, node] = [idOf(nodeId), nodeOf(nodeId)]
  const widget = node?.widgets?.find((found) => found.name === WIDGET)
  if (!widget) return dropLimit(id) // the node is gone, or one of another graph has its number
  const text = plain(String(widget.value ?? "")).trim()
  if (!text) return remove(node, widget)
  if (!widget.options || !node.comfyClass?.startsWith("CogVideoX")) return
  if (window.LiteGraph?.vueNodesMode) return void requestAnimationFrame(() => requestAnimationFrame(() => fitVue(node)))
  widget.value = withoutTables(widget.value)
  fitClassic(node, widget, withoutTables(text))
}

if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      const style = document.createElement("style")
      style.textContent = CSS
      document.head.append(style, limitSheet, toastSheet)
      // The frontend's own listener puts the text there first.
      api.addEventListener("progress_text", ({ detail }) => {
        noteHeight(detail ?? {})
        setTimeout(fit, 0, detail?.nodeId)
      })
      document.addEventListener("pointerup", () => setTimeout(fitAgain, 0))
    },
    // Another graph has other nodes of these numbers.
    afterConfigureGraph() {
      limits.clear()
      squeezed.clear()
      for (const node of [...elsewhere.keys()]) takeBack(node)
      setLimits()
    },
  })
}
