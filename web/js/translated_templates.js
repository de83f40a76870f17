// Shows our templates in Chinese: their titles in ComfyUI's list, and the notes, the titles of groups and nodes and the
// names of an app's fields in an opened graph. ComfyUI translates only its own templates. locales/zh/main.json has the
// texts; host/translated_templates.py serves the files under the Chinese titles.
//
// The Chinese is shown and not saved. What is written of a graph (a file, a video's workflow, a tab's state, what undo
// compares) is the English that was opened, so that a graph is the same file for everybody, opening it changes nothing
// that would have to be saved, and another language shows it in its own words. A text that the user has changed is the
// user's, and is saved as it stands. Only a prompt in API form, which is no graph, has the nodes' titles as shown.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { isChinese } from "./in_app.js"

const NAME = "CogVideoX.TranslatedTemplates"
const [LANGUAGE, SERVED_AS] = ["zh", "CogVideoX-zh"] // SERVED_AS: as in host/translated_templates.py
const [OURS, NOTE, NUMBER] = [/^CogVideoX/, "MarkdownNote", /^\d+ {2}/]
const own = decodeURIComponent(import.meta.url.split("/extensions/")[1]?.split("/")[0] ?? "") // our folder's name
const english = { groups: new Map(), nodes: new Map(), inputs: new Map(), notes: new Map() } // of what has been shown
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

// Replaces each text of ours in a graph by what `told(kind, text)` says, where that is something.
function replace(graph, told) {
  const set = (holder, key, kind) => {
    const text = told(kind, holder[key])
    if (text !== undefined) holder[key] = text
  }
  for (const { groups, nodes } of [graph, ...list(graph?.definitions?.subgraphs)]) {
    if (!list(nodes).some((node) => OURS.test(node?.type))) continue // another pack's may have such a title
    for (const one of list(groups)) set(one, "title", "groups")
    for (const node of list(nodes)) {
      set(node, "title", "nodes")
      for (const input of list(node.inputs)) if (input?.label) set(input, "label", "inputs")
      if (node.type === NOTE && Array.isArray(node.widgets_values)) set(node.widgets_values, 0, "notes")
    }
  }
}

function show(graph, words) {
  const finders = { groups: group, nodes: find, inputs: find, notes: note }
  replace(graph, (kind, text) => {
    const told = finders[kind](words[kind], text)
    if (told !== undefined) english[kind].set(told, text)
    return told
  })
}

const save = (graph) => replace(graph, (kind, text) => english[kind].get(text))

// The list of templates has a title for each file's name, and asks for the file by it.
function translateTitles() {
  const before = api.getWorkflowTemplates
  api.getWorkflowTemplates = async function (...values) {
    const listed = await before.apply(this, values)
    if (!isChinese() || !Array.isArray(listed?.[own])) return listed
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
