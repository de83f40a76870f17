"""The page that the tests of this folder share: each begins as a new user does, whatever a test did before."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from playwright.sync_api import expect

from cogvideox.devtools.frontend import Frontend

_ADD = "() => { const node = LiteGraph.createNode('CogVideoXSample'); app.graph.add(node); return node }"


def test_a_node_that_was_not_placed(open_as: Callable[..., AbstractContextManager[Frontend]]) -> None:
    """What the search dialog adds waits for a click that places it. A test that ended so long took the buttons over a
    selected node, among them the (i), from every later test."""
    with open_as() as before:
        before.page.evaluate(f"() => app.canvas.startGhostPlacement?.(({_ADD})())")
    with open_as() as opened:
        opened.page.evaluate(f"() => app.canvas.selectItems([({_ADD})()])")
        expect(opened.page.get_by_test_id("info-button")).to_be_visible()
