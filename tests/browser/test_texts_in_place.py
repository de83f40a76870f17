"""Where messages stand in the real frontend: a text on a node grows over no other one and breaks at words, an app's
form stays free, and a number that ComfyUI rounds is spoken of."""

import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

from playwright.sync_api import Locator, expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import TEMPLATES
from cogvideox.tests.browser.test_errors_shown import toast

# Runs in the page: a text for all prompts, which run for one step.
_RUN_WITH = """
async text => {
  const { api } = await import('/scripts/api.js')
  const of = type => app.graph.nodes.filter(node => node.type === type)
  for (const node of of('CogVideoXEncodeText')) node.widgets.find(w => w.name === 'text').value = `${text} ${node.id}`
  for (const node of of('CogVideoXSample')) node.widgets.find(w => w.name === 'steps').value = 1
  const ended = new Promise(done => api.addEventListener('execution_success', () => done(true), { once: true }))
  await app.queuePrompt(0)
  await ended
}
"""
# [top, bottom] of the prompts' nodes and of those in their column, from the top, in the graph's pixels.
_COLUMN = """
() => {
  const left = app.graph.nodes.find(node => node.type === 'CogVideoXEncodeText').pos[0]
  return app.graph.nodes.filter(node => node.pos[0] === left).map(node => {
    const box = document.querySelector(`[data-node-id="${node.id}"]`)
    const [top, title] = [node.pos[1], LiteGraph.NODE_TITLE_HEIGHT]
    return [top - title, top + (box ? box.offsetHeight - title : node.size[1])]
  }).sort((a, b) => a[0] - b[0])
}
"""
_TEXTS = ".max-h-\\\\[200px\\\\].min-h-\\\\[28px\\\\], .widget-markdown > .comfy-markdown-content"
# Of the texts on nodes that say of words that the toy does not know them: how high the box is, and the words that stand
# on two lines.
_BROKEN = f"""
() => [...document.querySelectorAll('{_TEXTS}')].filter(box => box.innerText.includes('does not know')).map(box => {{
  const [texts, broken] = [document.createTreeWalker(box, NodeFilter.SHOW_TEXT), []]
  while (texts.nextNode())
    for (const found of texts.currentNode.data.matchAll(/[A-Za-z]+/g)) {{
      const range = document.createRange()
      range.setStart(texts.currentNode, found.index)
      range.setEnd(texts.currentNode, found.index + found[0].length)
      if (new Set([...range.getClientRects()].map(line => Math.round(line.top))).size > 1) broken.push(found[0])
    }}
  return [box.clientHeight, broken]
}})
"""
_UNKNOWN = "A cinematic zebra and a lion walk through the savanna at sunset"  # more than the toy reads, too
OpenAs = Callable[..., AbstractContextManager[Frontend]]


def load(frontend: Frontend, number: str, checkpoint: str = "") -> None:
    """Open a template as a graph that the page has not had before. checkpoint: in the place of the toy."""
    (file,) = TEMPLATES.glob(f"{number} *.json")
    workflow = json.loads(file.read_text("utf-8")) | {"id": str(uuid.uuid4())}
    for node in workflow["nodes"]:
        if checkpoint and node["type"] == "CogVideoXLoadPipeline":
            node["widgets_values"][0] = checkpoint
    frontend.load(workflow, file.stem)


def check_warnings(frontend: Frontend, text: str) -> None:
    """What the first prompt's node said hid the whole negative prompt, and broke lines within words."""
    load(frontend, "01")
    frontend.page.evaluate(_RUN_WITH, text)
    frontend.page.wait_for_function(f"() => ({_BROKEN})().length === 2")
    frontend.page.wait_for_timeout(500)  # until the nodes have their heights
    boxes = frontend.page.evaluate(_COLUMN)
    assert len(boxes) == 3
    assert all(bottom <= top for (_, bottom), (top, _) in zip(boxes, boxes[1:])), boxes
    (height, broken), (lower, more) = frontend.page.evaluate(_BROKEN)
    assert broken == more == []
    assert max(height, lower) > 120 and min(height, lower) > 40, "there is no room to read it"


def test_a_warning_grows_over_no_node(one_page: Frontend) -> None:
    check_warnings(one_page, _UNKNOWN)


def test_a_warning_grows_over_no_node_in_the_newer_renderer(vue_page: Frontend) -> None:
    check_warnings(vue_page, f"{_UNKNOWN} again")


def check_beside_the_form(frontend: Frontend, ours: Locator) -> None:
    frontend.page.wait_for_timeout(1_500)  # until it stays where it is
    box, form = ours.bounding_box(), frontend.page.get_by_test_id("linear-widgets").bounding_box()
    assert box is not None and form is not None
    assert 0 <= box["x"] and box["x"] + box["width"] <= form["x"]
    assert box["y"] >= 38, "it lies over the tabs"


def test_an_app_says_beside_its_form_that_a_model_is_missing(one_page: Frontend) -> None:
    load(one_page, "41", "CogVideoX-5b")
    ours = toast(one_page, "There is no 'CogVideoX-5b'.")
    expect(ours).to_be_visible()
    check_beside_the_form(one_page, ours)
    check_way_to_the_nodes(one_page, ours, "Enter node graph")
    load(one_page, "41")
    expect(ours).to_have_count(0)


def check_way_to_the_nodes(frontend: Frontend, ours: Locator, button: str) -> None:
    """An app told to add a node, and has none: the sentence names ComfyUI's button, and that one leads to the nodes."""
    center = frontend.page.get_by_test_id("linear-center-panel")
    expect(ours).to_contain_text(f"“{button}”")
    frontend.page.get_by_role("button", name=button).locator("visible=true").first.click()
    expect(center).to_be_hidden()
    frontend.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    expect(center).to_be_visible()


def test_a_refusal_in_an_app_is_headed_as_the_form_is(one_page: Frontend) -> None:
    """Its title was that of a node, which the form does not show."""
    load(one_page, "41", "CogVideoX-5b")
    form = one_page.page.get_by_test_id("linear-widgets")
    form.wait_for()
    one_page.page.evaluate("() => app.queuePrompt(0)")
    ours = one_page.page.locator(".p-toast-message.cogvideox-error")
    expect(ours.locator(".p-toast-summary")).to_have_text("Checkpoint")
    assert "Checkpoint" in form.inner_text().splitlines()
    expect(ours).to_contain_text("An app shows no nodes")
    one_page.console.clear()  # the refusal


def test_an_app_in_graph_mode_has_titles(one_page: Frontend) -> None:
    load(one_page, "41", "CogVideoX-5b")
    one_page.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    expect(one_page.page.get_by_test_id("linear-center-panel")).to_be_hidden()
    one_page.page.evaluate("() => app.queuePrompt(0)")
    ours = one_page.page.locator(".p-toast-message.cogvideox-error")
    expect(ours.locator(".p-toast-summary")).to_have_text("Load CogVideoX Pipeline")
    assert "An app" not in ours.inner_text()
    one_page.console.clear()  # the refusal


def test_an_app_says_what_is_wrong_beside_its_form(one_page: Frontend) -> None:
    """The toast lay over the form, did not say how many frames fit, and spoke of a node, which a form has not. What is
    right need not be set."""
    page = one_page.page
    load(one_page, "42")
    form = page.get_by_test_id("linear-widgets")
    form.wait_for()
    assert "Frames (this toy: 17)" in form.inner_text().splitlines()
    page.evaluate("""() => {
      const start = app.graph.nodes.find(node => node.type === 'CogVideoXImageToVideo')
      start.widgets.find(widget => widget.name === 'frames').value = 9
      app.queuePrompt(0)
    }""")
    ours = toast(one_page, "the video is 64 x 64 with 9. Set frames to 17.")
    expect(ours).to_be_visible(timeout=60_000)
    assert "CogVideoX Positions" not in ours.inner_text() and "node" not in ours.inner_text()
    expect(ours.locator(".p-toast-summary")).to_have_text("CogVideoX")  # not the title of a node that nobody sees
    check_beside_the_form(one_page, ours)
    page.get_by_test_id("linear-view-errors").click()
    expect(ours).to_have_count(0)  # the graph has the text on its node
    one_page.console.clear()  # the failure, and the picture of a file without a name


# Runs in the page: an app with so many frames, for one step.
_RUN_FAR = """
async frames => {
  const { api } = await import('/scripts/api.js')
  const set = (type, name, value) => {
    app.rootGraph.nodes.find(node => node.type === type).widgets.find(widget => widget.name === name).value = value
  }
  set('CogVideoXEmptyLatent', 'frames', frames)
  set('CogVideoXSample', 'steps', 1)
  const ended = new Promise(done => api.addEventListener('execution_success', () => done(true), { once: true }))
  await app.queuePrompt(0)
  await ended
}
"""


def test_an_app_warns_beside_its_form(one_page: Frontend) -> None:
    """That the toy was not trained with a size stood on a node alone, which an app hides."""
    load(one_page, "41")
    one_page.page.get_by_test_id("linear-widgets").wait_for()
    one_page.page.evaluate(_RUN_FAR, 105)
    ours = toast(one_page, "with 105 frames is far from that")
    expect(ours).to_have_count(1)
    expect(ours).to_contain_class("p-toast-message-warn")
    expect(ours).to_contain_text("Set 64 × 64 with 17 frames.")
    expect(ours.locator(".p-toast-summary")).to_have_text("CogVideoX")
    check_beside_the_form(one_page, ours)
    one_page.page.evaluate(_SEND, ["warning", {"node_ids": ["1"], "text": "A warning."}])
    one_page.page.evaluate(_SEND, ["warning", {"node_ids": ["2"], "text": "A warning."}])
    expect(toast(one_page, "A warning.")).to_have_count(1)  # two nodes that say the same
    one_page.page.evaluate(_RUN_FAR, 17)
    expect(one_page.page.locator(".p-toast-message")).to_have_count(0)


def test_a_graph_has_warnings_on_its_nodes(one_page: Frontend) -> None:
    load(one_page, "01")
    one_page.page.evaluate(_SEND, ["warning", {"node_ids": ["1"], "text": "A warning."}])
    one_page.page.wait_for_timeout(300)
    expect(one_page.page.locator(".p-toast-message")).to_have_count(0)


_SEND = """
async ([name, detail]) => {
  const { api } = await import('/scripts/api.js')
  api.dispatchEvent(new CustomEvent(`cogvideox.${name}`, { detail }))
}
"""


def test_a_refusal_that_comes_late_is_of_no_other_graph(one_page: Frontend) -> None:
    """It stood over the workflow that had been opened meanwhile, with the title of a node there."""
    error = ["error", {"node_ids": ["1"], "text": "A sentence.", "is_refusal": True, "input": ""}]
    load(one_page, "01")
    one_page.page.evaluate(_SEND, ["forget", {}])  # as the server begins to check a prompt
    load(one_page, "02")
    one_page.page.evaluate(_SEND, error)
    one_page.page.evaluate(_SEND, ["more_errors", {"text": "One more."}])
    one_page.page.wait_for_timeout(500)
    expect(one_page.page.locator(".p-toast-message")).to_have_count(0)
    one_page.page.evaluate(_SEND, ["error", {"node_ids": ["1"], "text": "Of a run.", "is_refusal": False, "input": ""}])
    expect(toast(one_page, "Of a run.")).to_be_visible()  # of another one, which was queued before
    one_page.page.evaluate(_SEND, ["forget", {}])
    one_page.page.evaluate(_SEND, error)
    expect(toast(one_page, "A sentence.")).to_be_visible()


# Runs in the page: the text of a node's number, as the server sends it; how many widgets and what height the note has
# before and after.
_TEXT_OF_A_NOTE = """
async texts => {
  const { api } = await import('/scripts/api.js')
  const note = app.graph.nodes.find(node => node.type === 'MarkdownNote')
  const found = [[note.widgets.length, note.size[1]]]
  for (const text of texts) {
    api.dispatchEvent(new CustomEvent('progress_text', { detail: { nodeId: String(note.id), text } }))
    await new Promise(done => setTimeout(done, 100))
    found.push([note.widgets.length, note.size[1]])
  }
  return found
}
"""


def test_a_text_that_is_taken_back_leaves_no_room(one_page: Frontend) -> None:
    """It is taken back by the node's number, which may be a note's in the workflow that is open by then: the note had
    half of its height."""
    load(one_page, "01")
    (widgets, height), with_text, after = one_page.page.evaluate(_TEXT_OF_A_NOTE, ["A text.", " "])
    assert with_text[0] == widgets + 1 and after == [widgets, height]


# Runs in the page: a text that is taken back of a node that has had none, and a drawing right after it. The node's
# height before and after.
_TAKEN_BACK = """
async () => {
  const { api } = await import('/scripts/api.js')
  app.graph.clear()
  const node = LiteGraph.createNode('CreateVideo')
  app.graph.add(node)
  const height = node.size[1]
  api.dispatchEvent(new CustomEvent('progress_text', { detail: { nodeId: String(node.id), text: ' ' } }))
  app.canvas.draw(true, true)
  await new Promise(done => setTimeout(done, 300))
  return [height, node.size[1], node.widgets.length]
}
"""


def test_no_text_makes_no_room(one_page: Frontend) -> None:
    """In a workflow that is opened while another one's run ends, a node of the same number grew over the next one."""
    widgets = "() => LiteGraph.createNode('CreateVideo').widgets.length"
    before, after, count = one_page.page.evaluate(_TAKEN_BACK)
    assert after == before and count == one_page.page.evaluate(widgets)


# Runs in the page: two nodes below each other, so many pixels apart, the upper one with a text of several lines. By the
# gaps, where the upper one ends and the lower one begins, and what toasts say; then the lower ones are moved down, and
# the same again.
_SQUEEZED = """
async ([gaps, text]) => {
  const { api } = await import('/scripts/api.js')
  const title = LiteGraph.NODE_TITLE_HEIGHT, wait = ms => new Promise(done => setTimeout(done, ms))
  app.graph.clear()
  const pairs = gaps.map((gap, index) => {
    const [upper, lower] = [1, 2].map(() => LiteGraph.createNode('CogVideoXLoadVAE'))
    upper.pos = [400 * index, 0]
    app.graph.add(upper)
    lower.pos = [400 * index, upper.size[1] + title + gap]
    app.graph.add(lower)
    return [upper, lower]
  })
  await wait(300)
  const look = () => [pairs.map(([upper, lower]) => [upper.pos[1] + upper.size[1], lower.pos[1] - title]),
    [...document.querySelectorAll('.p-toast-detail')].map(detail => detail.innerText)]
  for (const [node] of pairs)
    api.dispatchEvent(new CustomEvent('progress_text', { detail: { nodeId: String(node.id), text } }))
  await wait(2000)
  const squeezed = look()
  for (const [, lower] of pairs) lower.pos[1] += 200
  document.dispatchEvent(new PointerEvent('pointerup'))
  await wait(500)
  return [squeezed, look()]
}
"""


def test_a_text_lies_over_no_node_however_near(one_page: Frontend) -> None:
    """It took two lines where there was less room, over the title of the next node."""
    gaps, text = [140, 60, 34, 20, 4], "There is no such file. " * 12
    (squeezed, told), (apart, told_apart) = one_page.page.evaluate(_SQUEEZED, [gaps, text])
    heights = [end for end, _ in squeezed]
    assert all(end <= below for end, below in squeezed), squeezed
    assert heights[0] > heights[1] > heights[2] > heights[3] == heights[4], "what is free is not used"
    # Where not even a line fits, a toast has it; where there is room again, the node.
    assert (told, told_apart) == ([text.strip()], [])
    assert all(height + 100 < end <= below for height, (end, below) in zip(heights[1:], apart[1:])), apart


# Runs in the page: a node with no room for a text, and the node below it. Returns the ids of both.
_NO_ROOM = """
() => {
  app.graph.clear()
  const [upper, lower] = [1, 2].map(() => LiteGraph.createNode('CogVideoXLoadVAE'))
  app.graph.add(upper)
  lower.pos = [0, upper.size[1] + LiteGraph.NODE_TITLE_HEIGHT + 4]
  app.graph.add(lower)
  return [upper.id, lower.id]
}
"""
_SAY = """
async ([id, texts, pause]) => {
  const { api } = await import('/scripts/api.js')
  for (const text of texts) {
    api.dispatchEvent(new CustomEvent('progress_text', { detail: { nodeId: String(id), text } }))
    await new Promise(done => setTimeout(done, pause))
  }
}
"""
_CLICK = "() => document.dispatchEvent(new PointerEvent('pointerup'))"


def test_a_toast_that_was_closed_stays_closed(one_page: Frontend) -> None:
    """Each click on the page brought it back, that on its cross as well, until the nodes were moved apart."""
    page = one_page.page
    upper, lower = page.evaluate(_NO_ROOM)
    page.evaluate(_SAY, [upper, ["There is no such file."], 0])
    told = toast(one_page, "There is no such file.")
    expect(told).to_have_count(1)
    page.locator(".p-toast-close-button").click()
    expect(told).to_have_count(0)
    page.evaluate(_CLICK)
    page.wait_for_timeout(2000)
    expect(told).to_have_count(0)
    page.evaluate(_SAY, [upper, ["There is no other file."], 0])
    other = toast(one_page, "There is no other file.")
    expect(other).to_have_count(1)
    page.evaluate("id => { app.graph.getNodeById(id).pos[1] += 300 }", lower)
    page.evaluate(_CLICK)
    expect(other).to_have_count(0)  # the node has it
    upper, _ = page.evaluate(_NO_ROOM)
    page.evaluate(_SAY, [upper, ["There is no third file."], 0])
    expect(toast(one_page, "There is no third file.")).to_have_count(1)
    load(one_page, "01")
    expect(toast(one_page, "There is no third file.")).to_have_count(0)


def test_a_text_that_changes_or_goes_is_no_toast(one_page: Frontend) -> None:
    """A download says five times a second how far it is: each was a toast of its own. And one that the next prompt had
    taken back came after it."""
    page = one_page.page
    upper, _ = page.evaluate(_NO_ROOM)
    page.evaluate(_SAY, [upper, [f"{done} MB of 9.00 GB" for done in range(8)], 300])
    expect(page.locator(".p-toast-message")).to_have_count(0)
    expect(toast(one_page, "7 MB of 9.00 GB")).to_have_count(1)
    page.evaluate(_SAY, [upper, ["An error.", " "], 200])
    page.wait_for_timeout(2000)
    expect(page.locator(".p-toast-message")).to_have_count(0)


# Runs in the page: so many nodes, each over the one above, with a title and a text of its own. Returns their ids.
_STACKED = """
async count => {
  const { api } = await import('/scripts/api.js')
  app.graph.clear()
  const nodes = [...Array(count)].map((_, index) => {
    const node = LiteGraph.createNode('CogVideoXLoadVAE')
    node.pos = [0, 40 * index]
    node.title = `Loader ${index}`
    app.graph.add(node)
    return node
  })
  nodes.forEach(({ id }, index) => {
    const detail = { nodeId: String(id), text: `${index} is missing.` }
    api.dispatchEvent(new CustomEvent('progress_text', { detail }))
  })
  return nodes.map(({ id }) => String(id))
}
"""


def test_many_nodes_without_room_make_a_few_toasts(one_page: Frontend) -> None:
    """200 loaders that lay over each other made 167 toasts, and the page did not answer for more than a minute."""
    page = one_page.page
    load(one_page, "01")  # the toasts of another graph go
    page.evaluate(_STACKED, 8)
    ours = page.locator(".p-toast-message.cogvideox-text")
    expect(ours).to_have_count(3)
    page.wait_for_timeout(500)
    expect(ours).to_have_count(3)


def test_a_node_of_a_joined_error_has_no_toast_of_its_own(one_page: Frontend) -> None:
    """The toast of many nodes names three of them: each of the others had another one."""
    page = one_page.page
    load(one_page, "01")
    ids = page.evaluate(_STACKED, 8)
    page.evaluate(_SEND, ["error", {"node_ids": ids, "text": "Several.", "is_refusal": False, "input": ""}])
    expect(toast(one_page, "Several.")).to_be_visible()
    page.wait_for_timeout(2500)
    expect(page.locator(".p-toast-message")).to_have_count(1)
