"""What the frontend tells about each node: its help, and where it is found."""

import re

from playwright.sync_api import expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import PACK_NAME, ROOT
from cogvideox.nodes import NODES

SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}

_ADD = "type => { const node = LiteGraph.createNode(type); app.graph.add(node); app.canvas.selectItems([node]) }"


def test_help_pages_open(one_page: Frontend) -> None:
    # Select a node, press the (i): without our page the panel shows a bare list of types.
    page = one_page.page
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
    assert [line for line in one_page.console if not in_english.search(line)] == []


def test_every_node_is_found_in_the_library(one_page: Frontend) -> None:
    # A node that search does not find does not exist for most users.
    page = one_page.page
    page.locator("[data-testid=side-toolbar] .node-library-tab-button").click()
    search = page.get_by_placeholder("Search...").first
    for schema in SCHEMAS.values():
        search.fill(schema.display_name)
        entry = page.get_by_role("treeitem").filter(has_text=schema.display_name)
        expect(entry.first).to_be_visible()
        for folder in schema.category.split("/"):
            expect(page.get_by_role("treeitem").get_by_text(folder, exact=True).first).to_be_visible()
