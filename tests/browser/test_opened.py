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


def load(frontend: Frontend, number: str) -> None:
    """Open a template as another graph than those that the page had before: what was said of these is not repeated."""
    (file,) = TEMPLATES.glob(f"{number} *.json")
    workflow = json.loads(file.read_text("utf-8")) | {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{__name__}/{number}"))}
    frontend.load(workflow, file.stem)


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


def test_nothing_is_complained_of(opened: Frontend, comfyui: Server) -> None:
    """Last on their page. The page asks for the pack's own examples alone; another name gets nothing."""
    assert opened.console == []
    with pytest.raises(urllib.error.HTTPError, match="404"):
        request(f"{comfyui.url}{EXAMPLE_ROUTE}?example=no_such", b"")
