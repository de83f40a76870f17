"""Templates in a Chinese ComfyUI: how they are listed, what they show, and that what is saved is the English file."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import PACK_NAME, ROOT
from cogvideox.tests.browser.page_scripts import OPEN_TEMPLATE
from cogvideox.tests.browser.test_templates import LOOK, NOTE, SAVED

_ZH = json.loads((ROOT / "locales" / "zh" / "main.json").read_text("utf-8"))["cogvideoxTemplates"]
_NAME, _APP = "22 Text to video with CogVideoX-5b", "42 Image to video as an app"
OpenAs = Callable[..., AbstractContextManager[Frontend]]

# What an opened graph shows of its author's texts: [titles of groups, titles of nodes, texts of notes].
_SHOWN = """
() => [app.graph.groups.map(group => group.title), app.graph.nodes.map(node => node.title),
  app.graph.nodes.filter(node => node.type === 'MarkdownNote').map(node => node.widgets[0].value)]
"""
# The same of what would be saved.
_WRITTEN = """
() => {
  const {groups, nodes} = app.graph.serialize()
  return [groups.map(group => group.title), nodes.filter(node => node.title).map(node => node.title),
    nodes.filter(node => node.type === 'MarkdownNote').map(node => node.widgets_values[0])]
}
"""
# What a script finds of a note while it is three times as long.
_WITH_A_LONGER_NOTE = """
async script => {
  const widget = app.graph.nodes.find(node => node.type === 'MarkdownNote').widgets[0], text = widget.value
  widget.value = [text, text, text].join('\\n\\n')
  await new Promise(done => setTimeout(done, 300))
  const found = eval(script)()
  widget.value = text
  return found
}
"""
_IS_MODIFIED = "() => app.extensionManager.workflow.activeWorkflow.isModified"


def texts(saved: dict) -> list[list[str]]:
    """What _WRITTEN gives of a template as it is in its file."""
    notes = [node["widgets_values"][0] for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    titles = [node["title"] for node in saved["nodes"] if "title" in node]
    return [[group["title"] for group in saved["groups"]], titles, notes]


def in_chinese(saved: dict) -> list[list[str]]:
    groups, titles, notes = texts(saved)
    told = [re.sub(r"(^\d+ {2})(.*)", lambda found: found[1] + _ZH["groups"][found[2]], group) for group in groups]
    paragraphs = ["\n\n".join(_ZH["notes"][part] for part in note.split("\n\n")) for note in notes]
    return [told, [_ZH["nodes"][title] for title in titles], paragraphs]


@pytest.fixture(scope="module", params=(False, True), ids=("classic", "vue"))
def chinese(open_as: OpenAs, request: pytest.FixtureRequest) -> Iterator[Frontend]:
    with open_as(Comfy__Locale="zh", Comfy__VueNodes__Enabled=request.param, Comfy__Minimap__Visible=False) as opened:
        yield opened


def check_chinese(frontend: Frontend, name: str) -> None:
    groups, titles, notes = frontend.page.evaluate(_SHOWN)
    wanted = in_chinese(SAVED[name])
    assert (groups, notes) == (wanted[0], wanted[2])
    assert set(wanted[1]) <= set(titles)


def test_a_template_is_shown_in_chinese_and_saved_as_it_was(chinese: Frontend) -> None:
    """A Chinese note in the file would be Chinese for everybody, and every opened template would ask to be saved."""
    chinese.page.evaluate(OPEN_TEMPLATE, [SAVED[_NAME], _NAME])
    chinese.settle()
    check_chinese(chinese, _NAME)
    chinese.page.evaluate(LOOK, 0.8)
    chinese.page.wait_for_timeout(700)
    text = chinese.page.locator(".comfy-markdown-content, .tiptap").first
    expect(text).to_contain_text("一个文件夹，只需一次")
    assert "*" not in text.inner_text()
    hidden, _ = chinese.page.evaluate(NOTE)
    assert hidden <= 2, "the note's text is cut off"
    assert chinese.page.evaluate(_WITH_A_LONGER_NOTE, NOTE)[0] > 40, "a note that is cut off is not noticed"
    assert chinese.page.evaluate(_WRITTEN) == texts(SAVED[_NAME])
    assert not chinese.page.evaluate(_IS_MODIFIED)


def test_what_the_user_writes_is_saved_as_it_stands(chinese: Frontend) -> None:
    """One's own words would come back as the template's."""
    chinese.page.evaluate(OPEN_TEMPLATE, [SAVED[_NAME], _NAME])
    chinese.page.evaluate("""() => {
      app.graph.groups[0].title = '我的模型'
      app.graph.nodes.find(node => node.type === 'MarkdownNote').widgets[0].value += '。'
    }""")
    groups, _, notes = chinese.page.evaluate(_WRITTEN)
    assert groups == ["我的模型", *texts(SAVED[_NAME])[0][1:]]
    assert notes == [f"{in_chinese(SAVED[_NAME])[2][0]}。"]
    written = chinese.page.evaluate("() => app.graph.serialize()")
    chinese.load(written, "again")
    groups, _, notes = chinese.page.evaluate(_SHOWN)
    assert groups == ["我的模型", *in_chinese(SAVED[_NAME])[0][1:]] and notes[0].endswith("。。")


@pytest.mark.parametrize(
    "away", ["app.graph.convertToSubgraph(new Set(ours))", "ours.map(node => app.graph.remove(node))"]
)
def test_notes_are_saved_in_english_where_our_nodes_have_gone(chinese: Frontend, away: str) -> None:
    """With all of our nodes in a subgraph, or deleted, what stood beside them was saved in Chinese."""
    chinese.page.evaluate(OPEN_TEMPLATE, [SAVED[_NAME], _NAME])
    chinese.page.evaluate(
        f"() => {{ const ours = app.graph.nodes.filter(node => /^CogVideoX/.test(node.type)); {away} }}"
    )
    groups, _, notes = chinese.page.evaluate(_WRITTEN)
    assert [groups, notes] == [texts(SAVED[_NAME])[0], texts(SAVED[_NAME])[2]]


def test_ones_own_chinese_is_saved_in_a_graph_of_ones_own(chinese: Frontend) -> None:
    """After a template had been open, a title that says the same in another graph became English there."""
    chinese.page.evaluate(OPEN_TEMPLATE, [SAVED[_NAME], _NAME])
    mine = json.loads(json.dumps(SAVED[_NAME])) | {"id": str(uuid.uuid4())}
    for holders, told in zip((mine["groups"], [node for node in mine["nodes"] if "title" in node]), in_chinese(mine)):
        for holder, title in zip(holders, told):
            holder["title"] = title
    chinese.load(mine, "mine")
    assert chinese.page.evaluate(_WRITTEN)[:2] == in_chinese(SAVED[_NAME])[:2]


def test_a_folder_called_as_the_chinese_titles_keeps_its_templates(chinese: Frontend) -> None:
    """A clone called CogVideoX-zh had none that opened, and neither had another pack of that name."""
    listed = {"CogVideoX-zh": ["Theirs"], PACK_NAME: ["01 Text to video"]}
    address = "**/api/workflow_templates"
    chinese.page.route(address, lambda route: route.fulfill(json=listed))
    found = chinese.page.evaluate("async () => (await import('/scripts/api.js')).api.getWorkflowTemplates()")
    chinese.page.unroute(address)
    assert found == listed


def test_a_graph_of_others_keeps_its_titles(chinese: Frontend) -> None:
    """Other packs have groups called *1  Checkpoint* and nodes called *Negative prompt*, too."""
    theirs = json.loads(json.dumps(SAVED[_NAME]))
    theirs["nodes"] = [node for node in theirs["nodes"] if node["type"] in ("MarkdownNote", "SaveVideo")]
    theirs["links"] = []
    for node in theirs["nodes"]:
        for slot in node.get("inputs", []):
            slot["link"] = None
    chinese.load(theirs, "theirs")
    groups, _, notes = chinese.page.evaluate(_SHOWN)
    assert [groups, notes] == [texts(theirs)[0], texts(theirs)[2]]


def test_a_form_has_chinese_fields(chinese: Frontend) -> None:
    chinese.load(SAVED[_APP], _APP)
    form = chinese.page.get_by_test_id("linear-widgets")
    form.wait_for()
    chinese.page.wait_for_timeout(1000)
    labels = {entry["label"] for node in SAVED[_APP]["nodes"] for entry in node.get("inputs", []) if "label" in entry}
    assert {_ZH["inputs"][label] for label in labels} <= set(form.inner_text().splitlines())


def test_the_list_has_chinese_titles_and_opens_them(chinese: Frontend) -> None:
    """The frontend takes a file's name for the title of a pack's template, and for its address."""
    page, title = chinese.page, _ZH["titles"]["01 Text to video"]
    page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    page.get_by_role("dialog").get_by_text("CogVideoX", exact=True).click()
    card = page.get_by_test_id(f"template-workflow-{title}")
    expect(card).to_contain_text(title)
    page.wait_for_function("image => image.naturalWidth > 100", arg=card.locator("img").first.element_handle())
    assert page.get_by_test_id("template-workflow-01 Text to video").count() == 0
    card.click()
    is_open = "title => app.extensionManager.workflow.activeWorkflow.filename.startsWith(title)"
    page.wait_for_function(is_open, arg=title)  # the page is shared, and another workflow is open on it until then
    chinese.settle()
    check_chinese(chinese, "01 Text to video")


def test_a_template_stays_english_in_english(one_page: Frontend) -> None:
    one_page.page.evaluate(OPEN_TEMPLATE, [SAVED[_NAME], _NAME])
    one_page.settle()
    groups, _, notes = one_page.page.evaluate(_SHOWN)
    assert [groups, notes] == [texts(SAVED[_NAME])[0], texts(SAVED[_NAME])[2]]
    assert one_page.page.evaluate(_WRITTEN) == texts(SAVED[_NAME])
