"""The example workflows as a user meets them: opened, dropped, run and watched in ComfyUI's own frontend."""

import io
import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from playwright.sync_api import expect

from cogvideox.devtools.client import object_info
from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import PACK_NAME, ROOT
from cogvideox.devtools.server import Server
from cogvideox.devtools.server import request as fetch
from cogvideox.devtools.workflow import convert_to_api
from cogvideox.tests.devtools.test_templates import misplaced
from cogvideox.tests.template_runs import skip_where_it_cannot_run
from cogvideox.tests.tiers import long_after

FOLDER = ROOT / "example_workflows"
SAVED = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.json"))}
# What a template for a real checkpoint names before it is there: "type.widget value" -> whether ComfyUI reports it.
MISSING = {
    file_name(example): {
        f"{spec.type}.{widget} {value}": bool(spec.models)
        for column in example.columns
        for spec in column.nodes
        for widget, value in spec.widgets.items()
        if (spec.later or spec.models) and value != "example.png"
    }
    for example in EXAMPLES
}
TOYS = [file_name(example) for example in EXAMPLES if not example.needs]  # the others need a download to run
# looked at more closely; their pictures are in the documentation, by these names
QUEUED = {"01 Text to video": "text_to_video.png", "02 Image to video": "image_to_video.png"}
WIDTH, HEIGHT, FRAMES, FPS = 64, 64, 17, 8  # of their videos

# What is wrong with the open graph, in the frontend's own eyes.
_GRAPH = """
() => ({
  unknown: app.graph.nodes.filter(n => !LiteGraph.registered_node_types[n.type]).map(n => n.type),
  marked: app.graph.nodes.filter(n => n.has_errors).map(n => n.type),
  unlisted: app.graph.nodes.flatMap(n => (n.widgets ?? [])
    .filter(w => w.type === 'combo' && !w.options.values.includes(w.value)).map(w => `${n.type}.${w.name} ${w.value}`)),
  saved: JSON.parse(JSON.stringify(app.graph.serialize())),
})
"""
# Whether every picture and video that nodes show has been loaded.
_ALL_SHOWN = """
() => [...document.querySelectorAll('video')].every(v => v.readyState >= 2)
  && app.graph.nodes.filter(n => n.type.startsWith('LoadImage')).every(n => n.imgs?.[0]?.naturalWidth)
"""
# Without what the pack says of a missing model, which test_opened.py reads.
_COMPLAINTS = '[data-testid="error-overlay"], .p-toast-message:not(.cogvideox-missing), [role="dialog"], .p-dialog'

_DROP = """
([name, text]) => {
  const data = new DataTransfer()
  data.items.add(new File([text], name, {type: 'application/json'}))
  const place = {dataTransfer: data, bubbles: true, cancelable: true, clientX: 600, clientY: 500}
  for (const type of ['dragenter', 'dragover', 'drop'])
    document.querySelector('#graph-canvas').dispatchEvent(new DragEvent(type, place))
}
"""

# Notes all that the sampler is given to show while it runs, its progress bar and its preview, and how the run ended.
_WATCH = """
() => {
  const sampler = app.graph.nodes.find(n => n.type === 'CogVideoXSample')
  const seen = window.seen = {steps: [], bar: [], previewWidths: [], outcome: null}
  const watch = (property, note) => {
    let current = sampler[property]
    Object.defineProperty(sampler, property, {get: () => current, set: value => { current = value; note(value) }})
  }
  watch('progress', value => { if (value && value !== seen.bar.at(-1)) seen.bar.push(value) })
  watch('imgs', images => { for (const image of images ?? []) seen.previewWidths.push(image.naturalWidth) })
  app.api.addEventListener('progress', e => {
    if (String(e.detail.node) === String(sampler.id)) seen.steps.push(e.detail.value / e.detail.max)
  })
  app.api.addEventListener('execution_success', () => { seen.outcome = 'success' })
  app.api.addEventListener('execution_error', e => { seen.outcome = e.detail.exception_message })
}
"""

# Makes the whole graph as large as it fits between the toolbars.
_FIT = """
() => {
  const [left, top, right, bottom] = [80, 110, innerWidth - 20, innerHeight - 60]
  const groups = app.graph.groups.map(g => g.boundingRect ?? [...g.pos, ...g.size])
  const x = Math.min(...groups.map(g => g[0])), y = Math.min(...groups.map(g => g[1]))
  const width = Math.max(...groups.map(g => g[0] + g[2])) - x, height = Math.max(...groups.map(g => g[1] + g[3])) - y
  const scale = Math.min((right - left) / width, (bottom - top) / height)
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [(left + (right - left - width * scale) / 2) / scale - x,
                          (top + (bottom - top - height * scale) / 2) / scale - y]
  app.graph.setDirtyCanvas(true, true)
}
"""


def assert_intact(frontend: Frontend, name: str) -> None:
    """The graph on screen is the file: every node known, every link and widget value as saved, nothing complained."""
    example = SAVED[name]
    frontend.page.wait_for_timeout(500)  # complaints come a moment after loading
    graph = frontend.page.evaluate(_GRAPH)
    missing = [text.split(".")[0] for text, is_reported in MISSING[name].items() if is_reported]
    assert (graph["unknown"], graph["marked"], sorted(graph["unlisted"])) == ([], missing, sorted(MISSING[name]))
    complaints = [text.split("\n")[0] for text in frontend.page.locator(_COMPLAINTS).all_inner_texts() if text]
    assert complaints == ([f"{len(missing)} errors found"] if missing else [])
    saved = graph["saved"]
    assert saved["id"] == example["id"]
    assert sorted(saved["links"]) == sorted(example["links"])
    assert {g["title"] for g in saved["groups"]} == {g["title"] for g in example["groups"]}
    nodes = {node["id"]: node for node in saved["nodes"]}
    assert len(nodes) == len(saved["nodes"]) == len(example["nodes"])
    for expected in example["nodes"]:
        found = nodes[expected["id"]]
        for part in ("inputs", "outputs"):
            names = [[slot["name"] for slot in node.get(part) or []] for node in (found, expected)]
            assert names[0] == names[1], expected["type"]
        assert (found.get("widgets_values") or []) == (expected.get("widgets_values") or []), expected["type"]
    assert frontend.console == []


@pytest.mark.parametrize("name", long_after(6, SAVED))
def test_example_opens_as_it_was_saved(one_page: Frontend, name: str) -> None:
    # A user opening the example would see red nodes, cut links, or a seed where the steps belong.
    one_page.load(SAVED[name], name)
    assert_intact(one_page, name)
    one_page.page.wait_for_function(_ALL_SHOWN, timeout=30_000)


def test_example_opens_when_dropped(one_page: Frontend) -> None:
    # The README says: drop the file into the window.
    file = FOLDER / "01 Text to video.json"
    one_page.page.evaluate("() => app.graph.clear()")
    one_page.page.evaluate(_DROP, [file.name, file.read_text("utf-8")])
    wait_for_nodes(one_page, file.stem)
    assert_intact(one_page, file.stem)


@pytest.mark.parametrize("name", (TOYS[0], pytest.param(TOYS[1], marks=pytest.mark.long)))
def test_queue_button_makes_a_video_that_plays(frontend: Frontend, pictures: Path, name: str) -> None:
    # The first thing a new user does. Without preview, progress or a playing video the pack looks broken.
    page = frontend.page
    queue(frontend, name)
    seen = page.evaluate("() => window.seen")
    for told in (seen["steps"], seen["bar"]):
        assert len(told) > 2 and told == sorted(set(told)), told
    assert seen["steps"][-1] == 1
    assert seen["previewWidths"] and min(seen["previewWidths"]) > 0, "no preview was shown on the sampler"

    video = page.locator("video")
    expect(video).to_have_count(1)
    page.wait_for_function(_ALL_SHOWN, timeout=30_000)
    shown = video.evaluate("v => [v.videoWidth, v.videoHeight, v.duration]")
    assert shown == [WIDTH, HEIGHT, pytest.approx(FRAMES / FPS, abs=1 / FPS)]
    take_picture(frontend, pictures / QUEUED[name])
    video.click()
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.2", timeout=30_000)
    assert page.locator('[data-testid="error-overlay"]').count() == 0
    assert misplaced(page.evaluate("() => app.graph.serialize()")) == [], "nodes grow with what they show"
    assert frontend.console == []


@pytest.mark.parametrize("name", long_after(3, SAVED))
def test_frontend_converts_as_the_tools_do(one_page: Frontend, comfyui: Server, name: str) -> None:
    # The frontend converts the saved workflow in its own way: a value in another's place runs to another video. What
    # the tools make of each example is run by tests/server/test_example_workflows.py.
    one_page.load(SAVED[name], name)
    prompt = one_page.page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in prompt.values():
        del node["_meta"]
        for widget in ("video-preview", "$$comfy_animation_preview"):  # the frontend's own, which no server reads
            node["inputs"].pop(widget, None)
    assert prompt == convert_to_api(SAVED[name], object_info(comfyui.url))


@pytest.mark.long  # what they would run is compared above, and run by tests/server/test_example_workflows.py
@pytest.mark.parametrize("name", [name for name in TOYS if name not in QUEUED])
def test_queue_button_runs_the_others(frontend: Frontend, name: str) -> None:
    # The frontend converts the saved workflow in its own way: a value in another's place runs to another video.
    skip_where_it_cannot_run(SAVED[name])
    queue(frontend, name)
    if saved_as_app(name):
        expect(frontend.page.get_by_test_id("linear-video-output").first).to_be_visible()
    else:
        expect(frontend.page.locator("video")).to_have_count(1)
    frontend.page.wait_for_function(_ALL_SHOWN, timeout=30_000)
    frontend.page.wait_for_timeout(1000)  # nodes grow with what they show
    assert misplaced(frontend.page.evaluate("() => app.graph.serialize()")) == []
    assert frontend.console == []


@pytest.mark.parametrize("scrolled", [False, pytest.param(True, marks=pytest.mark.long)], ids=["first", "all"])
def test_examples_are_offered_as_templates(one_page: Frontend, comfyui: Server, scrolled: bool) -> None:
    # Where users look for examples: Templates > Extensions. A picture in a wrong place or format shows as a blank.
    assert sorted(json.loads(fetch(f"{comfyui.url}/api/workflow_templates"))[PACK_NAME]) == sorted(SAVED)
    page = one_page.page
    one_page.page.evaluate("() => app.graph.clear()")
    page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    page.get_by_role("dialog").get_by_text("CogVideoX", exact=True).click()  # not the folder's name
    cards = page.locator('[data-testid^="template-workflow-"]')
    cards.first.wait_for()
    shown = [card.get_attribute("data-testid") for card in cards.all()]  # the others come when the list is scrolled
    wanted = [f"template-workflow-{name}" for name in SAVED]
    assert shown == wanted[: len(shown)] and len(shown) >= len(TOYS), "from simple to special"
    for name in SAVED:
        picture = fetch(f"{comfyui.url}/api/workflow_templates/{PACK_NAME}/{quote(name)}.jpg")
        assert picture == (FOLDER / f"{name}.jpg").read_bytes()
    looked_at = [*SAVED] if scrolled else [*SAVED][: len(shown)]
    for name in looked_at:
        card = page.get_by_test_id(f"template-workflow-{name}")
        for _ in range(20):
            if card.count():
                break
            cards.last.hover()
            page.mouse.wheel(0, 3000)
            page.wait_for_timeout(250)
        card.scroll_into_view_if_needed()
        size = list(Image.open(FOLDER / f"{name}.jpg").size)  # the picture of last resort has another
        page.wait_for_function(
            "([image, size]) => image.naturalWidth === size[0] && image.naturalHeight === size[1]",
            arg=[card.locator("img").first.element_handle(), size],
        )
    name = [name for name in TOYS if name in looked_at][-1]
    page.get_by_test_id(f"template-workflow-{name}").click()
    wait_for_nodes(one_page, name)
    assert_intact(one_page, name)


def test_damaged_example_is_noticed(one_page: Frontend) -> None:
    # Guards the tests above, last on their page: the frontend does complain, and where they look.
    damaged = json.loads(json.dumps(SAVED["01 Text to video"]))
    damaged["nodes"][0]["type"] = "CogVideoXNoSuchNode"
    one_page.load(damaged, "damaged")
    expect(one_page.page.locator(_COMPLAINTS).first).to_contain_text("CogVideoXNoSuchNode")


def wait_for_nodes(frontend: Frontend, name: str) -> None:
    """Until a workflow that is being opened is there."""
    # Not the number alone, which another workflow that is still on a shared page may have as well.
    is_there = "([id, count]) => app.graph.id === id && app.graph.nodes.length === count"
    frontend.page.wait_for_function(is_there, arg=[SAVED[name]["id"], len(SAVED[name]["nodes"])])


def saved_as_app(name: str) -> bool:
    """Whether it opens as a form, with a Run of its own."""
    return SAVED[name]["extra"].get("linearMode", False)


def queue(frontend: Frontend, name: str) -> None:
    """Open an example and press Run; what _WATCH sees is in window.seen."""
    frontend.load(SAVED[name], name)
    frontend.page.evaluate(_FIT)
    frontend.page.evaluate(_WATCH)
    in_app = frontend.page.get_by_test_id("linear-run-button").get_by_role("button", name="Run")
    (in_app if saved_as_app(name) else frontend.page.get_by_test_id("queue-button")).click()
    frontend.page.wait_for_function("() => window.seen.outcome", timeout=180_000)
    assert frontend.page.evaluate("() => window.seen.outcome") == "success"


def take_picture(frontend: Frontend, file: Path) -> None:
    """A picture of the whole graph."""
    page = frontend.page
    expect(page.get_by_text("0 active")).to_be_visible()
    if os.environ.get("COGVIDEOX_UPDATE_SCREENSHOTS") == "1":
        for message in ("Job queued", "Job completed"):
            expect(page.get_by_text(message)).to_have_count(0, timeout=20_000)
    page.wait_for_timeout(1000)  # nodes grow with what they show
    page.evaluate(_FIT)
    frontend.settle()
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.save(file, optimize=True)
