"""What a newcomer meets in the real frontend: a wrapper's workflow, files that are missing, texts on nodes."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import expect

from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import ROOT
from cogvideox.devtools.server import Server
from cogvideox.nodes.migration_page import ROUTE
from cogvideox.tests.browser.test_errors_shown import toast
from cogvideox.tests.migration.wrapper_flows import TWELVE

_MARKUP = "<img src=x onerror=window.hacked=1>"
_FORECAST = """
async ([frames, width]) => {
  app.graph.clear()
  const load = LiteGraph.createNode('CogVideoXLoadPipeline'), forecast = LiteGraph.createNode('CogVideoXMemoryForecast')
  const latent = LiteGraph.createNode('CogVideoXEmptyLatent'), show = LiteGraph.createNode('SaveLatent')
  const nodes = [load, forecast, latent, show]
  nodes.forEach((node, index) => { node.pos = [50 + 400 * index, 100]; app.graph.add(node) })
  load.widgets[0].value = 'CogVideoX-nano 5b'
  for (const [name, value] of Object.entries({width, height: 64, frames: 9}))  // what is counted quickly
    forecast.widgets.find(found => found.name === name).value = value
  latent.widgets.find(found => found.name === 'frames').value = frames
  load.connect(0, forecast, 0)
  latent.connect(0, show, 0)
  const { api } = await import('/scripts/api.js')
  const run = new Promise(done => api.addEventListener('execution_success', () => done(true), { once: true }))
  await app.queuePrompt(0)
  await run
}
"""
# Of each node's text: how much of it is out of sight.
_HIDDEN = """
() => [...document.querySelectorAll(
  '.max-h-\\\\[200px\\\\].min-h-\\\\[28px\\\\], .widget-markdown > .comfy-markdown-content'
)].filter(box => box.innerText.trim())
  .map(box => [box.innerText.trim().split('\\n')[0].slice(0, 40), box.scrollHeight - box.clientHeight,
    box.getBoundingClientRect().height])
"""
# The texts that are seen on classic nodes.
_SHOWN = "() => [...document.querySelectorAll('.max-h-\\\\[200px\\\\].min-h-\\\\[28px\\\\]')].map(box => box.innerText)"
# Runs in the page: what the nodes say.
_TEXTS_ON_NODES = """
() => app.graph.nodes.flatMap(node => node.widgets ?? []).filter(widget => widget.name === '$$node-text-preview')
  .map(widget => widget.value)
"""


# Of texts on classic nodes, how much of the sentence, which ends at the first line break, is out of sight; in px.
_CUT = """
() => [...document.querySelectorAll('.max-h-\\\\[200px\\\\].min-h-\\\\[28px\\\\]')]
  .filter(box => box.innerText.startsWith('There is no ')).map(box => {
    const range = document.createRange()
    range.selectNode(document.createTreeWalker(box, NodeFilter.SHOW_TEXT).nextNode())
    return Math.max(0, range.getBoundingClientRect().bottom - box.getBoundingClientRect().bottom) / app.canvas.ds.scale
  })
"""
OpenAs = Callable[..., AbstractContextManager[Frontend]]


def opened_in(open_as: OpenAs, locale: str, vue: bool = False) -> AbstractContextManager[Frontend]:
    """A page in this language. The server answers each page in the language of the one that was opened last."""
    return open_as(Comfy__Locale=locale, Comfy__VueNodes__Enabled=vue, Comfy__Minimap__Visible=False)


@pytest.fixture(scope="module")
def english(open_as: OpenAs) -> Iterator[Frontend]:
    """One page for all tests before those in Chinese."""
    with opened_in(open_as, "en") as opened:
        yield opened


@pytest.fixture(scope="module")
def chinese(open_as: OpenAs) -> Iterator[Frontend]:
    """One page for the tests in Chinese, which are the last ones."""
    with opened_in(open_as, "zh") as opened:
        yield opened


def check_texts(frontend: Frontend, refused: str, width: int, name: str) -> None:
    """A box of two lines showed no figure of the forecast. What is refused beside it keeps its sentence, in Chinese
    too: the forecast's run took it away."""
    page = frontend.page
    page.evaluate(_FORECAST, [20, width])
    expect(toast(frontend, refused)).to_be_visible()
    page.wait_for_timeout(1_000)
    expect(toast(frontend, refused)).to_be_visible()
    shown = page.evaluate(_HIDDEN)
    assert len(shown) == 2, shown
    assert any("CogVideoX-nano 5b" in text for text, *_ in shown), shown
    assert all(hidden <= 1 for _, hidden, _ in shown), shown
    assert max(height for *_, height in shown) > 200
    page.screenshot(path=ROOT / ".dev" / "screenshots" / f"first_hour_{name}.png")


def check_table(frontend: Frontend) -> None:
    """A classic node shows the signs of Markdown: each row is a sentence there."""
    (text,) = (text for text in frontend.page.evaluate(_SHOWN) if "CogVideoX-nano 5b" in text)
    rows = re.findall(r"^.+: \S.* \d+\.\d, .* \d+\.\d, .* \d+\.\d, .* \d+\.\d$", text, re.MULTILINE)
    assert len(rows) == 3 and "|" not in text, text


EN, ZH = "use 17 or 25, or else 21", "17 或 25"


def test_texts_are_seen_whole(english: Frontend) -> None:
    check_texts(english, EN, 64, "en_False")
    check_table(english)


def test_a_workflow_of_the_wrapper_shows_the_way_on(english: Frontend, comfyui: Server) -> None:
    """It had "3 errors found" and Unknown pack, and no word of migration."""
    document = TWELVE["control_net"]().document()
    document["nodes"][0]["title"] = _MARKUP
    frontend, page = english, english.page
    frontend.load(document, "wrapper")
    box = page.locator(".cogvideox-migration")
    expect(box).to_contain_text('python3 dev.py migrate "workflow.json"')
    expect(box).to_contain_text("made for ComfyUI-CogVideoXWrapper")
    box.get_by_role("button", name="Open it rewritten").click()
    expect(box).to_contain_text("What differs from the wrapper:", timeout=20_000)
    types = page.evaluate("() => app.graph.nodes.map(node => node.type)")
    assert "CogVideoXSample" in types and "CogVideoSampler" not in types
    assert page.evaluate("() => window.hacked") is None and page.locator('img[src="x"]').count() == 0
    box.get_by_role("button", name="Close").click()
    expect(box).to_have_count(0)
    request = urllib.request.Request(
        f"{comfyui.url}{ROUTE}", json.dumps(document).encode(), {"Origin": "http://another.example"}
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)


def test_toasts_leave_the_downloads_free(english: Frontend) -> None:
    """Three of nine lines lay over the panel with the download buttons, and over the next workflow. They said nearly
    the same: one names the three models, and one next step."""
    (example,) = (example for example in EXAMPLES if file_name(example).startswith("21 "))
    path = ROOT / "example_workflows" / f"{file_name(example)}.json"
    workflow = json.loads(path.read_text("utf-8"))
    frontend, page = english, english.page
    for leave in ("View details", "another workflow"):
        frontend.load(workflow, "missing")
        page.evaluate("() => app.queuePrompt(0)")
        expect(toast(frontend, "Press View details").first).to_be_visible()
        page.wait_for_timeout(500)  # until the last of its messages has come
        (told,) = page.locator(".p-toast-message").all_inner_texts()
        assert told.startswith("Load CogVideoX Model, Load CogVideoX Text Encoder, Load CogVideoX VAE\n")
        assert "each Download under Missing Models (" in told and "/models/" not in told
        texts = page.evaluate(_TEXTS_ON_NODES)
        assert len(texts) == 3 and all(text.startswith("There is no ") for text in texts)
        assert page.evaluate(_CUT) == [0, 0, 0], "a loader has no room for the sentence"
        if leave == "View details":
            page.get_by_test_id("error-overlay-see-errors").click()
        else:
            frontend.load({"nodes": [], "links": [], "version": 0.4}, "empty")
        expect(toast(frontend, "Press View details")).to_have_count(0)


def test_texts_are_seen_whole_in_chinese(chinese: Frontend) -> None:
    check_texts(chinese, ZH, 80, "zh_False")
    check_table(chinese)


def test_a_workflow_of_the_wrapper_in_chinese(chinese: Frontend) -> None:
    chinese.load(TWELVE["control_net"]().document(), "wrapper")
    expect(chinese.page.locator(".cogvideox-migration")).to_contain_text("未安装")


@pytest.mark.long  # the same in the classic renderer
@pytest.mark.parametrize(("locale", "refused", "width"), [("en", EN, 96), ("zh", ZH, 112)])
def test_texts_are_seen_whole_in_the_newer_renderer(open_as: OpenAs, locale: str, refused: str, width: int) -> None:
    with opened_in(open_as, locale, vue=True) as frontend:
        check_texts(frontend, refused, width, f"{locale}_True")
