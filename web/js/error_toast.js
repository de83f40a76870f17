// Shows the sentence of an error of this pack in a toast. ComfyUI's own toast says that a node has failed, and not why. An
// app, which hides the nodes and what stands on them, shows the warnings of a run as well.
// host/messages.py sends these events, to the browser that has queued the prompt.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { nodeAt, titleOf, withWayToNodes } from "./in_app.js";
import { placeToasts, roomInApp, uncover } from "./message_places.js";

const NAME = "CogVideoX.ErrorToast";
const STYLE = "cogvideox-error";
const PLACED_MS = [0, 300, 1200]; // ComfyUI's own box, and the texts on the nodes, come a moment later
const LIFE_MS = 15_000; // the node has the whole text for as long as it holds; an app, which shows none, has the toast
const sheet = document.createElement("style");
const MOST_WARNINGS = 3; // of a run: they lie over what it has made
const shown = [];
const warned = new Set(); // the texts of the run that goes on
let looks = 0; // how often toasts have been shown or taken away
let asked; // the graph whose prompt is being checked

function show(summary, text, nodeIds, severity = "error") {
  const life = roomInApp() ? undefined : LIFE_MS;
  const detail = withWayToNodes(text);
  const message = { severity, summary, detail, styleClass: STYLE, life, until: Date.now() + (life ?? Infinity), nodeIds };
  shown.push(message);
  app.extensionManager.toast.add(message);
  const look = ++looks;
  for (const wait of PLACED_MS) setTimeout(() => look === looks && place(), wait);
  return message;
}

// Several nodes may say the same, and one of them for each entry of a list.
function warn({ node_ids: nodeIds, text }) {
  if (!roomInApp() || warned.has(text) || warned.size === MOST_WARNINGS) return;
  warned.add(text);
  show(titleOf(nodeIds), text, nodeIds, "warn").ofRun = true;
}

// Whether a toast speaks of a node of the open graph: of many nodes it names a few.
export const isTold = (node) =>
  shown.some(({ until, nodeIds }) => until > Date.now() && nodeIds.some((id) => nodeAt(id) === node))

// Neither our toasts nor ComfyUI's own box, with its View details, cover the node of the open graph that they are about.
function place() {
  const nodeIds = shown.filter((message) => message.until > Date.now()).flatMap((message) => message.nodeIds);
  if (nodeIds.length) uncover(nodeIds[0]);
  placeToasts(sheet, STYLE, nodeIds);
}

const openGraph = () => (app.rootGraph ?? app.graph)?.id;

// A refusal may come when its graph has been left: its toast would lie over another one for as long as it lives. What a
// run says is shown whatever is open.
const isLate = () => asked !== undefined && asked !== openGraph();

// ComfyUI runs what it can of a prompt and refuses the rest: the start of that run leaves the refusals.
function forgetRuns() {
  asked = undefined;
  warned.clear();
  for (const message of shown.filter((one) => one.ofRun)) {
    shown.splice(shown.indexOf(message), 1);
    app.extensionManager.toast.remove(message);
  }
}

function forget() {
  looks += 1;
  while (shown.length) app.extensionManager.toast.remove(shown.pop());
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true;
  app.registerExtension({
    name: NAME,
    setup() {
      document.head.append(sheet);
      api.addEventListener("cogvideox.error", ({ detail }) => {
        const { node_ids: nodeIds, text, input } = detail;
        if (!detail.is_refusal || !isLate()) show(titleOf(nodeIds, input), text, nodeIds);
      });
      api.addEventListener("cogvideox.more_errors", ({ detail }) => {
        if (!isLate()) show("CogVideoX", detail.text, []);
      });
      api.addEventListener("cogvideox.warning", ({ detail }) => warn(detail));
      api.addEventListener("cogvideox.forget", () => {
        forget();
        asked = openGraph();
      });
      api.addEventListener("execution_start", forgetRuns);
      api.addEventListener("execution_error", ({ detail }) => {
        for (const message of shown) message.ofRun ||= message.nodeIds.includes(detail.node_id);
      });
      // They would lie over the panel that it opens, of a graph or of an app.
      const opener = '[data-testid="error-overlay-see-errors"], [data-testid="linear-view-errors"]';
      document.addEventListener("click", ({ target }) => target.closest?.(opener) && forget(), true);
    },
    // Another workflow, or the same one opened again.
    afterConfigureGraph: forget,
  });
}
