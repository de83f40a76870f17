// Says, where a graph is opened, which of the loaders' models are not there and what to do: which bypassed CogVideoX
// Download to switch on. Files that a template itself offers to download (properties.models) are left to ComfyUI's own
// dialog. nodes/opened_graph.py has the sentences.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

const NAME = "CogVideoX.MissingModels"
const ROUTE = "/cogvideox/missing_models"
const LOADERS = /^CogVideoX(Load(Pipeline|Model|TextEncoder|VAE|ControlNet)|ApplyLora)$/
const [ALWAYS, BYPASSED] = [0, 4] // modes of a node
const LIFE_MS = 30_000
// Of a question: a page has room for few sentences, and nodes/opened_graph.py reads 64 KiB. It marks a name of 101
// letters as cut.
const [MOST_MODELS, MOST_BYPASSED, MOST_LETTERS] = [8, 32, 101]
const STYLE = "cogvideox-error" // which error_toast.js puts below ComfyUI's own box with its View details
const told = new Set() // of which graph what was said: undo opens a graph again
const shown = []
let looks = 0 // how many graphs have been opened

const graph = () => app.rootGraph ?? app.graph

const list = (value) => (Array.isArray(value) ? value : []) // a graph may hold anything
const cut = (text) => text.slice(0, MOST_LETTERS)

function lacks(node) {
  const widget = node.widgets?.find((found) => found.type === "combo")
  if (node.mode !== ALWAYS || !LOADERS.test(node.comfyClass ?? "") || typeof widget?.value !== "string") return
  const listed = typeof widget.options.values === "function" ? widget.options.values(widget, node) : widget.options.values
  const offered = list(node.properties?.models).map((model) => model?.name)
  if (!widget.value || [...list(listed), ...offered].includes(widget.value)) return
  return [node.comfyClass, cut(widget.value)]
}

async function look() {
  const number = ++looks
  while (shown.length) app.extensionManager.toast.remove(shown.pop())
  const nodes = graph()?.nodes ?? []
  const missing = [...new Map(nodes.map(lacks).filter(Boolean).map((pair) => [pair.join("\n"), pair])).values()]
  const key = JSON.stringify([graph()?.id, missing])
  if (!missing.length || told.has(key)) return
  const models = missing.slice(0, MOST_MODELS)
  const downloads = nodes.filter((node) => node.comfyClass === "CogVideoXDownload" && node.mode === BYPASSED)
  const chosen = downloads.map((node) => node.widgets?.[0]?.value).filter((value) => typeof value === "string")
  const bypassed = [...new Set(chosen.map(cut))].slice(0, MOST_BYPASSED)
  const question = { models, bypassed, more: missing.length - models.length }
  const answer = await api.fetchApi(ROUTE, { method: "POST", body: JSON.stringify(question) })
  if (!answer.ok) return
  const sentences = await answer.json()
  if (number !== looks) return // another graph has been opened
  told.add(key)
  for (const detail of sentences) {
    const message = { severity: "warn", summary: "CogVideoX", detail, styleClass: STYLE, life: LIFE_MS }
    shown.push(message)
    app.extensionManager.toast.add(message)
  }
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    // Not awaited: the frontend would go on with opening the graph only when the server has answered.
    afterConfigureGraph() {
      look().catch((error) => console.debug(NAME, error)) // an older server
    },
  })
}
