"""Templates, blueprints and apps in ComfyUI's own frontend: what it offers to download, where nodes stand, how they
are found and opened."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import expect

from cogvideox.devtools.build_blueprints import BLUEPRINTS, Blueprint
from cogvideox.devtools.client import object_info
from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.example_workflows.layout import TITLE_PX
from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import TEMPLATES
from cogvideox.devtools.server import Server, request
from cogvideox.devtools.workflow import convert_to_api
from cogvideox.tests.devtools.test_templates import contains, group_box, overlap
from cogvideox.tests.tiers import long_after

SAVED = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(TEMPLATES.glob("*.json"))}
DOWNLOADS = {
    name: [model["name"] for node in saved["nodes"] for model in node["properties"].get("models", [])[:1]]
    for name, saved in SAVED.items()
}
_KNOWN: set[str] = set()
OFFERED = []  # the templates with files; in every run those that have one which no earlier one has
for _name, _files in DOWNLOADS.items():
    if _files:
        OFFERED.append(pytest.param(_name, marks=[pytest.mark.long] * _KNOWN.issuperset(_files)))
        _KNOWN.update(_files)
APPS = {file_name(example): example for example in EXAMPLES if example.app}
OpenAs = Callable[..., AbstractContextManager[Frontend]]

# The boxes of all nodes as they are drawn, in the graph's own pixels: [left, top, right, bottom].
_DRAWN = """
() => app.graph.nodes.map(node => {
  const box = document.querySelector(`[data-node-id="${node.id}"]`)
  const height = box ? box.offsetHeight - LiteGraph.NODE_TITLE_HEIGHT : node.size[1]
  const width = box ? box.offsetWidth : node.size[0]
  return [node.pos[0], node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, node.pos[0] + width, node.pos[1] + height]
})
"""
# How many px of its text a note does not show, and how many of its box are empty. A browser without Chinese letters
# draws narrower signs in their places: a copy has a W for each, which is about as wide as they are.
NOTE = r"""
() => {
  const text = document.querySelector('.comfy-markdown-content') ?? document.querySelector('.tiptap')
  const last = [...text.children].at(-1)
  const end = last.getBoundingClientRect().bottom, box = text.getBoundingClientRect()
  const wide = text.cloneNode(true), texts = document.createTreeWalker(wide, NodeFilter.SHOW_TEXT)
  while (texts.nextNode())
    texts.currentNode.data = texts.currentNode.data.replace(/[\u2026\u3000-\u9fff\uff00-\uffef]/g, 'W\u200b')
  Object.assign(wide.style, { position: 'absolute', visibility: 'hidden', boxSizing: 'border-box',
    width: `${text.offsetWidth}px`, height: 'auto', minHeight: 0, maxHeight: 'none' })
  text.parentElement.append(wide)
  const needed = wide.scrollHeight
  wide.remove()
  return [Math.max(text.scrollHeight, needed) - text.clientHeight, (box.bottom - end) / app.canvas.ds.scale]
}
"""
# How many px of its prompts the graph hides in the box that hides most. A note's box for typing, which has no class in
# one renderer and no size in the other, is none of them.
_PROMPTS = """
() => Math.max(...[...document.querySelectorAll('textarea')].filter(box => box.className)
  .map(box => box.scrollHeight - box.clientHeight))
"""
LOOK = (
    "scale => { app.canvas.ds.scale = scale; app.canvas.ds.offset = [200, 220]; app.graph.setDirtyCanvas(true, true) }"
)


@pytest.mark.long  # tests/devtools/test_templates.py computes it from the files
@pytest.mark.parametrize("language", ("en", "zh"))
@pytest.mark.parametrize("is_vue", (True, False), ids=("vue", "classic"))
def test_nothing_overlaps_in_either_renderer(open_as: OpenAs, is_vue: bool, language: str) -> None:
    """The renderers give a node other heights than the file has: one would lie under the next. The Chinese notes stand
    in the boxes of the English ones."""
    with open_as(Comfy__VueNodes__Enabled=is_vue, Comfy__Locale=language) as frontend:
        for name, saved in SAVED.items():
            if name in APPS:
                continue  # the same graph; it opens as a form
            frontend.load(saved, name)
            frontend.page.evaluate(LOOK, 0.8)
            frontend.page.wait_for_timeout(700)
            boxes = [tuple(box) for box in frontend.page.evaluate(_DRAWN)]
            pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if overlap(a, b)]
            assert pairs == [], name
            groups = [group_box(group) for group in saved["groups"]]
            assert all(sum(contains(group, box) for group in groups) == 1 for box in boxes), name
            hidden, empty = frontend.page.evaluate(NOTE)
            assert hidden <= 2, f"{name}: the note's text is cut off"
            assert language != "en" or empty <= 4 * TITLE_PX, f"{name}: {empty} px of the note's box are empty"
            assert frontend.page.evaluate(_PROMPTS) <= 2, f"{name}: a prompt is cut off"


@pytest.mark.parametrize("name", OFFERED)
def test_a_missing_model_is_offered_for_download(one_page: Frontend, name: str) -> None:
    """From the toy to a real checkpoint: ComfyUI lists each missing file, with a button that downloads it."""
    page = one_page.page
    one_page.load(SAVED[name], name)
    page.get_by_test_id("error-overlay-see-errors").click()
    buttons = page.get_by_test_id("missing-model-download")
    expect(buttons).to_have_count(len(DOWNLOADS[name]))
    labels = {button.get_attribute("aria-label") for button in buttons.all()}
    assert labels == {f"Download {file}" for file in DOWNLOADS[name]}


def test_a_folder_is_downloaded_by_a_node_that_is_bypassed(one_page: Frontend) -> None:
    """Run must not fetch 20 GB unasked; switched on, the loader waits for the download."""
    name = "22 Text to video with CogVideoX-5b"
    one_page.load(SAVED[name], name)
    prompts = [
        one_page.page.evaluate(
            """async mode => {
              app.graph.nodes.find(node => node.type === 'CogVideoXDownload').mode = mode
              return Object.values((await app.graphToPrompt()).output)
            }""",
            mode,
        )
        for mode in (4, 0)
    ]
    kinds = [[node["class_type"] for node in prompt] for prompt in prompts]
    assert "CogVideoXDownload" not in kinds[0] and "CogVideoXDownload" in kinds[1]
    folders = [node["inputs"]["folder"] for p in prompts for node in p if node["class_type"] == "CogVideoXLoadPipeline"]
    assert folders == ["CogVideoX-5b", ["1", 0]]


# Runs in the page: a blueprint's name -> what the node library knows of it, and what it would run.
_BLUEPRINT = """
async name => {
  const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
  const library = stores.get('subgraph')
  const found = library.subgraphBlueprints.find(entry => entry.display_name === name)
  await app.loadGraphData(library.getBlueprint(found.name))
  const save = LiteGraph.createNode('SaveVideo')
  app.graph.add(save)
  app.graph.nodes[0].connect(0, save, 0)
  const nodes = Object.values((await app.graphToPrompt()).output)
  return [found.category, found.description, nodes]
}
"""


def without_links(node: dict) -> tuple[str, list]:
    values = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
    return node["class_type"], sorted(values.items(), key=str)


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_a_blueprint_runs_what_the_template_of_its_task_runs(
    one_page: Frontend, comfyui: Server, blueprint: Blueprint
) -> None:
    """A widget that is lost on the way into the subgraph would run with its default: another video."""
    category, description, nodes = one_page.page.evaluate(_BLUEPRINT, blueprint.name)
    assert category == "Subgraph Blueprints/CogVideoX"
    assert description == blueprint.description
    outside = {
        spec.type for column in blueprint.example.columns for spec in column.nodes if spec.name in blueprint.outside
    }
    template = SAVED[file_name(blueprint.example)]
    wanted = [node for node in convert_to_api(template, object_info(comfyui.url)).values()]
    inside = [node for node in nodes if node["class_type"] not in outside]
    expected = [node for node in wanted if node["class_type"] not in outside]
    got, needed = (sorted(map(without_links, some), key=str) for some in (inside, expected))
    if ("fps", "video", "fps") not in blueprint.widgets:  # there it is linked to the input video's
        for kind, values in (*got, *needed):
            if kind == "CreateVideo":
                values[:] = [entry for entry in values if entry[0] != "fps"]
    assert got == needed


def test_a_blueprint_is_found_in_the_node_library(one_page: Frontend) -> None:
    """By the words of its name; ComfyUI 0.30 reads no search aliases of a pack's blueprints."""
    page = one_page.page
    page.evaluate("() => { app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library') }")
    page.get_by_placeholder("Search").first.fill("image to video")
    expect(page.get_by_text("Image to Video (CogVideoX)", exact=True).first).to_be_visible()


def test_blueprints_are_served(comfyui: Server) -> None:
    found = json.loads(request(f"{comfyui.url}/api/global_subgraphs")).values()
    assert {entry["name"] for entry in found} >= {blueprint.name for blueprint in BLUEPRINTS}


@pytest.mark.parametrize("name", long_after(1, APPS))
def test_an_app_opens_as_a_form(one_page: Frontend, comfyui: Server, name: str) -> None:
    """The form has every input of the table, and Run makes the same video as the graph."""
    page = one_page.page
    one_page.load(SAVED[name], name)
    form = page.get_by_test_id("linear-widgets")
    form.wait_for()
    page.wait_for_timeout(1000)
    stores = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s"
    shown = page.evaluate(
        f"() => {{ const a = {stores}.get('appMode'); return [a.selectedInputs, a.selectedOutputs] }}"
    )
    assert [entry[1] for entry in shown[0]] == [widget for _, widget, _ in APPS[name].app]
    labels = form.inner_text().splitlines()
    assert [label for *_, label in APPS[name].app if label not in labels] == []
    assert len(shown[1]) == 1
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in prompt.values():
        del node["_meta"]
        node["inputs"].pop("video-preview", None)
    assert prompt == convert_to_api(SAVED[name], object_info(comfyui.url))
