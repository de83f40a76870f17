"""Workflows of ComfyUI-CogVideoXWrapper in the real frontend: it offers the replacements, and opens what migrates."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import expect

from cogvideox.devtools import client
from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.server import Server
from cogvideox.devtools.workflow import convert_to_api
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options
from cogvideox.tests.migration.wrapper_flows import TWELVE
from cogvideox.tests.tiers import long_after

# The values of a node's widgets by name.
_WIDGETS = "type => Object.fromEntries(app.graph.nodes.find(n => n.type === type).widgets.map(w => [w.name, w.value]))"


@pytest.fixture(scope="module")
def replacing(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    """One page for all tests, on which ComfyUI offers replacements of missing nodes."""
    with open_as(Comfy__NodeReplacement__Enabled=True) as opened:
        yield opened


@pytest.mark.parametrize("name", long_after(1, ["i2v_1.5", "context_windows"]))
def test_migrated_workflow_opens(replacing: Frontend, comfyui: Server, name: str) -> None:
    """No widget may be at another's place, no link lost: the frontend makes the prompt that our tools make."""
    document, _ = migrate_workflow(TWELVE[name]().document(), Options())
    assert document is not None
    expected = convert_to_api(document, client.object_info(comfyui.url))
    replacing.load(document, name)
    made = replacing.page.evaluate("() => app.graphToPrompt().then(prompt => prompt.output)")
    sampler = replacing.page.evaluate(_WIDGETS, "CogVideoXSample")
    found = {node_id: (node["class_type"], node["inputs"]) for node_id, node in made.items()}
    assert found == {node_id: (node["class_type"], node["inputs"]) for node_id, node in expected.items()}
    assert (sampler["seed"], sampler["steps"], sampler["sampler"], sampler["denoise"]) == (42, 25, "ddim", 1)


def test_missing_nodes_of_the_wrapper_have_a_replacement(replacing: Frontend) -> None:
    """Whoever opens an old workflow is offered the nodes that are the same, and gets them with their links."""
    replacing.load(TWELVE["control_net"]().document(), "wrapper")
    replacing.page.get_by_role("button", name="View details").click(timeout=15_000)  # of the errors that it found
    expect(replacing.page.get_by_text("Swap Nodes").first).to_be_visible(timeout=15_000)
    offered = replacing.page.evaluate("() => app.api.fetchApi('/node_replacements').then(answer => answer.json())")
    assert offered["CogVideoDecode"][0]["new_node_id"] == "CogVideoXDecode"
