// Shows our templates in Chinese: their titles in ComfyUI's list, and the notes, the titles of groups and nodes and the
// names of an app's fields in an opened graph. ComfyUI translates only its own templates. locales/zh/main.json has the
// texts; host/translated_templates.py serves the files under the Chinese titles.
//
// The Chinese is shown and not saved. What is written of a graph (a file, a video's workflow, a tab's state, what undo
// compares) is the English that was opened, so that a graph is the same file for everybody, opening it changes nothing
// that would have to be saved, and another language shows it in its own words. A text that the user has changed is the
// user's, and is saved as it stands; so is one in a graph where it has not stood for ours. Only a prompt in API form,
// which is no graph, has the nodes' titles as shown.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { isChinese } from "./in_app.js"

const NAME = "CogVideoX.TranslatedTemplates"
const [LANGUAGE, SERVED_AS] = ["zh", "CogVideoX-zh"] // SERVED_AS: as in host/translated_templates.py
const [OURS, NOTE, NUMBER, NO_ID] = [/^CogVideoX/, "MarkdownNote", /^\d+ {2}/, /^[0-]*$/]
const own = decodeURIComponent(import.meta.url.split("/extensions/")[1]?.split("/")[0] ?? "") // our folder's name
const english = new Map() // of what has been shown: id of a graph -> {kind: Map of Chinese to English}
let texts // a promise of {titles, groups, nodes, inputs, notes}, of English to Chinese; {} where there are none

const list = (value) => (Array.isArray(value) ? value : []) // a graph may hold anything

async function ask() {
  try {
    const answer = await api.fetchApi("/i18n")
    return (await answer.json())[LANGUAGE]?.cogvideoxTemplates ?? {}
  } catch (error) {
    console.debug(NAME, error) // an older server
    return {}
  }
}

const load = () => (texts ??= ask())
const find = (words, text) => (typeof text === "string" && Object.hasOwn(words ?? {}, text) ? words[text] : undefined)

// A note, paragraph by paragraph: undefined unless all of it is ours.
function note(words, text) {
  const parts = typeof text === "string" ? text.split("\n\n").map((part) => find(words, part)) : [undefined]
  return parts.includes(undefined) ? undefined : parts.join("\n\n")
}

// "2  Prompt and size"
function group(words, text) {
  const [number] = (typeof text === "string" && text.match(NUMBER)) || [""]
  const told = number ? find(words, text.slice(number.length)) : undefined
  return told && number + told
}

const isOurs = ({ nodes }) => list(nodes).some((node) => OURS.test(node?.type))

// Replaces each text of ours in a graph and its subgraphs, those of them that `isMeant`, by what `told(kind, text)` says,
// where that is something.
function replace(graph, isMeant, told) {
  const set = (holder, key, kind) => {
    const text = told(kind, holder[key])
    if (text !== undefined) holder[key] = text
  }
  for (const { groups, nodes } of [graph, ...list(graph?.definitions?.subgraphs)].filter(isMeant)) {
    for (const one of list(groups)) set(one, "title", "groups")
    for (const node of list(nodes)) {
      set(node, "title", "nodes")
      for (const input of list(node.inputs)) if (input?.label) set(input, "label", "inputs")
      if (node.type === NOTE && Array.isArray(node.widgets_values)) set(node.widgets_values, 0, "notes")
    }
  }
}

// Only in a graph with nodes of ours: another pack's may have such a title. One without an id gets another when it is
// opened, by which its texts would not be found again; all templates have one.
function show(graph, words) {
  if (typeof graph?.id !== "string" || NO_ID.test(graph.id)) return
  const finders = { groups: group, nodes: find, inputs: find, notes: note }
  // What undo opens again has the same id.
  const known = english.get(graph.id) ?? Object.fromEntries(Object.keys(finders).map((kind) => [kind, new Map()]))
  english.set(graph.id, known)
  replace(graph, isOurs, (kind, text) => {
    const told = finders[kind](words[kind], text)
    if (told !== undefined) known[kind].set(told, text)
    return told
  })
}

// Where somebody has put our nodes into a subgraph, or deleted them, the notes beside them are still ours.
function save(graph) {
  const known = english.get(graph.id)
  if (known) replace(graph, () => true, (kind, text) => known[kind].get(text))
}

// The list of templates has a title for each file's name, and asks for the file by it.
function translateTitles() {
  const before = api.getWorkflowTemplates
  api.getWorkflowTemplates = async function (...values) {
    const listed = await before.apply(this, values)
    // A folder of that name, be it ours or another pack's, has its own files at these addresses.
    if (!isChinese() || !Array.isArray(listed?.[own]) || Object.hasOwn(listed, SERVED_AS)) return listed
    const { titles } = await load()
    const [known, others] = [[], []]
    for (const name of listed[own]) (find(titles, name) ? known : others).push(name)
    const { [own]: _, ...theirs } = listed
    if (others.length) theirs[own] = others
    if (known.length) theirs[SERVED_AS] = known.map((name) => titles[name])
    return theirs
  }
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      translateTitles()
      const graph = app.rootGraph ?? app.graph
      const before = graph.onSerialize
      graph.onSerialize = function (data, ...more) {
        before?.call(this, data, ...more)
        save(data)
      }
    },
    async beforeConfigureGraph(graph) {
      if (isChinese()) show(graph, await load())
    },
  })
}
