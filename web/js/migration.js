// Where a workflow of ComfyUI-CogVideoXWrapper is opened without the wrapper: says what can be done, and opens the
// workflow in this pack's nodes beside it. nodes/migration_page.py answers. Everything is shown as text, never as HTML:
// a workflow may come from anybody.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

const NAME = "CogVideoX.Migration"
const ROUTE = "/cogvideox/migration"
const CSS = `
.cogvideox-migration { position: fixed; left: 50%; bottom: 5rem; transform: translateX(-50%); z-index: 1000;
  width: min(40rem, 80vw); max-height: 60vh; display: flex; flex-direction: column; gap: 0.6rem; padding: 1rem;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 8px; background: var(--comfy-menu-bg, #353535);
  color: var(--fg-color, #fff); font-size: 0.875rem; }
.cogvideox-migration pre { margin: 0; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  user-select: text; font-size: 0.8rem; }
.cogvideox-migration button { padding: 0.3rem 0.8rem; border-radius: 6px; cursor: pointer;
  border: 1px solid var(--border-color, #4e4e4e); background: var(--comfy-input-bg, #222); color: inherit; }
.cogvideox-migration div { display: flex; gap: 0.5rem; }
`
const closed = new Set() // workflows whose notice the user has closed: undo opens a workflow again
let about, box

function element(tag, text = "") {
  const made = document.createElement(tag)
  made.textContent = text
  return made
}

function button(text, act) {
  const made = element("button", text)
  made.addEventListener("click", act)
  return made
}

function hide() {
  box?.remove()
  box = undefined
}

function show(...parts) {
  hide()
  box = element("section")
  box.className = "cogvideox-migration"
  box.setAttribute("role", "status")
  const row = element("div")
  row.append(...parts.filter((part) => part.tagName === "BUTTON"))
  box.append(...parts.filter((part) => part.tagName !== "BUTTON"), row)
  document.body.append(box)
}

const graph = () => app.rootGraph ?? app.graph
const closeButton = () =>
  button(about.close, () => {
    closed.add(graph().id)
    hide()
  })

function offer() {
  const command = element("pre", about.command)
  show(element("span", about.what), element("span", about.how), command, button(about.migrate, () => migrate()), closeButton())
}

async function migrate(query = "") {
  for (const made of box?.querySelectorAll("button") ?? []) made.disabled = true
  const name = app.extensionManager.workflow?.activeWorkflow?.filename ?? "workflow"
  let found
  try {
    const body = JSON.stringify(graph().serialize())
    const headers = { "Content-Type": "application/json" }
    found = await (await api.fetchApi(ROUTE + query, { method: "POST", headers, body })).json()
  } catch {
    return show(element("span", about.failed), closeButton())
  }
  if (found.workflow) {
    delete found.workflow.id // it is another workflow
    await app.loadGraphData(found.workflow, true, true, `${name}_migrated`)
  }
  const more = found.may_leave_out ? [button(about.leave_out, () => migrate("?leave_out=1"))] : []
  show(element("span", found.title), element("pre", found.report.join("\n")), ...more, closeButton())
}

async function look(missing) {
  hide()
  const types = (missing ?? []).map((entry) => entry?.type ?? entry)
  if (!types.length || closed.has(graph().id)) return
  about ??= await (await api.fetchApi(ROUTE)).json()
  if (types.some((type) => about.types.includes(type))) offer()
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      document.head.append(element("style", CSS))
    },
    async afterConfigureGraph(missing) {
      try {
        await look(missing)
      } catch (error) {
        console.debug(NAME, error) // an older server
      }
    },
  })
}
