// Says which number a widget has taken in the place of the one that was typed: ComfyUI rounds to the widget's steps
// without a word, and 10 frames became 9.
import { app } from "../../../scripts/app.js"
import { placeToasts } from "./message_places.js"

const NAME = "CogVideoX.RoundedNumbers"
const STYLE = "cogvideox-rounded"
const LIFE_MS = 8_000
const sheet = document.createElement("style")
let shown, about // the toast, and the widget that it speaks of

const isChinese = () => app.extensionManager.setting.get("Comfy.Locale")?.startsWith("zh")

function sentence({ label, name, value, options: { min, step2 } }, typed) {
  const what = label ?? name
  return isChinese()
    ? `${what} 不能为 ${typed}：已改为最接近的 ${value}（从 ${min} 起，步长为 ${step2}）。`
    : `${what} cannot be ${typed}: it is ${value} now, the nearest one (from ${min} in steps of ${step2}).`
}

function forget() {
  if (shown) app.extensionManager.toast.remove(shown)
  shown = about = undefined
}

function tell(node, widget, typed) {
  forget()
  shown = { severity: "info", summary: node.title, detail: sentence(widget, typed), styleClass: STYLE, life: LIFE_MS }
  about = widget
  app.extensionManager.toast.add(shown)
  requestAnimationFrame(() => placeToasts(sheet, STYLE, [node.id]))
}

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      document.head.append(sheet)
    },
    nodeCreated(node) {
      if (!node.comfyClass?.startsWith("CogVideoX")) return
      for (const widget of node.widgets ?? []) {
        const before = widget.callback
        if (!(widget.options?.step2 > 1) || !before) continue
        widget.callback = function (typed, ...more) {
          const out = before.call(this, typed, ...more)
          // Dragging gives fractions, which nobody has typed.
          if (Number.isInteger(typed) && typed !== this.value) tell(node, this, typed)
          else if (this === about) forget() // it has another number by now
          return out
        }
      }
    },
    afterConfigureGraph: forget, // another workflow
  })
}
