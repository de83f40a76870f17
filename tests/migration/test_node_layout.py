"""Where the nodes of a rewritten workflow lie: none covers another, and all else stays."""

import copy
from typing import Any

import pytest

from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options
from cogvideox.migration.node_layout import TEXT_ROOM, TITLE, separate_nodes
from cogvideox.tests.migration.wrapper_flows import TWELVE

# Left, top, width and height by id, of text to video as its user has packed it.
PACKED = {
    1: (0, 0, 340, 260),  # the model
    2: (0, 320, 340, 106),  # the text encoder, where the VAE's new loader ends
    3: (400, 0, 400, 160),  # both prompts, for which the new nodes are too high
    4: (400, 220, 400, 160),
    5: (400, 440, 300, 106),
    6: (860, 0, 330, 350),
    7: (1240, 0, 300, 198),
    8: (1240, 240, 300, 300),
}
PACKED_NAMES = [name for name in TWELVE if name != "tora"]


def rectangles(document: dict) -> dict[int, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node with its title."""
    found = {}
    for node in document["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        found[node["id"]] = (x, y - TITLE, x + width, y + height)
    return found


def covering(document: dict) -> list[tuple[int, int]]:
    """The pairs of nodes that cover each other."""
    found = list(rectangles(document).items())
    return [
        (one, other)
        for number, (one, a) in enumerate(found)
        for other, b in found[:number]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


def rewritten(document: dict, **options: Any) -> dict:
    before = copy.deepcopy(document)
    written, work = migrate_workflow(document, Options(**options))
    assert written is not None, work.of("refused")
    assert document == before, "whoever has it open would see it change"
    return written


def packed(name: str = "t2v_5b_dpm") -> dict:
    """A workflow without room between its nodes: those that are not in PACKED stand below each other."""
    document = TWELVE[name]().document()
    for number, node in enumerate(document["nodes"]):
        x, y, width, height = (620 * (number // 4), 146 * (number % 4), 600, 106)
        if name == "t2v_5b_dpm":
            x, y, width, height = PACKED[node["id"]]
        node |= {"pos": [x, y], "size": [width, height]}
    assert not covering(document)
    return document


def of_type(document: dict, kind: str) -> list[dict]:
    return [node for node in document["nodes"] if node["type"] == kind]


@pytest.mark.parametrize("name", TWELVE)
def test_no_node_covers_another(name: str) -> None:
    """Two nodes on each other look like one, of which half the widgets cannot be reached."""
    document = TWELVE[name]().document()
    assert not covering(rewritten(document, leave_out=True))


@pytest.mark.parametrize("name", PACKED_NAMES)
def test_no_node_covers_another_of_a_packed_workflow(name: str) -> None:
    """New nodes are higher than those that a user has packed closely, and lie in their columns in the same order."""
    document = packed(name)
    written = rewritten(document)
    assert not covering(written)
    kept = {node["id"]: node["pos"] for node in document["nodes"]}
    for node in written["nodes"]:
        if node["id"] in kept:
            assert node["pos"][0] == kept[node["id"]][0] and node["pos"][1] >= kept[node["id"]][1]


def test_the_order_within_a_column_stays() -> None:
    """A user looks for the prompts above the size, where they were; what has room stays in its place."""
    written = rewritten(packed())
    first, second = of_type(written, "CogVideoXEncodeText")
    (empty,), (text_encoder,) = of_type(written, "CogVideoXEmptyLatent"), of_type(written, "CogVideoXLoadTextEncoder")
    assert first["pos"] == [400, 0] and first["widgets_values"][0]
    for above, below in ((first, second), (second, empty)):
        assert above["pos"][1] + above["size"][1] + TEXT_ROOM + TITLE <= below["pos"][1]
    (vae,) = of_type(written, "CogVideoXLoadVAE")
    assert vae["pos"][1] + vae["size"][1] < text_encoder["pos"][1]
    assert [node["pos"] for node in of_type(written, "CogVideoXSample")] == [[860, 0]]


def test_a_workflow_with_room_stays_as_it_is() -> None:
    """A user's own picture of a workflow is worth keeping, also where own nodes cover each other."""
    document = TWELVE["t2v_2b"]().document()
    for number, node in enumerate(document["nodes"]):
        node["pos"] = [400 * number, 700]
    document["nodes"] += [{"id": 90 + n, "type": "Note", "pos": [0, 3000 + n], "size": [200, 100]} for n in range(2)]
    document["groups"] = [{"title": "all", "bounding": [-50, 600, 5000, 900]}]
    places = {tuple(node["pos"]) for node in document["nodes"]}
    written = rewritten(document)
    assert {tuple(node["pos"]) for node in written["nodes"]} <= places | {(0, 964)}  # the VAE, below the model
    assert written["groups"] == document["groups"]


def test_groups_grow_and_move_with_their_nodes() -> None:
    """A node that has left its group stays behind when the group is moved, and one of another comes along."""
    document = packed()
    document["groups"] = [
        {"title": "prompts", "bounding": [390, -70, 420, 460]},
        {"title": "size", "bounding": [390, 395, 420, 160]},
        {"title": "output", "bounding": [1230, -70, 330, 620]},
    ]
    written = rewritten(document)
    assert not covering(written)
    (left, top, width, height), size, output = (group["bounding"] for group in written["groups"])
    inside = rectangles(written)
    for node in of_type(written, "CogVideoXEncodeText"):
        x, y, right, bottom = inside[node["id"]]
        assert left <= x and top <= y and right <= left + width and bottom <= top + height
    assert (left, top) == (390, -70) and top + height <= size[1], "one group would hold the other's nodes"
    x, y, right, bottom = inside[of_type(written, "CogVideoXEmptyLatent")[0]["id"]]
    assert size[0] <= x and size[1] <= y and bottom <= size[1] + size[3]
    (saved,) = of_type(written, "SaveImage")
    assert inside[saved["id"]][3] <= output[1] + output[3]


@pytest.mark.parametrize("place", [None, [], ["0", 0], [1e300, 0], [float("nan"), 0], {"0": 0}, [10**300, 0]])
def test_damaged_places(place: Any) -> None:
    """A file comes from anybody: a node without a place has none afterwards, and its neighbours have theirs."""
    document = packed()
    document["nodes"][7] |= {"pos": place, "size": place, "flags": place}
    document["groups"] = [place, {"bounding": place}, {"bounding": [place] * 4}]
    written = rewritten(document)
    (saved,) = of_type(written, "SaveImage")
    assert repr(saved["pos"]) == repr(place) and repr(written["groups"]) == repr(document["groups"])
    assert of_type(written, "CogVideoXEmptyLatent")[0]["pos"][1] > 440


def test_older_places_and_collapsed_nodes() -> None:
    """Older frontends wrote objects; of a collapsed node only the title is seen, and a reroute has none."""
    nodes = [
        {"id": 1, "type": "A", "pos": {"0": 0, "1": 0}, "size": {"0": 100, "1": 200}},
        {"id": 2, "type": "B", "pos": {"0": 0, "1": 210}, "size": {"0": 100, "1": 100}},
        {"id": 3, "type": "C", "pos": [200, 0], "size": [100, 200], "flags": {"collapsed": True}},
        {"id": 4, "type": "D", "pos": [200, 30 + TEXT_ROOM], "size": [100, 100]},
        {"id": 5, "type": "E", "pos": [400, 0], "size": [100, 100]},
        {"id": 6, "type": "Reroute", "pos": [400, 100 + TEXT_ROOM], "size": [75, 26]},
    ]
    separate_nodes({"nodes": nodes}, {1, 3, 5})
    assert nodes[1]["pos"] == [0, 200 + TEXT_ROOM + 20 + TITLE]
    assert [node["pos"] for node in nodes[2:]] == [[200, 0], [200, 80], [400, 0], [400, 150]]
