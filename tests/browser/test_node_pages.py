"""What the frontend tells about each node: where it is found, its help, its Chinese names."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from playwright.sync_api import expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import PACK_NAME, ROOT
from cogvideox.nodes import NODES

SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}
ZH = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))

_ADD = "type => { const node = LiteGraph.createNode(type); app.graph.add(node); app.canvas.selectItems([node]) }"
# Title, sockets and widgets as drawn on a new node.
_LABELS = """
type => {
  const node = LiteGraph.createNode(type)
  const label = slot => slot.label ?? slot.localized_name ?? slot.name
  return [node.title, ...node.inputs.map(label), ...(node.widgets ?? []).map(label)]
}
"""


def test_every_node_is_found_in_the_library(frontend: Frontend) -> None:
    # A node that search does not find does not exist for most users.
    page = frontend.page
    page.locator("[data-testid=side-toolbar] .node-library-tab-button").click()
    search = page.get_by_placeholder("Search...").first
    for schema in SCHEMAS.values():
        search.fill(schema.display_name)
        entry = page.get_by_role("treeitem").filter(has_text=schema.display_name)
        expect(entry.first).to_be_visible()
        for folder in schema.category.split("/"):
            expect(page.get_by_role("treeitem").get_by_text(folder, exact=True).first).to_be_visible()


def test_help_pages_open(frontend: Frontend) -> None:
    # Select a node, press the (i): without our page the panel shows a bare list of types.
    page = frontend.page
    shown = page.locator(".node-help-content")
    for node_id in SCHEMAS:
        page.evaluate(_ADD, node_id)
        if not shown.is_visible():
            page.get_by_test_id("info-button").click()
        first = (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8").split(".")[0]
        expect(shown).to_contain_text(first.replace("`", "").replace("*", ""))
        expect(shown.get_by_role("heading", name="Example")).to_be_visible()
    # The frontend asks for a page in the user's language first, and there is one for all.
    in_english = re.compile(rf"/extensions/{PACK_NAME}/docs/\w+/en\.md")
    assert [line for line in frontend.console if not in_english.search(line)] == []


def test_nodes_speak_chinese(open_as: Callable[..., AbstractContextManager[Frontend]]) -> None:
    # A wrong key in the file is silently ignored: the node stays English.
    with open_as(Comfy__Locale="zh") as frontend:
        for node_id, words in ZH.items():
            shown = frontend.page.evaluate(_LABELS, node_id)
            assert {words["display_name"], *(slot["name"] for slot in words["inputs"].values())} <= set(shown), node_id
