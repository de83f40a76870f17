// Where our messages stand on the page, so that they cover no node that they are about.
import { app } from "../../../scripts/app.js"

const [LEAST_PX, GAP_PX] = [400, 8]
const BOX_END_PX = 252 // of ComfyUI's own box, where the page has no panel
const OWN_BOX = '[data-testid="error-overlay"]' // ComfyUI's, at the top right

const panel = () => document.querySelector(".graph-canvas-panel")?.getBoundingClientRect() // between the sidebars

// In app mode a form stands beside what has been made, and takes the place of the graph: {top, right} in pixels of the room
// beside it. Undefined where a graph is shown.
export function roomInApp() {
  const box = document.querySelector('[data-testid="linear-center-panel"]')?.getBoundingClientRect()
  return box?.width ? { top: box.top + GAP_PX, right: innerWidth - box.right + GAP_PX } : undefined
}

// Of all toasts at the top right, where one of class `style` is among them.
const toastsWith = (style) => `.p-toast.p-component.p-toast-top-right:has(.${style})`
export const appCss = (style, { top, right }) => `
  ${toastsWith(style)} { top: ${top}px !important; right: ${right}px !important; }
  .${style} .p-toast-detail { white-space: pre-line; }
`

// Below the graph, which the frontend fits into the page, is room between its statistics on the left and its map on the
// right: {left, right} in pixels. Undefined where that is too narrow to read, and in app mode, which hides the graph.
export function roomBelow() {
  const { left = 64, right = innerWidth } = panel() ?? {}
  const room = { left: left + 80, right: innerWidth - right + 280 }
  return innerWidth - room.left - room.right < LEAST_PX ? undefined : room
}

// A message of class `style` in one row, as it has room for there, with the migration's button out of its way.
export const rowCss = (style) => `
  .${style} .p-toast-message-text { flex-direction: row; gap: 1rem; }
  .${style} .p-toast-summary { flex: none; max-width: 35%; }
  .${style} .p-toast-detail { margin: 0; white-space: pre-line; }
  body:has(.${style}) .cogvideox-migration { bottom: auto; top: 5rem; }
`

// Of a node, as both renderers place it: {left, top, right, bottom} on the page. Undefined for one that is not on the
// page: inside a subgraph, whose nodes have ids such as 5:3, or outside the one that is open.
function boxOf(nodeId) {
  if (app.canvas?.graph !== (app.rootGraph ?? app.graph)) return
  const node = app.canvas.graph.getNodeById(Number(nodeId))
  if (!node) return
  const { left, top } = app.canvas.canvas.getBoundingClientRect()
  const [{ scale, offset }, [x, y, width, height]] = [app.canvas.ds, node.boundingRect]
  const [start, above] = [left + (x + offset[0]) * scale, top + (y + offset[1]) * scale]
  return { left: start, top: above, right: start + width * scale, bottom: above + height * scale }
}

function overlap(one, other) {
  const width = Math.min(one.right, other.right) - Math.max(one.left, other.left)
  const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top)
  return Math.max(0, width) * Math.max(0, height)
}

// The toasts of class `style`, several of which may be shown, stand below the graph; or at the top right below ComfyUI's
// own box, where they cover less of these nodes; in app mode beside the form. sheet: their style element.
export function placeToasts(sheet, style, nodeIds) {
  const [toasts, inApp] = [toastsWith(style), roomInApp()]
  if (inApp) return void (sheet.textContent = appCss(style, inApp))
  const [room, boxes] = [roomBelow(), nodeIds.map(boxOf).filter(Boolean)]
  const covered = (css) => {
    sheet.textContent = css
    const box = document.querySelector(toasts)?.getBoundingClientRect()
    return box ? boxes.reduce((sum, other) => sum + overlap(box, other), 0) : 0
  }
  const beside = `${toasts} { top: ${(panel()?.top ?? BOX_END_PX) + GAP_PX}px !important; }`
  if (!room) return void covered(beside)
  const below = `
    ${toasts} { inset: auto ${room.right}px 4px ${room.left}px !important; width: auto; }
    .p-toast-message.${style} { margin: 4px 0 0; }
    ${rowCss(style)}
  `
  const over = covered(below)
  if (over && covered(beside) >= over) covered(below)
}

// Moves the graph down as far as ComfyUI's box would cover the node.
export function uncover(nodeId) {
  const [own, box] = [document.querySelector(OWN_BOX)?.getBoundingClientRect(), boxOf(nodeId)]
  if (!own || !box || !overlap(own, box)) return
  app.canvas.ds.offset[1] += (own.bottom + GAP_PX - box.top) / app.canvas.ds.scale
  app.canvas.setDirty(true, true)
}
