"""Every template against the schemas of a real server: no unknown node, lost link, shifted or refused value."""

import json
from collections.abc import Callable

import pytest

from cogvideox.devtools import client
from cogvideox.devtools.build_blueprints import BLUEPRINTS, FOLDER, Blueprint
from cogvideox.devtools.example_workflows import EXAMPLES, Example, file_name
from cogvideox.devtools.paths import TEMPLATES
from cogvideox.devtools.workflow import _input_specs, _pair
from cogvideox.tests.template_runs import skip_without_its_nodes
from cogvideox.tests.template_values import faults

SAVED = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(TEMPLATES.glob("*.json"))}
# What is not there before a download or an upload, and is not named in `properties.models`.
LATER = {
    "CogVideoXLoadControlNet": ["cogvideox-5b-controlnet-canny-v1"],
    "LoadImage": ["example.png"],  # in every ComfyUI's input folder
}


@pytest.fixture(scope="module")
def schemas(comfyui) -> dict:
    known = client.object_info(comfyui.url)
    for node, names in LATER.items():
        first = next(iter(known[node]["input"]["required"].values()))
        (first[0] if isinstance(first[0], list) else first[1]["options"]).extend(names)
    return known


@pytest.mark.parametrize("name", SAVED)
def test_template_fits_the_nodes(schemas: dict, name: str) -> None:
    """A user opening it would see red nodes, cut links, or a seed where the steps belong."""
    skip_without_its_nodes(SAVED[name])
    assert faults(SAVED[name], schemas) == []


@pytest.mark.parametrize("example", EXAMPLES, ids=file_name)
def test_what_no_table_sets_is_the_nodes_default(schemas: dict, example: Example) -> None:
    """Ten templates had a denoise of 0.6, a size or a cfg of whichever template was built before them."""
    specs = [spec for column in example.columns for spec in column.nodes]
    nodes = sorted(SAVED[file_name(example)]["nodes"], key=lambda node: node["id"])
    assert [node["type"] for node in nodes] == [spec.type for spec in specs]
    for spec, node in zip(specs, nodes):
        if spec.type.startswith("CogVideoX"):
            assert others_than_default(schemas[spec.type], node, set(spec.widgets)) == {}, spec.name


def others_than_default(schema: dict, node: dict, set_by_table: set[str]) -> dict[str, object]:
    """Widget -> value, of those that have another value than the node's own."""
    known = dict(_input_specs(schema))
    found = {}
    for name, value in _pair(list(known.items()), list(node.get("widgets_values") or [])):
        options = known[name][1] if name in known and len(known[name]) > 1 else {}
        if name not in set_by_table and "default" in options and value != options["default"]:
            found[name] = value
    return found


def swapped(workflow: dict) -> None:
    values = next(node for node in workflow["nodes"] if node["type"] == "CogVideoXSample")["widgets_values"]
    values[2], values[4] = values[4], values[2]


def shorter(workflow: dict) -> None:
    next(node for node in workflow["nodes"] if node["type"] == "CogVideoXEmptyLatent")["widgets_values"].append(1)


def unlinked(workflow: dict) -> None:
    workflow["links"].pop()


def renamed(workflow: dict) -> None:
    workflow["nodes"][0]["type"] = "CogVideoXNoSuchNode"


def misnamed(workflow: dict) -> None:
    workflow["nodes"][0]["widgets_values"][0] = "a model that is not there"


def too_many_steps(workflow: dict) -> None:
    next(node for node in workflow["nodes"] if node["type"] == "CogVideoXEmptyLatent")["widgets_values"][0] = -16


@pytest.mark.parametrize("damage", (swapped, shorter, unlinked, renamed, misnamed, too_many_steps))
def test_damage_is_found(schemas: dict, damage: Callable[[dict], None]) -> None:
    """Guards the test above."""
    workflow = json.loads(json.dumps(SAVED["01 Text to video"]))
    assert faults(workflow, schemas) == []
    damage(workflow)
    assert faults(workflow, schemas)


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_blueprint_fits_the_nodes(schemas: dict, blueprint: Blueprint) -> None:
    """One node that a user drags in: its inner nodes have to fit as those of a template do."""
    saved = json.loads((FOLDER / f"{blueprint.name}.json").read_text("utf-8"))
    assert faults(saved, schemas) == []
    (node,) = saved["nodes"]
    (subgraph,) = saved["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"] and node["title"] == subgraph["name"] == blueprint.name
    names = [entry["name"] for entry in node["inputs"]]
    assert names == [entry["name"] for entry in subgraph["inputs"]] and len(set(names)) == len(names)
    widgets = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    assert widgets[-len(blueprint.widgets) :] == [name for name, *_ in blueprint.widgets]
    shown = dict(zip(widgets, node["widgets_values"]))
    inner = [spec for column in blueprint.example.columns for spec in column.nodes]
    for name, of, widget in blueprint.widgets:
        (spec,) = (spec for spec in inner if spec.name == of)
        if widget in spec.widgets:
            assert shown[name] == spec.widgets[widget], name
