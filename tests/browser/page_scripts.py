"""What tests of several files evaluate in the page."""

# As ComfyUI's list of templates does, which fits the graph into the page.
OPEN_TEMPLATE = "([workflow, name]) => app.loadGraphData(workflow, true, true, name, {openSource: 'template'})"
# What the elements that a selector finds cover: nodes, by their types, and the frontend's own map and bars, as far as
# they are there.
COVERED = """
selector => {
  const {ds, canvas} = app.canvas, {left, top} = canvas.getBoundingClientRect()
  const onPage = ([x, y], [width, height], title) => [left + (x + ds.offset[0]) * ds.scale,
    top + (y - title + ds.offset[1]) * ds.scale, left + (x + width + ds.offset[0]) * ds.scale,
    top + (y + height + ds.offset[1]) * ds.scale]
  const boxes = app.graph.nodes.map(node => [node.type, ...onPage(node.pos, node.size, LiteGraph.NODE_TITLE_HEIGHT)])
  for (const found of document.querySelectorAll('.minimap-main-container, .side-tool-bar-container, .p-buttongroup')) {
    const box = found.getBoundingClientRect()
    boxes.push([found.className, box.left, box.top, box.right, box.bottom])
  }
  return [...document.querySelectorAll(selector)].flatMap(found => {
    const box = found.getBoundingClientRect()
    return boxes.filter(([, x, y, right, bottom]) =>
      x < box.right && right > box.left && y < box.bottom && bottom > box.top).map(([what]) => what)
  })
}
"""
