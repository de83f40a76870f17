// Says, where a graph is opened, which of the loaders' models are not there and what to do: which bypassed CogVideoX
// Download to switch on. Files that a template itself offers to download (properties.models) are left to ComfyUI's own
// dialog. nodes/opened_graph.py has the sentences, and nodes/missing_models.py knows which nodes load models.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { withWayToNodes } from "./in_app.js"
import { appCss, roomBelow, roomInApp, rowCss } from "./message_places.js"

const NAME = "CogVideoX.MissingModels"
const ROUTE = "/cogvideox/missing_models"
const OURS = /^CogVideoX/
const [ALWAYS, BYPASSED] = [0, 4] // modes of a node
const LIFE_MS = 30_000
const FORM_MS = 300 // an app's form comes a moment after its graph
const PLACED_MS = [0, 300, 1200]
// Of a question: nodes/opened_graph.py reads 256 KiB. It marks a name of 101 letters as cut.
const [MOST_MODELS, MOST_BYPASSED, MOST_LETTERS] = [256, 32, 101]
const STYLE = "cogvideox-missing"
const style = document.createElement("style")
const told = new Set() // of which graph what was said: undo opens a graph again
const shown = []
let looks = 0 // how many graphs have been opened

const graph = () => app.rootGraph ?? app.graph

const list = (value) => (Array.isArray(value) ? value : []) // a graph may hold anything
const cut = (text) => text.slice(0, MOST_LETTERS)

function lacks(node) {
  const widget = node.widgets?.find((found) => found.type === "combo")
  if (node.mode !== ALWAYS || !OURS.test(node.comfyClass ?? "") || typeof widget?.value !== "string") return
  const listed = typeof widget.options.values === "function" ? widget.options.values(widget, node) : widget.options.values
  const offered = list(node.properties?.models).map((model) => model?.name)
  if (!widget.value || [...list(listed), ...offered].includes(widget.value)) return
  return [node.comfyClass, cut(widget.value)]
}

// Toasts stand at the top right, over the nodes there, or over the form of an app.
function place() {
  const [room, inApp] = [roomBelow(), roomInApp()]
  if (inApp) return void (style.textContent = appCss(STYLE, inApp))
  style.textContent = room
    ? `
      .p-toast-message.${STYLE} { position: fixed; left: ${room.left}px; right: ${room.right}px; bottom: 4px; margin: 0; }
      ${rowCss(STYLE)}
    `
    : ""
}

function forget() {
  while (shown.length) app.extensionManager.toast.remove(shown.pop())
}

async function look() {
  const number = ++looks
  forget()
  const nodes = graph()?.nodes ?? []
  const missing = new Map(nodes.map(lacks).filter(Boolean).map((pair) => [pair.join("\n"), pair]))
  const models = [...missing.values()].slice(0, MOST_MODELS)
  const key = JSON.stringify([graph()?.id, models])
  if (!models.length || told.has(key)) return
  const downloads = nodes.filter((node) => node.comfyClass === "CogVideoXDownload" && node.mode === BYPASSED)
  const chosen = downloads.map((node) => node.widgets?.[0]?.value).filter((value) => typeof value === "string")
  const bypassed = [...new Set(chosen.map(cut))].slice(0, MOST_BYPASSED)
  const answer = await api.fetchApi(ROUTE, { method: "POST", body: JSON.stringify({ models, bypassed }) })
  if (!answer.ok) return
  const sentences = await answer.json()
  await new Promise((done) => setTimeout(done, FORM_MS))
  if (number !== looks) return // another graph has been opened
  told.add(key)
  if (!sentences.length) return
  const detail = withWayToNodes(sentences.join("\n"))
  const message = { severity: "warn", summary: "CogVideoX", detail, styleClass: STYLE, life: LIFE_MS }
  for (const wait of PLACED_MS) setTimeout(() => number === looks && place(), wait)
  shown.push(message)
  app.extensionManager.toast.add(message)
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      document.head.append(style)
      // A run is refused, and error_toast.js says the same; or it goes.
      for (const event of ["cogvideox.error", "execution_start"]) api.addEventListener(event, forget)
    },
    // Not awaited: the frontend would go on with opening the graph only when the server has answered.
    afterConfigureGraph() {
      look().catch((error) => console.debug(NAME, error)) // an older server
    },
  })
}
