// Shows what the pack has found at ComfyUI's start (host/start_check.py): a missing package, a second copy, a node that
// another pack has replaced. The log says the same; few people who open the page see it.
import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

const NAME = "CogVideoX.StartNotices"

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    async setup() {
      const answer = await api.fetchApi("/cogvideox/start_notices")
      if (!answer.ok) return
      for (const detail of await answer.json())
        app.extensionManager.toast.add({ severity: "warn", summary: "CogVideoX", detail })
    },
  })
}
