"""A number that ComfyUI changes where somebody types it is spoken of in the real frontend: one that is rounded to a
widget's steps, and one beyond its limits, in both renderers, in an app and in a subgraph."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import Locator, expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import ROOT
from cogvideox.tests.browser.test_errors_shown import toast
from cogvideox.tests.browser.test_texts_in_place import load

ROUNDED = "cannot be 10: it is 9 now, the nearest one (from 1 in steps of 4)."
HIGHEST = "cannot be 5000: it is 1025 now, the highest number that is possible."
LOWEST = "cannot be 0: it is 1 now, the lowest number that is possible."
CASES = [("10", "9", ROUNDED), ("5000", "1025", HIGHEST), ("0", "1", LOWEST)]
LEAVING = ["Enter", "Tab", ""]  # as type_into takes it
# Runs in the page: brings a classic node into sight, and returns where on the page one of its numbers is. type: "" for
# the node of a subgraph.
_PLACE = """
([type, name]) => {
  const graph = app.canvas.graph
  const node = graph.nodes.find(found => type ? found.type === type : found.isSubgraphNode?.())
  const widget = node.widgets.find(found => found.name === name)
  app.canvas.ds.scale = 1
  app.canvas.centerOnNode(node)
  app.canvas.setDirty(true, true)
  app.canvas.draw(true, true)
  const { left, top } = app.canvas.canvas.getBoundingClientRect()
  const [x, y] = app.canvas.ds.offset
  return [left + node.pos[0] + node.size[0] / 2 + x, top + node.pos[1] + widget.y + 10 + y]
}
"""
_VALUE = """
([type, name]) => app.canvas.graph.nodes.find(found => type ? found.type === type : found.isSubgraphNode?.())
  .widgets.find(found => found.name === name).value
"""
# Runs in the page: what the classic renderer does where a number is typed, or with a "pointermove" dragged.
_SET = """
([name, typed, e]) => {
  const node = app.canvas.graph.nodes.find(found => found.type === 'CogVideoXEmptyLatent')
  const widget = node.widgets.find(found => found.name === name)
  widget.setValue(typed, { e, node, canvas: app.canvas })
  return widget.value
}
"""
_INSIDE = """
() => {
  const node = app.graph.nodes.find(found => found.isSubgraphNode?.())
  app.canvas.openSubgraph(node.subgraph, node)
}
"""
LATENT = "CogVideoXEmptyLatent"


def load_blueprint(frontend: Frontend) -> None:
    """The workflow of a subgraph, whose node has the numbers of nodes inside."""
    workflow = json.loads((ROOT / "subgraphs" / "Text to Video (CogVideoX).json").read_text("utf-8"))
    frontend.load(workflow | {"id": str(uuid.uuid4())}, "blueprint")


def type_classic(frontend: Frontend, node_type: str, name: str, typed: str) -> float:
    """node_type: "" for the node of a subgraph. Returns what the widget then holds."""
    page = frontend.page
    x, y = page.evaluate(_PLACE, [node_type, name])
    page.mouse.dblclick(x, y)
    field = page.locator(".graphdialog input")
    field.fill(typed)
    field.press("Enter")
    expect(field).to_have_count(0)
    return page.evaluate(_VALUE, [node_type, name])


def type_into(field: Locator, typed: str, became: str, leave: str = "Enter") -> None:
    """leave: the key that ends it; "" for a click elsewhere, on a prompt's text."""
    field.press("ControlOrMeta+a")
    field.press_sequentially(typed)
    if leave:
        field.press(leave)
    else:
        field.page.locator("textarea").locator("visible=true").first.click()
    expect(field).to_have_value(became)


@pytest.mark.parametrize(("typed", "became", "sentence"), CASES)
def test_a_classic_node(one_page: Frontend, typed: str, became: str, sentence: str) -> None:
    """10 frames became 9, and 5000 became 1025, without a word."""
    load(one_page, "01")
    assert type_classic(one_page, LATENT, "frames", typed) == float(became)
    ours = toast(one_page, f"frames {sentence}")
    expect(ours).to_be_visible()
    expect(ours.locator(".p-toast-summary")).to_have_text("Empty CogVideoX Latent")
    assert type_classic(one_page, LATENT, "frames", "21") == 21
    expect(one_page.page.locator(".p-toast-message")).to_have_count(0)  # of 21 nothing is said, and the last is gone


def test_it_goes_with_its_workflow(one_page: Frontend) -> None:
    load(one_page, "01")
    type_classic(one_page, LATENT, "frames", "10")
    expect(toast(one_page, ROUNDED)).to_be_visible()
    load(one_page, "02")
    expect(toast(one_page, ROUNDED)).to_have_count(0)


def test_what_nobody_has_typed_is_not_spoken_of(one_page: Frontend) -> None:
    """A number that is dragged, or stepped, to its limit stops there, as everybody sees."""
    load(one_page, "01")
    assert one_page.page.evaluate(_SET, ["frames", 1021, {}]) == 1021
    for typed, event in ((1030, {"type": "pointermove"}), (1020.5, {"type": "pointermove"})):
        one_page.page.evaluate(_SET, ["frames", typed, event])
    for typed in (1025, 1029):  # with the arrow
        assert one_page.page.evaluate(_SET, ["frames", typed, {}]) == 1025
    one_page.page.wait_for_timeout(300)
    expect(one_page.page.locator(".p-toast-message")).to_have_count(0)


@pytest.mark.parametrize(("typed", "became", "sentence"), CASES)
def test_the_number_of_a_subgraph(one_page: Frontend, typed: str, became: str, sentence: str) -> None:
    """It kept 10, and the run was refused."""
    load_blueprint(one_page)
    assert type_classic(one_page, "", "frames", typed) == float(became)
    expect(toast(one_page, f"frames {sentence}")).to_be_visible()


@pytest.mark.parametrize("is_subgraph", [False, True])
def test_decimals(one_page: Frontend, is_subgraph: bool) -> None:
    """A node's number has one decimal; a subgraph's keeps what is typed, and is not changed."""
    if is_subgraph:
        load_blueprint(one_page)
    else:
        load(one_page, "01")
    node_type = "" if is_subgraph else "CogVideoXSample"
    for typed in ("6.2", "0.7"):
        assert type_classic(one_page, node_type, "cfg", typed) == float(typed)
    expect(one_page.page.locator(".p-toast-message")).to_have_count(0)
    assert type_classic(one_page, node_type, "cfg", "6.25") == (6.25 if is_subgraph else 6.3)
    told = toast(one_page, "cfg cannot be 6.25: it is 6.3 now, the nearest one (from 0 in steps of 0.1).")
    expect(told).to_have_count(0 if is_subgraph else 1)
    assert type_classic(one_page, node_type, "cfg", "500") == 100
    highest = toast(one_page, "cfg cannot be 500: it is 100 now, the highest number that is possible.")
    expect(highest).to_have_count(1)


def test_a_node_inside_a_subgraph(one_page: Frontend) -> None:
    load_blueprint(one_page)
    one_page.page.evaluate(_INSIDE)
    one_page.settle()
    assert one_page.page.evaluate(_SET, ["batch_size", 5000, {}]) == 64
    ours = toast(one_page, "batch_size cannot be 5000: it is 64 now, the highest number that is possible.")
    expect(ours.locator(".p-toast-summary")).to_have_text("Empty CogVideoX Latent")


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize(("typed", "became", "sentence"), CASES)
def test_the_form_of_an_app(one_page: Frontend, typed: str, became: str, sentence: str, leave: str) -> None:
    """A form shows no titles of nodes. After Tab, or a click elsewhere, nothing was said."""
    load(one_page, "41")
    form = one_page.page.get_by_test_id("linear-widgets")
    type_into(form.locator(f"[node-type={LATENT}] [aria-label=frames] input"), typed, became, leave)
    ours = toast(one_page, f"Frames {sentence}")
    expect(ours.locator(".p-toast-summary")).to_have_text("CogVideoX")


@pytest.mark.parametrize("leave", LEAVING)
def test_the_newer_renderer(vue_page: Frontend, leave: str) -> None:
    """After Tab a subgraph's number stayed as it was typed, and the run was refused."""
    load(vue_page, "01")
    id_ = vue_page.page.evaluate(f"() => app.graph.nodes.find(node => node.type === '{LATENT}').id")
    for typed, became, sentence in CASES:
        field = vue_page.page.locator(f'[data-node-id="{id_}"] [aria-label=frames] input')
        type_into(field, typed, became, leave)
        expect(toast(vue_page, f"frames {sentence}")).to_be_visible()
    load_blueprint(vue_page)
    for typed, became, sentence in CASES:
        type_into(vue_page.page.locator("[data-node-id] [aria-label=frames] input"), typed, became, leave)
        expect(toast(vue_page, f"frames {sentence}")).to_be_visible()
        assert vue_page.page.evaluate(_VALUE, ["", "frames"]) == float(became)


@pytest.fixture
def french(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    with open_as(Comfy__Locale="fr", Comfy__VueNodes__Enabled=True, Comfy__Minimap__Visible=False) as opened:
        yield opened


def test_a_number_with_a_decimal_comma(french: Frontend) -> None:
    """In French 23.976 is written 23,976, which was taken for 23976: whoever only clicked into it read that it cannot
    be that, and a subgraph's was set to its highest."""
    page = french.page
    page.evaluate("() => { app.graph.add(LiteGraph.createNode('CogVideoXDecodeToFile')) }")
    field = page.locator("[data-node-id] [aria-label=fps] input")
    expect(field).to_have_value("8,000")
    type_into(field, "23,976", "23,976")
    field.focus()
    field.blur()
    page.wait_for_timeout(300)
    expect(page.locator(".p-toast-message")).to_have_count(0)
    type_into(field, "2000,5", "1000,000")
    sentence = "fps cannot be 2000.5: it is 1000 now, the highest number that is possible."
    expect(toast(french, sentence)).to_be_visible()
