"""A graph that applies a LoRA, built and run in the browser."""

# Load -> Apply LoRA -> Save LoRA, and run it.
RUN_LORA = """
([pipeline, lora]) => {
  app.graph.clear()
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = [100, 200]  // where the nodes are drawn, whatever the page had before
  window.outcome = null
  app.api.addEventListener('execution_success', () => { window.outcome = 'success' })
  app.api.addEventListener('execution_error', e => { window.outcome = e.detail.exception_message })
  const add = (type, values) => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name]
    return node
  }
  const load = add('CogVideoXLoadPipeline', {folder: pipeline})
  const apply = add('CogVideoXApplyLora', {lora_name: lora})
  const save = add('CogVideoXSaveLora', {filename_prefix: 'loras/from_a_browser_test'})
  load.connect(0, apply, apply.findInputSlot('model'))
  apply.connect(0, save, save.findInputSlot('model'))
  app.queuePrompt(0)
}
"""
