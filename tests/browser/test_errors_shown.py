"""An error's sentence on the node that failed and in the toast, in the real frontend, and what is left of it later."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import Locator, expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import ROOT, TEMPLATES
from cogvideox.tests.browser.page_scripts import COVERED, OPEN_TEMPLATE

# Load a pipeline and run it with prompts that are not for it, in ComfyUI's own sampler.
_GRAPH = """
([model, frames]) => {
  app.graph.clear()
  const add = (type, x, values) => {
    const node = LiteGraph.createNode(type)
    node.pos = [x, 100]
    app.graph.add(node)
    for (const widget of node.widgets ?? []) if (widget.name in (values ?? {})) widget.value = values[widget.name]
    return node
  }
  const load = add('CogVideoXLoadPipeline', 50, {folder: model})
  const text = add('CogVideoXEncodeText', 400)
  const latent = add('CogVideoXEmptyLatent', 800, {width: 64, height: 64, frames})
  const sample = add('KSampler', 1200, {steps: 1, scheduler: 'simple'})
  const decode = add('CogVideoXDecode', 1200)
  const preview = add('PreviewImage', 1500)
  load.connect(1, text, 0)
  load.connect(0, sample, 0)
  text.connect(0, sample, 1)
  text.connect(0, sample, 2)
  latent.connect(0, sample, 3)
  load.connect(2, decode, 0)
  sample.connect(0, decode, 1)
  decode.connect(0, preview, 0)
  window.ids = {load: load.id, latent: latent.id, sample: sample.id}
}
"""
_MANY = """
([count, step]) => {
  app.graph.clear()
  for (let number = 0; number < count; number++) {
    const [latent, save] = ['CogVideoXEmptyLatent', 'SaveLatent'].map(type => LiteGraph.createNode(type))
    app.graph.add(latent)
    app.graph.add(save)
    latent.widgets.find(widget => widget.name === 'frames').value = 50 + number * step
    latent.connect(0, save, 0)
  }
}
"""
_RUN = """
async () => {
  const ended = ['execution_success', 'execution_error']
  const run = new Promise(done => ended.forEach(name => api.addEventListener(name, () => done(name), {once: true})))
  await app.queuePrompt(0)
  return await run
}
"""
_TEXT = """
name => app.graph.getNodeById(window.ids[name]).widgets
  .filter(widget => widget.name === '$$node-text-preview').map(widget => widget.value).join('').trim()
"""
_SET = """
([name, widget, value]) => {
  app.graph.getNodeById(window.ids[name]).widgets.find(found => found.name === widget).value = value
}
"""
# Moves the graph so that a node is where ComfyUI's own box comes up, its texts and buttons in sight.
_UNDER_THE_BOX = """
type => {
  const node = app.graph.nodes.find(node => node.type === type), {ds} = app.canvas
  ds.offset = [(innerWidth - 350) / ds.scale - node.pos[0], 150 / ds.scale - node.pos[1]]
  app.canvas.setDirty(true, true)
}
"""
_SET_FRAMES = """
value => {
  const latent = app.graph.nodes.find(node => node.type === 'CogVideoXEmptyLatent')
  latent.widgets.find(widget => widget.name === 'frames').value = value
}
"""
_MESSAGES = ".p-toast-message, [data-testid=error-overlay]"
_AT_AN_ADDRESS = """
() => {
  app.graph.clear()
  const [load, ranks, save] = ['CogVideoXLoadPipeline', 'CogVideoXParallel', 'CogVideoXMemoryForecast'].map(type => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    return node
  })
  ranks.pos = [500, 100]
  save.pos = [1000, 100]
  ranks.widgets.find(widget => widget.name === 'address').value = '10.0.0.1:6379'
  load.connect(0, ranks, 'model')
  ranks.connect(0, save, 'model')
  window.ids = {ranks: ranks.id}
}
"""
WRONG_MODEL = "Pass positive and negative through CogVideoX Image to Video"
WRONG_FRAMES = "frames 50 is not 4k + 1 (8k + 1 as the models were trained): use 49 or 57, or else 53."


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.long), True], ids=["classic", "vue"])
def page_of(
    request: pytest.FixtureRequest, open_as: Callable[..., AbstractContextManager[Frontend]]
) -> Iterator[Frontend]:
    """A page in each of the two renderers, one for all tests: each begins with another graph."""
    with open_as(Comfy__VueNodes__Enabled=request.param, Comfy__Minimap__Visible=False) as opened:
        opened.page.evaluate("async () => { window.api = (await import('/scripts/api.js')).api }")
        yield opened


def toast(frontend: Frontend, text: str) -> Locator:
    return frontend.page.locator(".p-toast-message").filter(has_text=text)


def test_scripts_that_are_served_twice(page_of: Frontend) -> None:
    # A second copy of the pack serves them as well, and ComfyUI refuses the second extension of one name.
    page, before = page_of.page, len(page_of.console)
    scripts = page.evaluate("async () => (await (await fetch('/extensions')).json()).filter(p => p.includes('/js/'))")
    names = {path.name for path in (ROOT / "web" / "js").glob("*.js")}
    ours = [path for path in scripts if path.rsplit("/", 1)[1] in names]
    assert sorted(path.rsplit("/", 1)[1] for path in ours) == sorted(names)
    for path in ours:
        page.evaluate("path => import(path + '?again')", path)
    assert page_of.console[before:] == []


def test_a_refused_prompt(page_of: Frontend) -> None:
    # A number of frames that does not fit gets its sentence, where it comes past the widget: from a file or a link.
    page = page_of.page
    page.evaluate(_GRAPH, ["CogVideoX-nano 5b", 50])
    page.evaluate("() => app.queuePrompt(0)")
    expect(toast(page_of, WRONG_FRAMES)).to_have_count(1)
    assert page.evaluate(_TEXT, "latent") == WRONG_FRAMES
    expect(page.get_by_text(WRONG_FRAMES).nth(1)).to_be_visible()
    page.evaluate(_SET, ["latent", "frames", 9])
    assert page.evaluate(_RUN) == "execution_success"
    expect(toast(page_of, WRONG_FRAMES)).to_have_count(0)
    assert page.evaluate(_TEXT, "latent") == ""


def test_an_address_that_nobody_allowed(page_of: Frontend) -> None:
    """A stranger's workflow brings one: before anything runs, a sentence says who may allow it."""
    page = page_of.page
    page.evaluate(_AT_AN_ADDRESS)
    page.evaluate("() => app.queuePrompt(0)")
    expect(toast(page_of, "10.0.0.1:6379 is not called")).to_have_count(1)
    expect(toast(page_of, "CogVideoX Parallel")).to_have_count(1)
    assert "COGVIDEOX_RAY_ADDRESSES=10.0.0.1:6379" in page.evaluate(_TEXT, "ranks")


@pytest.mark.parametrize("under_the_box", [False, True])
def test_nothing_covers_the_node_that_failed(page_of: Frontend, under_the_box: bool) -> None:
    """The toast and ComfyUI's own box lay over two nodes of the first template, whichever it was that had failed."""
    page, (file,) = page_of.page, TEMPLATES.glob("01 *.json")
    page.evaluate(OPEN_TEMPLATE, [json.loads(file.read_text("utf-8")), f"{file.stem} {under_the_box}"])
    page_of.settle()
    page.evaluate(_SET_FRAMES, 50)
    if under_the_box:
        page.evaluate(_UNDER_THE_BOX, "CogVideoXEmptyLatent")
    page.evaluate("() => app.queuePrompt(0)")
    ours, theirs = toast(page_of, WRONG_FRAMES), page.get_by_test_id("error-overlay")
    expect(ours).to_be_visible()
    expect(theirs).to_be_visible()
    page.wait_for_timeout(1_500)  # until the last of PLACED_MS, when the graph has moved from under them
    assert "CogVideoXEmptyLatent" not in page.evaluate(COVERED, _MESSAGES)
    if not under_the_box:  # as it was opened, the toast covers no node at all
        assert page.evaluate(COVERED, ".p-toast-message") == []
    for box in (ours.bounding_box(), theirs.bounding_box()):
        assert box is not None and box["x"] >= 0 and box["y"] + box["height"] <= 900
    page_of.console.clear()  # the refusal


def test_many_refused_nodes(page_of: Frontend) -> None:
    # A hundred toasts covered the page, which did not answer for seconds: a few are shown, and one counts the others.
    page = page_of.page
    page.evaluate(_MANY, [6, 4])
    page.evaluate("() => app.queuePrompt(0)")
    expect(toast(page_of, "3 more errors are shown on their nodes.")).to_be_visible(timeout=15_000)
    expect(toast(page_of, "is not 4k + 1")).to_have_count(3)
    expect(toast(page_of, WRONG_FRAMES)).to_have_count(1)
    expect(toast(page_of, "more error")).to_have_count(1)
    texts = "() => app.graph._nodes.flatMap(n => n.widgets ?? []).filter(w => w.name === '$$node-text-preview').length"
    assert page.evaluate(texts) == 6
    page.evaluate(_GRAPH, ["CogVideoX-nano 5b", 9])
    assert page.evaluate(_RUN) == "execution_success"
    expect(toast(page_of, "error")).to_have_count(0)


def test_a_title_is_cut_off(page_of: Frontend) -> None:
    """A workflow's title of 20,000 letters, or of 300 lines, made a toast that was higher than the page."""
    page = page_of.page
    page.evaluate(_MANY, [2, 0])
    page.evaluate("""() => {
      const ours = app.graph.nodes.filter(node => node.type === 'CogVideoXEmptyLatent')
      for (const [node, title] of [[ours[0], 'A'.repeat(20000)], [ours[1], 'b\\n'.repeat(300)]]) node.title = title
    }""")
    page.evaluate("() => app.queuePrompt(0)")
    ours = toast(page_of, WRONG_FRAMES)
    expect(ours).to_have_count(1)
    page.wait_for_timeout(500)
    box = ours.bounding_box()
    assert box is not None and box["height"] < 200
    expect(page.locator(".p-toast-summary")).to_contain_text("A …, b b b")


def test_the_same_of_many_nodes_is_one_toast(page_of: Frontend) -> None:
    """Six said the same. Each node keeps its text."""
    page = page_of.page
    page.evaluate(_MANY, [6, 0])
    page.evaluate("() => app.queuePrompt(0)")
    expect(toast(page_of, WRONG_FRAMES).filter(has_text="Empty CogVideoX Latent (6)")).to_have_count(1)
    texts = "() => app.graph._nodes.flatMap(n => n.widgets ?? []).filter(w => w.name === '$$node-text-preview').length"
    assert page.evaluate(texts) == 6


def test_an_error_in_a_stock_node(page_of: Frontend) -> None:
    # The commonest of all: a model with another model's conditioning, in KSampler.
    page = page_of.page
    page.evaluate(_GRAPH, ["CogVideoX-nano 5b-I2V", 9])
    assert page.evaluate(_RUN) == "execution_error"
    expect(toast(page_of, WRONG_MODEL)).to_be_visible()
    expect(toast(page_of, "KSampler")).to_be_visible()  # its title
    assert WRONG_MODEL in page.evaluate(_TEXT, "sample")
    expect(page.get_by_text(WRONG_MODEL).nth(1)).to_be_visible()  # on the node as well
    page.get_by_role("button", name="View details").click()  # ComfyUI's own box is not covered
    page.evaluate(_SET, ["load", "folder", "CogVideoX-nano 5b"])
    assert page.evaluate(_RUN) == "execution_success"
    expect(toast(page_of, WRONG_MODEL)).to_have_count(0)
    assert WRONG_MODEL not in page.evaluate(_TEXT, "sample")
