"""The templates' files: their names and order, where the nodes stand, which pack they come from, what notes refer to.

That their values fit the nodes is checked by tests/server/test_template_values.py, what the frontend makes of them by
tests/browser."""

import itertools
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.devtools import paths
from cogvideox.devtools.build_example_workflow import leave_out_no_values
from cogvideox.devtools.example_workflows import EXAMPLES, Example, file_name
from cogvideox.devtools.example_workflows.layout import TITLE_PX, lay_out
from cogvideox.devtools.example_workflows.stamp import pack, stamp
from cogvideox.devtools.example_workflows.table import ADVANCED, INPUT_FPS, Column, Node
from cogvideox.host import patches
from cogvideox.nodes import NODES

SAVED = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(paths.TEMPLATES.glob("*.json"))}
BY_NAME = {file_name(example): example for example in EXAMPLES}
Box = tuple[float, float, float, float]  # left, top, right, bottom


def test_files_are_those_of_the_tables_and_stand_in_their_order() -> None:
    """ComfyUI shows a file's name as the template's title, and lists by it: a card without a table cannot be rebuilt,
    and the simplest template is the first."""
    assert list(SAVED) == [file_name(example) for example in EXAMPLES]
    assert list(SAVED)[0] == "01 Text to video"
    assert sorted(file.stem for file in paths.TEMPLATES.glob("*.jpg")) == list(SAVED)
    for name in SAVED:
        # No sign that a disk, an address or a translation's key takes for its own.
        assert re.fullmatch(r"\d\d [A-Z][\w ,.()-]+", name), name
        assert len(name) <= 60, "longer titles are cut on the card"


def node_box(node: dict) -> Box:
    left, top = node["pos"]
    return left, top - TITLE_PX, left + node["size"][0], top + node["size"][1]


def group_box(group: dict) -> Box:
    left, top, width, height = group["bounding"]
    return left, top, left + width, top + height


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def contains(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def misplaced(workflow: dict) -> list[str]:
    """What overlaps in a workflow, and what stands outside every group or in two."""
    nodes = {f"{node['id']} {node['type']}": node_box(node) for node in workflow["nodes"]}
    groups = {group["title"]: group_box(group) for group in workflow["groups"]}
    found = [
        f"{one} overlaps {other}"
        for boxes in (nodes, groups)
        for (one, a), (other, b) in itertools.combinations(boxes.items(), 2)
        if overlap(a, b)
    ]
    inside = {name: [title for title, group in groups.items() if contains(group, box)] for name, box in nodes.items()}
    return found + [f"{name} is in {titles}" for name, titles in inside.items() if len(titles) != 1]


@pytest.mark.parametrize("name", SAVED)
def test_nothing_overlaps(name: str) -> None:
    """A node under another cannot be read, and one outside its group does not move with it."""
    assert misplaced(SAVED[name]) == []


@pytest.mark.parametrize("change", ({"pos": [0, 100]}, {"size": [900, 200]}, {"pos": [0, 5000]}))
def test_an_overlap_is_found(change: dict) -> None:
    workflow = json.loads(json.dumps(SAVED["01 Text to video"]))
    workflow["nodes"][1].update(change)
    assert misplaced(workflow)


def test_layout_takes_the_higher_of_what_is_needed_and_what_is_wanted() -> None:
    """A preview needs room that the node does not ask for before it runs; a node needs what its widgets take."""
    columns = (
        Column("a", 300, (Node("one", "A"), Node("two", "B", height=400))),
        Column("b", 200, (Node("three", "C", height=10),)),
    )
    example = Example("x", "X", columns)
    workflow: dict[str, Any] = {"nodes": [{"id": 1, "type": "A"}, {"id": 2, "type": "B"}, {"id": 3, "type": "C"}]}
    lay_out(example, workflow, {"one": 100.4, "two": 120, "three": 50})
    assert [node["size"] for node in workflow["nodes"]] == [[300, 101], [300, 400], [200, 50]]
    assert misplaced(workflow) == []
    assert len({group_box(group)[3] for group in workflow["groups"]}) == 1  # they end together


@pytest.mark.parametrize("name", SAVED)
def test_nodes_say_which_pack_and_version_they_are_of(name: str) -> None:
    """Who opens the workflow without the pack is offered it. After a new version: build_example_workflow."""
    for node in (node for graph in graphs(SAVED[name]) for node in graph["nodes"]):
        properties = node["properties"]
        if node["type"].startswith("CogVideoX"):
            assert (properties["cnr_id"], properties["ver"]) == pack(), node["type"]
        elif node["type"] != "MarkdownNote" and "-" not in node["type"]:
            assert properties["cnr_id"] == "comfy-core" and re.fullmatch(r"\d+\.\d+\.\d+", properties["ver"])


def graphs(workflow: dict) -> list[dict]:
    return [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]


def test_a_stamp_reaches_nodes_in_subgraphs_and_leaves_these_alone() -> None:
    inner = {"id": "1-2", "nodes": [{"type": "CogVideoXSample"}]}
    workflow = {"nodes": [{"type": "1-2"}, {"type": "SaveVideo"}], "definitions": {"subgraphs": [inner]}}
    stamp(workflow, "0.30.0")
    assert inner["nodes"][0]["properties"] == dict(zip(("cnr_id", "ver"), pack()))
    assert workflow["nodes"] == [
        {"type": "1-2"},
        {"type": "SaveVideo", "properties": {"cnr_id": "comfy-core", "ver": "0.30.0"}},
    ]


def notes(workflow: dict) -> list[str]:
    return [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]


@pytest.mark.parametrize("name", SAVED)
def test_notes_name_templates_that_exist_and_say_how_to_watch(name: str) -> None:
    (text,) = notes(SAVED[name])
    named = re.findall(r"template \*\*(.+?)\*\*", text)
    assert set(named) <= set(SAVED), named  # with its number, by which it is found in the list
    assert named or BY_NAME[name].needs, "the toy's note says where real videos are made"
    assert "Live preview method" in text


@pytest.mark.parametrize("name", SAVED)
def test_notes_have_no_code(name: str) -> None:
    """Vue nodes draw it in blue letters on a blue bar: the name of a file or of a widget could not be read."""
    assert not any("`" in text for text in notes(SAVED[name]))


@pytest.mark.parametrize("name", SAVED)
def test_notes_say_where_a_folded_input_is(name: str) -> None:
    """Vue nodes do not show it before a click on its node's *Show advanced inputs*; classic ones have no
    such button."""
    (text,) = notes(SAVED[name])
    schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}
    used = [schemas[node["type"]] for node in SAVED[name]["nodes"] if node["type"] in schemas]
    for folded in {entry.id for schema in used for entry in schema.inputs if entry.advanced}:
        named = text.count(f"*{folded}*")
        assert named == text.count(f"*{folded}* {ADVANCED}"), folded


def test_each_video_is_called_as_its_template() -> None:
    """All were video/CogVideoX_0000N: which was which only the clock said."""
    prefixes = {
        name: node["widgets_values"][0]
        for name, saved in SAVED.items()
        for node in saved["nodes"]
        if node["type"] == "SaveVideo"
    }
    assert prefixes.keys() == SAVED.keys()
    assert len(set(prefixes.values())) == len(SAVED)
    assert prefixes["02 Image to video"] == "video/CogVideoX image to video"
    assert all(re.fullmatch(r"video/[\w .-]*CogVideoX[\w .-]*", prefix) for prefix in prefixes.values()), prefixes


def test_a_template_does_not_depend_on_those_built_before_it() -> None:
    """The frontend gives a node without values an empty list, or none, by what was built before: a full build changed
    files whose tables were as before."""
    saved = {"nodes": [{"id": 1, "widgets_values": []}, {"id": 2, "widgets_values": [0]}, {"id": 3}]}
    leave_out_no_values(saved)
    assert saved == {"nodes": [{"id": 1}, {"id": 2, "widgets_values": [0]}, {"id": 3}]}
    assert not [name for name, one in SAVED.items() if [] in (node.get("widgets_values") for node in one["nodes"])]


_TAKE_A_VIDEO = [name for name, saved in SAVED.items() if "GetVideoComponents" in {n["type"] for n in saved["nodes"]}]


@pytest.mark.parametrize("name", [name for name in _TAKE_A_VIDEO if not BY_NAME[name].app])
def test_notes_say_how_to_take_a_video_of_ones_own(name: str) -> None:
    (text,) = notes(SAVED[name])
    assert "connect *Load Video* to *Get Video Components*" in text


def test_notes_say_where_checkpoints_of_a_training_stay() -> None:
    """Half a gigabyte each for a real model, in a folder that nothing named."""
    trained = [name for name, saved in SAVED.items() if "CogVideoXTrainLora" in {n["type"] for n in saved["nodes"]}]
    assert len(trained) == 2
    assert all("*output/cogvideox_training*" in notes(SAVED[name])[0] for name in trained)


@pytest.mark.parametrize("name", [name for name in SAVED if BY_NAME[name].app])
def test_fields_of_an_app_have_the_names_of_a_form(name: str) -> None:
    """*text* and *folder* are names of a program."""
    nodes = {node["id"]: node for node in SAVED[name]["nodes"]}
    for id_, widget in SAVED[name]["extra"]["linearData"]["inputs"]:
        (entry,) = (entry for entry in nodes[id_]["inputs"] if entry.get("widget", {}).get("name") == widget)
        assert re.match(r"[A-Z]", entry.get("label", "")), widget


_WINDOW_PX, _FITTED = (1600, 1000), 0.75  # a common size of the page; the share that an opened graph takes of it


@pytest.mark.parametrize("name", [name for name in SAVED if not BY_NAME[name].app])
def test_a_template_opens_large_enough_to_be_read(name: str) -> None:
    """ComfyUI fits the whole graph into the page; below about 0.5 the classic renderer leaves texts out."""
    boxes = [group_box(group) for group in SAVED[name]["groups"]]
    width = max(box[2] for box in boxes) - min(box[0] for box in boxes)
    height = max(box[3] for box in boxes) - min(box[1] for box in boxes)
    zoom = _FITTED * min(_WINDOW_PX[0] / width, _WINDOW_PX[1] / height)
    assert zoom > (0.64 if not BY_NAME[name].needs else 0.6), f"{name} opens at {zoom:.0%}"


def test_a_group_stands_below_another_one() -> None:
    columns = (
        Column("a", 300, (Node("one", "A"),)),
        Column("b", 300, (Node("two", "B"),), is_below=True),
        Column("c", 200, (Node("three", "C"),)),
    )
    workflow: dict[str, Any] = {"nodes": [{"id": 1, "type": "A"}, {"id": 2, "type": "B"}, {"id": 3, "type": "C"}]}
    lay_out(Example("x", "X", columns), workflow, {"one": 100, "two": 120, "three": 50})
    first, second, third = (group_box(group) for group in workflow["groups"])
    assert misplaced(workflow) == []
    assert first[0] == second[0] < third[0] and first[3] < second[1] and second[3] == third[3]


def test_the_picture_of_the_app_is_the_one_that_its_prompt_describes() -> None:
    """ComfyUI's example.png, a girl on a hill, came out smeared by a prompt of a red square. And where the input folder
    lacked it, ComfyUI refused the app for a Load Image that was not even used."""
    nodes = {node["type"]: node for node in SAVED["42 Image to video as an app"]["nodes"]}
    links = {link[0]: link for link in SAVED["42 Image to video as an app"]["links"]}
    own = nodes["CogVideoXOwnImage"]
    source = {entry["name"]: links[entry["link"]][1] for entry in own["inputs"] if entry["link"]}
    assert source == {"otherwise": nodes["CogVideoXExample"]["id"]} and own["widgets_values"][0] == ""
    assert "LoadImage" not in nodes
    assert nodes["CogVideoXExample"]["widgets_values"][0] == "picture"


@pytest.mark.parametrize("name", [name for name in SAVED if any("Download" in n["type"] for n in SAVED[name]["nodes"])])
def test_the_first_line_of_a_note_says_how_to_switch_the_download_on(name: str) -> None:
    """A bypassed node is nearly unreadable, and nothing else tells of it before Run."""
    (text,) = notes(SAVED[name])
    assert "Ctrl+B" in text.splitlines()[0] and "download" in text.splitlines()[0]


@pytest.mark.parametrize("name", SAVED)
def test_videos_run_at_the_models_speed(name: str) -> None:
    """CreateVideo's own default is 30 frames a second: a clip of six seconds would be over after two."""
    workflow = SAVED[name]
    for node in workflow["nodes"]:
        if node["type"] == "CreateVideo":
            fps = next(entry for entry in node["inputs"] if entry["name"] == "fps")
            assert fps["link"] is not None or node["widgets_values"][0] == BY_NAME[name].fps


def test_toys_run_at_the_toys_speed() -> None:
    assert {example.fps for example in EXAMPLES if not example.needs} == {INPUT_FPS}


def fake_manager(monkeypatch: pytest.MonkeyPatch, translations: dict, files: list[str]) -> SimpleNamespace:
    class Manager:
        def build_translations(self) -> dict:
            return translations

    found = SimpleNamespace(glob=lambda pattern: [f for f in files if pattern in f], escape=lambda text: text)
    manager = SimpleNamespace(CustomNodeManager=Manager, glob=found)
    monkeypatch.setitem(patches.sys.modules, "app.custom_node_manager", manager)
    return manager


def test_category_and_order_whatever_the_folder_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk lists files in an order of its own, and a clone may have any name."""
    theirs = {"en": {"nodeDefs": {"A": 1}, "templateWorkflows": {"category": {"other": "Other"}}}}
    files = ["p/e/02 B.json", "p/e/10 C.json", "p/e/01 A, more.json", "p/e/01 A.json"]
    manager = fake_manager(monkeypatch, theirs, files)
    for _ in range(2):  # a second pack of ours changes nothing
        patches.wrap_templates(("my.clone", "in-chinese"), "CogVideoX")
    assert manager.glob.glob("p/e") == ["p/e/01 A.json", "p/e/01 A, more.json", "p/e/02 B.json", "p/e/10 C.json"]
    assert manager.glob.escape("x") == "x"
    got = manager.CustomNodeManager().build_translations()
    assert got["en"]["nodeDefs"] == {"A": 1}
    ours = {"my_clone": "CogVideoX", "in-chinese": "CogVideoX"}
    assert got["en"]["templateWorkflows"]["category"] == {"other": "Other", **ours}
    assert got["zh"]["templateWorkflows"]["category"] == ours
    assert theirs["en"]["templateWorkflows"]["category"] == {"other": "Other"}, "ComfyUI's own dict is left alone"
