"""What the real frontend shows as soon as a template is opened, before Run: its example, and what to do about a model
that is not there."""

import json
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import Route, expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import TEMPLATES
from cogvideox.devtools.server import Server, request
from cogvideox.nodes.opened_graph import EXAMPLE_ROUTE, MISSING_ROUTE
from cogvideox.tests.browser.page_scripts import COVERED, OPEN_TEMPLATE
from cogvideox.tests.browser.test_errors_shown import toast

# Which nodes have changed since the workflow was opened, and in what: a change marks the workflow as modified.
_CHANGED = """
() => {
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker
  tracker.captureCanvasState()  // as at each click
  const opened = new Map(tracker.initialState.nodes.map(node => [node.id, node]))
  const parts = node => Object.keys({...node, ...opened.get(node.id)})
  const differs = (node, part) => JSON.stringify(node[part]) !== JSON.stringify(opened.get(node.id)?.[part])
  return tracker.activeState.nodes.flatMap(node => parts(node).filter(part => differs(node, part))
    .map(part => [node.type, part]))
}
"""
# The widths of the pictures that the classic renderer draws on each example.
_DRAWN = "() => app.graph.nodes.filter(n => n.type === 'CogVideoXExample').map(n => n.imgs?.map(i => i.naturalWidth))"
_EXAMPLE_PX = 256  # four times the toy's 64


@pytest.fixture(scope="module")
def opened(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    """One page for all tests. It begins in the classic renderer; the last test changes to the newer one."""
    with open_as(Comfy__VueNodes__Enabled=False, Comfy__Minimap__Visible=False) as frontend:
        yield frontend


def load(frontend: Frontend, number: str, of: str = "") -> None:
    """Open a template as another graph than those that the page had before: what was said of these is not repeated. of:
    the test, where others open the same one."""
    (file,) = TEMPLATES.glob(f"{number} *.json")
    id_ = uuid.uuid5(uuid.NAMESPACE_URL, f"{__name__}/{number}{of}")
    workflow = json.loads(file.read_text("utf-8")) | {"id": str(id_)}
    frontend.page.evaluate(OPEN_TEMPLATE, [workflow, file.stem])
    frontend.settle()


def test_a_picture_is_shown_before_a_run(opened: Frontend) -> None:
    """The node of the template was empty until Run. To show it is no change of the workflow."""
    load(opened, "02")
    opened.page.wait_for_function(f"() => JSON.stringify(({_DRAWN})()) === '[[{_EXAMPLE_PX}]]'")
    assert opened.page.evaluate(_CHANGED) == []


def test_a_missing_model_has_one_sentence(opened: Frontend) -> None:
    """Nothing but a note said that the checkpoint is not there. It goes with its workflow, and an answer that comes
    when another one is open is not shown there."""
    late: list[Route] = []
    opened.page.route(f"**{MISSING_ROUTE}", lambda route: late.append(route))
    load(opened, "22")
    load(opened, "02")
    with opened.page.expect_response(f"**{MISSING_ROUTE}"):
        late.pop().continue_()
    opened.page.unroute(f"**{MISSING_ROUTE}")
    opened.page.wait_for_timeout(200)
    expect(opened.page.locator(".p-toast-message")).to_have_count(0)
    load(opened, "22")
    ours = toast(opened, "There is no 'CogVideoX-5b'.")
    expect(ours).to_contain_text("Select CogVideoX Download, the violet node, press Ctrl+B, then Run (")
    expect(opened.page.locator(".p-toast-message")).to_have_count(1)
    assert opened.page.evaluate(_CHANGED) == []
    load(opened, "02")
    expect(ours).to_have_count(0)


# What a graph may hold in the place of [{"name": ...}, ...].
_NO_LISTS = [5, "models", {"name": 1}, {"length": 1}, True, [None], [5, None, "x"], [[]], [{"name": None}], [{}]]


def test_a_graph_that_somebody_has_broken_is_told_of_as_well(opened: Frontend) -> None:
    """A malformed list of files silenced the page, as did names that are longer together than a question may be."""
    name, many = "x" * 20_000, 12
    loader = {"type": "CogVideoXLoadPipeline", "size": [300, 100], "flags": {}, "mode": 0, "order": 0, "inputs": []}
    nodes = [
        loader
        | {"id": number, "pos": [0, 200 * number], "outputs": []}
        | {"properties": {"models": wrong}, "widgets_values": [f"{number} {name}", "default", "detect"]}
        for number, wrong in enumerate((_NO_LISTS * 2)[:many], 1)
    ]
    graph = {"id": str(uuid.uuid4()), "nodes": nodes, "links": [], "groups": [], "version": 0.4, "extra": {}}
    opened.page.evaluate("graph => { app.loadGraphData(graph) }", graph)
    ours = toast(opened, f"Models are missing: '1 {'x' * 98} …', '2 ")
    expect(ours).to_be_visible()
    expect(ours).to_contain_text(f" …' and {many - 3} more. ")
    # The frontend complains of such a graph too, in a toast and in the console.
    opened.page.evaluate("() => app.extensionManager.toast.removeAll()")
    opened.console[:] = [line for line in opened.console if "/assets/" not in line]


SIZES = [(1600, 1000), (1280, 720)]
LINES = ["22", "31"]  # templates whose sentence has two lines at most, and three


def check_covered(frontend: Frontend, number: str, size: tuple[int, int], renderer: str) -> None:
    """The sentence lay over Create Video."""
    page, usual = frontend.page, frontend.page.viewport_size
    assert usual is not None
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', true)")
    load(frontend, number, f"{size} {renderer}")
    ours = page.locator(".p-toast-message", has_text="There is no ")
    expect(ours).to_have_count(1)  # that of the template before leaves
    page.wait_for_timeout(500)  # until it and the graph are where they stay
    assert page.evaluate(COVERED, ".p-toast-message") == []
    box = ours.bounding_box()
    assert box is not None and box["x"] >= 0 and box["y"] + box["height"] <= size[1]
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
    page.set_viewport_size(usual)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", LINES)
def test_the_sentence_covers_nothing(opened: Frontend, number: str, size: tuple[int, int]) -> None:
    check_covered(opened, number, size, "classic")


def test_a_refused_run_says_it_once(opened: Frontend) -> None:
    """The sentence of the opened graph stayed beside that of the refused run. What the loader then shows lay over the
    note, which says the same at more length."""
    load(opened, "22", "run")
    expect(toast(opened, "There is no 'CogVideoX-5b'.")).to_have_count(1)
    opened.page.get_by_test_id("queue-button").click()
    expect(opened.page.locator(".p-toast-message.cogvideox-error")).to_have_count(1)
    expect(toast(opened, "There is no 'CogVideoX-5b'.")).to_have_count(1)
    opened.page.wait_for_timeout(300)
    bottom, note = opened.page.evaluate("""() => ['CogVideoXLoadPipeline', 'MarkdownNote'].map(type => {
      const node = app.graph.nodes.find(node => node.type === type)
      return type === 'MarkdownNote' ? node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT : node.pos[1] + node.size[1]
    })""")
    assert bottom <= note
    opened.console.clear()  # the refusal


def test_files_that_comfyui_offers_have_none_of_ours(opened: Frontend) -> None:
    """Its own box lists them with a button that downloads each: a second sentence on the same would lie below it."""
    load(opened, "21")
    expect(opened.page.get_by_test_id("error-overlay")).to_be_visible()
    opened.page.wait_for_timeout(500)  # the sentence on template 22 is there sooner
    expect(opened.page.locator(".p-toast-message")).to_have_count(0)


def test_a_video_is_shown_in_the_newer_renderer(opened: Frontend) -> None:
    opened.page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    load(opened, "03")
    shown = opened.page.locator("[data-node-id] img[src*='cogvideox_example']")
    expect(shown).to_have_js_property("naturalWidth", _EXAMPLE_PX)
    changed = opened.page.evaluate(_CHANGED)  # this renderer itself gives notes and Save Video other heights
    assert {kind for kind, _ in changed} <= {"MarkdownNote", "SaveVideo"}, changed


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", LINES)
def test_the_sentence_covers_nothing_in_the_newer_renderer(
    opened: Frontend, number: str, size: tuple[int, int]
) -> None:
    check_covered(opened, number, size, "vue")


def test_nothing_is_complained_of(opened: Frontend, comfyui: Server) -> None:
    """Last on their page. The page asks for the pack's own examples alone; another name gets nothing."""
    assert opened.console == []
    with pytest.raises(urllib.error.HTTPError, match="404"):
        request(f"{comfyui.url}{EXAMPLE_ROUTE}?example=no_such", b"")
