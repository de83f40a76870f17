"""ComfyUI's node replacement for the wrapper's nodes: what is offered is the same, and nothing is replaced unasked."""

import asyncio
import copy
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.migration.replacements import REPLACEMENTS
from cogvideox.migration.wrapper_nodes import WRAPPER
from cogvideox.nodes import CogVideoXExtension, replacing
from cogvideox.tests.migration.graph_checks import schemas


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """ComfyUI's own manager of replacements, with those of the pack."""
    import server
    from app.node_replace_manager import NodeReplaceManager

    import nodes

    found = NodeReplaceManager()
    instance = SimpleNamespace(
        node_replace_manager=found,
        app=SimpleNamespace(on_startup=[]),
        on_prompt_handlers=[],
    )
    instance.add_on_prompt_handler = instance.on_prompt_handlers.append
    monkeypatch.setattr(found, "handlers", instance.on_prompt_handlers, raising=False)
    monkeypatch.setattr(server.PromptServer, "instance", instance, raising=False)
    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {**nodes.NODE_CLASS_MAPPINGS})
    for node in asyncio.run(CogVideoXExtension().get_node_list()):
        nodes.NODE_CLASS_MAPPINGS[node.__name__] = node
    asyncio.run(CogVideoXExtension().on_load())
    yield found


def prompt() -> dict[str, Any]:
    """A part of a prompt of the wrapper's, as the frontend sends it."""
    tiles = {"enable_vae_tiling": True, "tile_sample_min_height": 240, "auto_tile_size": True}
    return {
        "1": {
            "class_type": "CogVideoXVAELoader",
            "inputs": {"model_name": "cogvideox_vae.safetensors", "precision": "fp32"},
            "_meta": {"title": "VAE"},
        },
        "2": {
            "class_type": "CogVideoDecode",
            "inputs": {"vae": ["1", 0], "samples": ["9", 0], **tiles},
            "_meta": {"title": "Decode"},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}, "_meta": {"title": "Save"}},
    }


def test_replaced_nodes_are_the_same(manager: Any) -> None:
    """Names, values and links arrive at the inputs that mean them, and what has no counterpart is gone."""
    found = prompt()
    manager.apply_replacements(found)
    assert found["1"]["class_type"] == "CogVideoXLoadVAE"
    assert found["1"]["inputs"] == {"vae_name": "cogvideox_vae.safetensors", "weight_dtype": "fp32"}
    assert found["2"]["class_type"] == "CogVideoXDecode"
    assert found["2"]["inputs"] == {"vae": ["1", 0], "samples": ["9", 0], "memory": "auto"}
    assert found["3"]["inputs"] == {"images": ["2", 0]}


def test_incomplete_nodes_of_a_script(manager: Any) -> None:
    """ComfyUI answered with an error 500, where without the pack it says that the node is unknown."""
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"vae": ["1", 0], "samples": ["9", 0]}, {"vae": ["1", 0], "samples": ["9", 0], "memory": "auto"}),
        ({"vae": ["1", 0]}, {"vae": ["1", 0], "memory": "auto"}),  # ComfyUI then names the input that is missing
        ({}, {"memory": "auto"}),
    ]
    for given, expected in cases:
        for meta in ({}, {"_meta": None}, {"_meta": "Decode"}, {"_meta": {}}):
            found = {"2": {"class_type": "CogVideoDecode", "inputs": dict(given), **meta}}
            found["3"] = prompt()["3"]
            request = replacing.replace_incomplete({"prompt": found, "client_id": "mine"})
            manager.apply_replacements(request["prompt"])
            assert (found["2"]["class_type"], found["2"]["inputs"]) == ("CogVideoXDecode", expected)
            assert found["3"] == prompt()["3"]


@pytest.mark.parametrize("old", REPLACEMENTS)
def test_each_node_without_anything(old: str, manager: Any) -> None:
    found = {"1": {"class_type": old, "inputs": {}}}
    manager.apply_replacements(replacing.replace_incomplete({"prompt": found})["prompt"])
    assert found["1"] == {"class_type": REPLACEMENTS[old].new, "inputs": dict(REPLACEMENTS[old].values)}


@pytest.mark.parametrize(
    "request_", [{}, {"prompt": None}, {"prompt": []}, {"prompt": {"1": None, "2": {"class_type": []}, "3": {}}}]
)
def test_what_is_no_prompt_is_left_to_comfyui(request_: dict[str, Any], manager: Any) -> None:
    assert replacing.replace_incomplete(copy.deepcopy(request_)) == request_


def test_whole_nodes_are_left_to_comfyui(manager: Any) -> None:
    assert replacing.replace_incomplete({"prompt": prompt()}) == {"prompt": prompt()}
    assert replacing.replace_incomplete in manager.handlers


def test_an_installed_wrapper_keeps_its_nodes(manager: Any) -> None:
    """Whoever has both packs runs old workflows as before."""
    import nodes

    for name in REPLACEMENTS:
        nodes.NODE_CLASS_MAPPINGS[name] = object
    found = prompt()
    del found["2"]["_meta"]
    manager.apply_replacements(replacing.replace_incomplete({"prompt": found})["prompt"])
    assert found == prompt() | {"2": {name: value for name, value in prompt()["2"].items() if name != "_meta"}}


def test_the_browser_gets_the_table(manager: Any) -> None:
    """The frontend finds a widget's value by its place: the places are those in which the wrapper saves them."""
    served = json.loads(json.dumps(manager.as_dict()))
    assert set(served) == set(REPLACEMENTS)
    for old, (entry,) in served.items():
        known = [spec.name for spec in WRAPPER[old] if spec.is_widget]
        assert entry["old_widget_ids"][: len(known)] == known
        assert entry["output_mapping"] == [{"new_idx": 0, "old_idx": 0}]


@pytest.mark.parametrize("old", REPLACEMENTS)
def test_no_required_input_is_left_empty(old: str) -> None:
    """A replaced node that lacks one does not run; and ComfyUI fails on an old input that a prompt need not have."""
    replacement = REPLACEMENTS[old]
    schema = schemas()[replacement.new]["input"]
    given = {**replacement.inputs, **replacement.values}
    needed = {name for name, spec in schema["required"].items() if "default" not in spec[1]}
    assert needed <= set(given) <= {*schema["required"], *schema.get("optional", {})}
    sockets = {spec.name for spec in WRAPPER[old]}
    assert set(replacement.inputs.values()) <= sockets


def test_a_script_and_an_older_comfyui_notice_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server there is nobody to register at, and a version before replacements has no such name."""
    import server

    monkeypatch.setattr(server.PromptServer, "instance", None, raising=False)
    asyncio.run(replacing.register_replacements())
    monkeypatch.setattr(server.PromptServer, "instance", SimpleNamespace(), raising=False)
    monkeypatch.setattr(replacing, "latest", SimpleNamespace(ComfyAPI=SimpleNamespace))
    asyncio.run(replacing.register_replacements())
