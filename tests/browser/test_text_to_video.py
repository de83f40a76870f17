"""The example workflow as a user meets it: opened, dropped, run and watched in ComfyUI's own frontend."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from devtools.frontend import Frontend
from devtools.paths import EXAMPLE_WORKFLOW, PACK_NAME
from devtools.server import Server, request

EXAMPLE = json.loads(EXAMPLE_WORKFLOW.read_text("utf-8"))
FRAMES, FPS, WIDTH, HEIGHT = 17, 8, 96, 64

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
_COMPLAINTS = '[data-testid="error-overlay"], .p-toast-message, [role="dialog"], .p-dialog'

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

# The square on screen around the last two groups: [left, top, right, bottom], px.
_LAST_TWO_GROUPS = """
() => {
  const [first, second] = app.graph.groups.slice(-2)
  const left = first.pos[0], width = second.pos[0] + second.size[0] - left
  const top = first.pos[1] - (width - first.size[1]) / 2
  const {scale, offset} = app.canvas.ds
  return [left, top, left + width, top + width].map((v, i) => (v + offset[i % 2]) * scale)
}
"""


def assert_intact(frontend: Frontend) -> None:
    """The graph on screen is the file: every node known, every link and widget value as saved, nothing complained."""
    frontend.page.wait_for_timeout(500)  # complaints come a moment after loading
    complaints = frontend.page.locator(_COMPLAINTS)
    assert complaints.all_inner_texts() == []
    graph = frontend.page.evaluate(_GRAPH)
    assert (graph["unknown"], graph["marked"], graph["unlisted"]) == ([], [], [])
    saved = graph["saved"]
    assert saved["id"] == EXAMPLE["id"]
    assert sorted(saved["links"]) == sorted(EXAMPLE["links"])
    assert {g["title"] for g in saved["groups"]} == {g["title"] for g in EXAMPLE["groups"]}
    nodes = {node["id"]: node for node in saved["nodes"]}
    assert len(nodes) == len(saved["nodes"]) == len(EXAMPLE["nodes"])
    for expected in EXAMPLE["nodes"]:
        found = nodes[expected["id"]]
        for part in ("inputs", "outputs"):
            names = [[slot["name"] for slot in node.get(part) or []] for node in (found, expected)]
            assert names[0] == names[1], expected["type"]
        assert found.get("widgets_values") == expected.get("widgets_values"), expected["type"]
    assert frontend.console == []


def test_example_opens_as_it_was_saved(frontend: Frontend) -> None:
    # A user opening the example would see red nodes, cut links, or a seed where the steps belong.
    frontend.load(EXAMPLE, "text_to_video")
    assert_intact(frontend)


def test_example_opens_when_dropped(frontend: Frontend) -> None:
    # The README says: drop the file into the window.
    frontend.page.evaluate(_DROP, [EXAMPLE_WORKFLOW.name, EXAMPLE_WORKFLOW.read_text("utf-8")])
    frontend.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(EXAMPLE["nodes"]))
    assert_intact(frontend)


def test_damaged_example_is_noticed(frontend: Frontend) -> None:
    # Guards the two tests above: the frontend does complain, and where they look.
    damaged = json.loads(json.dumps(EXAMPLE))
    damaged["nodes"][0]["type"] = "CogVideoXNoSuchNode"
    frontend.load(damaged, "damaged")
    expect(frontend.page.locator(_COMPLAINTS).first).to_contain_text("CogVideoXNoSuchNode")


def test_queue_button_makes_a_video_that_plays(frontend: Frontend, pictures: dict[str, Path]) -> None:
    # The first thing a new user does. Without preview, progress or a playing video the pack looks broken.
    page = frontend.page
    frontend.load(EXAMPLE, "text_to_video")
    page.evaluate(_FIT)
    page.evaluate(_WATCH)
    page.locator('[data-testid="queue-button"]').click()
    page.wait_for_function("() => window.seen.outcome", timeout=180_000)
    seen = page.evaluate("() => window.seen")
    assert seen["outcome"] == "success"

    for told in (seen["steps"], seen["bar"]):
        assert len(told) > 2 and told == sorted(set(told)), told
    assert seen["steps"][-1] == 1
    assert seen["previewWidths"] and min(seen["previewWidths"]) > 0, "no preview was shown on the sampler"

    video = page.locator("video")
    expect(video).to_have_count(1)
    page.wait_for_function("() => document.querySelector('video').readyState >= 2", timeout=30_000)
    shown = video.evaluate("v => [v.videoWidth, v.videoHeight, v.duration]")
    assert shown == [WIDTH, HEIGHT, pytest.approx(FRAMES / FPS, abs=1 / FPS)]
    take_pictures(frontend, pictures)
    video.click()
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.2", timeout=30_000)
    assert page.locator('[data-testid="error-overlay"]').count() == 0
    assert frontend.console == []


def test_example_is_offered_as_a_template(frontend: Frontend, comfyui: Server) -> None:
    # Where users look for examples: Templates > Extensions. A picture in a wrong place or format shows as a blank.
    assert json.loads(request(f"{comfyui.url}/api/workflow_templates"))[PACK_NAME] == [EXAMPLE_WORKFLOW.stem]
    page = frontend.page
    page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    page.get_by_role("dialog").get_by_text(PACK_NAME, exact=True).click()
    card = page.get_by_test_id(f"template-workflow-{EXAMPLE_WORKFLOW.stem}")
    size = list(Image.open(EXAMPLE_WORKFLOW.with_suffix(".jpg")).size)  # the picture of last resort has another
    page.wait_for_function(
        "([image, size]) => image.naturalWidth === size[0] && image.naturalHeight === size[1]",
        arg=[card.locator("img").first.element_handle(), size],
    )
    card.click()
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(EXAMPLE["nodes"]))
    assert_intact(frontend)


def take_pictures(frontend: Frontend, pictures: dict[str, Path]) -> None:
    """The README's picture, and its right half, with preview and video, for the template's card."""
    page = frontend.page
    page.evaluate(_FIT)
    expect(page.get_by_text("Job completed")).to_have_count(0, timeout=20_000)
    frontend.settle()
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.save(pictures["screenshot"] / "text_to_video.png", optimize=True)
    thumbnail = shot.crop(page.evaluate(_LAST_TWO_GROUPS)).resize((512, 512), Image.Resampling.LANCZOS)
    thumbnail.save(pictures["thumbnail"] / "text_to_video.jpg", quality=85, optimize=True)
