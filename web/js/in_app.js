// What our messages say in app mode: a form with labels, without nodes, without their titles and without View details.
import { app } from "../../../scripts/app.js"
import { roomInApp } from "./message_places.js"

const OURS = /^CogVideoX/
const OF_NODES = /\bnodes?\b|View details|节点/
// “Enter node graph”, 进入节点图: the frontend's names of its button at the top left.
const ENGLISH = "An app shows no nodes: press “Enter node graph” at the top left, and do it there."
const CHINESE = "应用模式不显示节点：请点击左上角的“进入节点图”，再在那里操作。"

export const isChinese = () => app.extensionManager.setting.get("Comfy.Locale")?.startsWith("zh")

const classes = () => Object.values(LiteGraph.registered_node_types).filter((type) => OURS.test(type.comfyClass ?? ""))
const speaksOfNodes = (text) => OF_NODES.test(text) || classes().some(({ title }) => title && text.includes(title))

// A text with the way to the nodes that it speaks of, where an app hides them.
export function withWayToNodes(text) {
  if (!roomInApp() || !speaksOfNodes(text)) return text
  return `${text}\n${isChinese() ? CHINESE : ENGLISH}`
}

// A node by its id; of one inside a subgraph, as the server calls it: 5:3.
export function nodeAt(nodeId) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const id of String(nodeId).split(":")) {
    node = graph?.getNodeById(Number(id))
    graph = node?.subgraph
  }
  return node
}

// How the form calls the input of a node; undefined where it does not show it.
function labelInForm(nodeId, input) {
  const shown = (app.rootGraph ?? app.graph)?.extra?.linearData?.inputs ?? []
  // The frontend saves the node's id, or the graph's, the node's and the name.
  const isIt = ([id, name]) => name === input && [nodeId, `${nodeId}:${name}`].some((end) => `:${id}`.endsWith(`:${end}`))
  if (!input || !Array.isArray(shown) || !shown.some((entry) => Array.isArray(entry) && isIt(entry))) return
  return nodeAt(nodeId)?.widgets?.find(({ name }) => name === input)?.label ?? input
}

export const titleOfNode = (node) => (roomInApp() ? "CogVideoX" : node.title)

const MOST_TITLES = 3

// What a message about these nodes is headed with: their titles, or the label in the form of an app.
export function titleOf(nodeIds, input) {
  if (roomInApp()) return (nodeIds.length === 1 && labelInForm(nodeIds[0], input)) || "CogVideoX"
  const titles = [...new Set(nodeIds.map((id) => nodeAt(id)?.title ?? "CogVideoX"))]
  const named = titles.slice(0, MOST_TITLES).join(", ")
  return titles.length === nodeIds.length && titles.length <= MOST_TITLES ? named : `${named} (${nodeIds.length})`
}
