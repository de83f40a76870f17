// Shows the sentence of an error of this pack in a toast. ComfyUI's own toast says that a node has failed, and not why.
// host/messages.py sends both events, to the browser that has queued the prompt.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const STYLE = "cogvideox-error";
const shown = [];

function forget() {
  while (shown.length) app.extensionManager.toast.remove(shown.pop());
}

// A node inside a subgraph has an id such as 5:3, which the open graph does not know.
function titleOf(nodeId) {
  return app.graph?.getNodeById(Number(nodeId))?.title ?? "CogVideoX";
}

app.registerExtension({
  name: "CogVideoX.ErrorToast",
  setup() {
    // ComfyUI's own box, with its View details, stays visible and free to be clicked, above the toasts.
    const style = document.createElement("style");
    style.textContent = `.p-toast:has(.${STYLE}) { margin-top: 10rem; }`;
    document.head.append(style);
    api.addEventListener("cogvideox.error", ({ detail }) => {
      // Without `life` it stays until it is closed, or until the next run.
      const message = {
        severity: "error",
        summary: titleOf(detail.node_id),
        detail: detail.text,
        styleClass: STYLE,
      };
      shown.push(message);
      app.extensionManager.toast.add(message);
    });
    api.addEventListener("cogvideox.forget", forget);
    api.addEventListener("execution_start", forget);
  },
});
