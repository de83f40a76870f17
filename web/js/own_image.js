// Names the empty choice of CogVideoX Own Image, which is no file: as a tile, in app mode and in the newer renderer, it
// was a broken picture without a name.
import { app } from "../../../scripts/app.js"
import { isChinese } from "./in_app.js"

const [NAME, NODE, STYLE] = ["CogVideoX.OwnImage", "CogVideoXOwnImage", "cogvideox-own-image"]
const [ENGLISH, CHINESE] = ["The connected image", "所连接的图像"]
const NO_PICTURE = 'img[src*="/view?filename=&"]' // what the frontend asks for, of a file without a name

// A second copy of the pack serves this file as well, and ComfyUI refuses a second extension of one name.
if (!window[NAME]) {
  window[NAME] = true
  app.registerExtension({
    name: NAME,
    setup() {
      const style = document.createElement("style")
      const text = isChinese() ? CHINESE : ENGLISH
      // A label of the list's own (getOptionLabel) would take the search field from the classic renderer's menu.
      style.textContent = `
        .${STYLE} ${NO_PICTURE} { visibility: hidden; }
        .${STYLE} :has(> ${NO_PICTURE}) + div > span:empty::after { content: "${text}"; }
      `
      document.head.append(style)
    },
    // Other packs' lists have an empty choice as well.
    nodeCreated(node) {
      if (node.comfyClass === NODE) document.body.classList.add(STYLE)
    },
    afterConfigureGraph() {
      document.body.classList.toggle(STYLE, app.graph.nodes.some((node) => node.comfyClass === NODE))
    },
  })
}
