"""Every template against the schemas of a real server: no unknown node, lost link, shifted or refused value."""

import json
from collections.abc import Callable

import pytest

from cogvideox.devtools import client
from cogvideox.devtools.build_blueprints import BLUEPRINTS, FOLDER, Blueprint
from cogvideox.devtools.paths import TEMPLATES
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
    assert faults(SAVED[name], schemas) == []


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
