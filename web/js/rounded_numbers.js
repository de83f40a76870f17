// Says which number a widget has taken in the place of the one that was typed: ComfyUI rounds to the widget's steps, and
// keeps to its limits, without a word: 10 frames became 9, and 5000 became 1025.
import { app } from "../../../scripts/app.js"
import { inShort, isChinese, nodeAt, titleOfNode } from "./in_app.js"
import { placeToasts } from "./message_places.js"

const NAME = "CogVideoX.RoundedNumbers"
const STYLE = "cogvideox-rounded"
const LIFE_MS = 8_000
const OURS = /^CogVideoX/
const FIELD = 'input[role="spinbutton"]' // of a number, in Vue nodes and in the form of an app
const OF_A_NODE = "[data-node-id], [node-id]" // in a graph; in a form
const sheet = document.createElement("style")
let shown, about // the toast, and the widget that it speaks of
let waiting // until the frontend has taken a number

// What a number is rounded to: a whole one to the steps of the arrows, any other to decimals.
const unitOf = ({ precision, round, step2 }) => (precision ? Math.max(round || 0, exact(10 ** -precision)) : step2) || 0
const exact = (value) => Number(value.toPrecision(12)) // 0.57 for 57 * 0.01
const differ = (value, other) => Math.abs(value - other) > 1e-9 * Math.max(1, Math.abs(other))

// Within the limits, and a whole number at its steps: the decimals that somebody has typed are kept.
function nearest(typed, options) {
  const { min = -Infinity, max = Infinity, precision } = options
  const unit = precision ? 0 : unitOf(options)
  const offset = unit && Number.isFinite(min) ? min % unit : 0
  const rounded = unit ? Math.round((typed - offset) / unit) * unit + offset : typed
  return Math.min(max, Math.max(min, exact(rounded)))
}

function sentence(widget, typed) {
  const { label, name, options } = widget
  const [what, value, { min, max }] = [inShort(label ?? name), exact(widget.value), options]
  if (typed > max || typed < min) {
    const [english, chinese] = typed > max ? ["highest", "最大"] : ["lowest", "最小"]
    return isChinese()
      ? `${what} 不能为 ${typed}：已改为 ${value}，即可用的${chinese}值。`
      : `${what} cannot be ${typed}: it is ${value} now, the ${english} number that is possible.`
  }
  return isChinese()
    ? `${what} 不能为 ${typed}：已改为最接近的 ${value}（从 ${min} 起，步长为 ${unitOf(options)}）。`
    : `${what} cannot be ${typed}: it is ${value} now, the nearest one (from ${min} in steps of ${unitOf(options)}).`
}

function forget() {
  if (shown) app.extensionManager.toast.remove(shown)
  shown = about = undefined
}

// The widgets that a subgraph's widget stands for.
function inside(node, widget) {
  const input = node.isSubgraphNode?.() && node.inputs?.find((found) => found._widget === widget || found.name === widget.name)
  const slot = input && node.subgraph?.inputNode?.slots?.find(({ name }) => name === input.name)
  return slot?.getConnectedWidgets?.() ?? []
}

function isOurs(node, widget) {
  if (OURS.test(node.comfyClass ?? "")) return true
  return inside(node, widget).some((inner) => inner.node && isOurs(inner.node, inner))
}

// After somebody has typed a number into a widget of a node.
function compare(node, name, typed) {
  const widget = node.widgets?.find((found) => found.name === name)
  if (!Number.isFinite(typed) || !widget?.options || typeof widget.value !== "number" || !isOurs(node, widget)) return
  // A subgraph's own widget keeps what does not fit, and the run would be refused.
  if (node.isSubgraphNode?.()) widget.value = nearest(typed, widget.options)
  if (differ(widget.value, typed)) tell(node, widget, typed)
  else if (about === `${node.id} ${widget.name}`) forget() // it has another number by now
}

function tell(node, widget, typed) {
  forget()
  shown = { severity: "info", summary: titleOfNode(node), detail: sentence(widget, typed), styleClass: STYLE, life: LIFE_MS }
  about = `${node.id} ${widget.name}`
  app.extensionManager.toast.add(shown)
  requestAnimationFrame(() => placeToasts(sheet, STYLE, [node.id]))
}

// The classic renderer hands each number to setValue of its widgets' class: what was typed, and what the pointer does.
function listenTo(widget) {
  const made = Object.getPrototypeOf(widget)
  if (widget.type !== "number" || !made?.setValue || made[NAME]) return
  const before = made.setValue
  made[NAME] = true
  made.setValue = function (typed, context) {
    const [was, { step2 = 1 }] = [this.value, this.options ?? {}]
    const out = before.call(this, typed, context)
    const isDragged = context?.e?.type === "pointermove"
    const isArrow = Math.abs(Math.abs(typed - was) - step2) < 1e-9
    if (context?.node && !isDragged && !isArrow) compare(context.node, this.name, Number(typed))
    return out
  }
}

// The number in a text as the frontend reads it: in French 0,3 is what 0.3 is in English. NaN for anything else.
function numberIn(text) {
  const { format } = new Intl.NumberFormat(app.extensionManager.setting.get("Comfy.Locale"))
  const [group, decimal] = [11111, 1.1].map((number) => format(number).replace(/\p{Number}/gu, ""))
  const plain = text.trim().replaceAll(group, "").replaceAll(decimal, ".")
  return /^-?\d+(\.\d+)?$/.test(plain) ? Number(plain) : NaN
}

// In Vue nodes and forms a field keeps to its limits before anybody is told: by focusout it holds another number.
const HEARD = ["keyup", "change", "blur"]

function heard({ target, type, key }) {
  if (!target.matches?.(FIELD) || (type === "keyup" && key !== "Enter")) return
  const owner = target.closest(OF_A_NODE)
  const id = owner?.getAttribute("data-node-id") ?? owner?.getAttribute("node-id")
  const node = app.canvas?.graph?.getNodeById(Number(id)) ?? nodeAt(id)
  const name = target.closest("[aria-label]")?.getAttribute("aria-label")
  const widget = node?.widgets?.find((found) => found.name === name)
  const typed = numberIn(target.value)
  if (!widget || !Number.isFinite(typed) || typed === widget.value) return
  clearTimeout(waiting) // one number is heard of more than once
  waiting = setTimeout(compare, 0, node, name, typed)
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      document.head.append(sheet)
      for (const type of HEARD) document.addEventListener(type, heard, true)
    },
    nodeCreated(node) {
      if (OURS.test(node.comfyClass ?? "")) node.widgets?.forEach(listenTo)
    },
    afterConfigureGraph: forget, // another workflow
  })
}
