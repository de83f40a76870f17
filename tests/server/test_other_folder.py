"""The pack cloned under a name of the user's: templates, blueprints and their pictures are where they always are."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from cogvideox.devtools.build_blueprints import BLUEPRINTS
from cogvideox.devtools.client import object_info
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.paths import ROOT, TEMPLATES
from cogvideox.devtools.server import Server, request, running_server

# No space: aiohttp, which ComfyUI serves with, finds no static file below an address with one (its version 3.14
# compares the quoted prefix with the unquoted path), whatever pack it is of.
NAME = "My.CogVideoX-1.5_(2)"
NAMES = [file_name(example) for example in EXAMPLES]


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("renamed")
    prepare_base(base, ROOT, NAME)
    with running_server(Path(os.environ["COMFYUI_PATH"]), base, log=base / "server.log", cpu=True) as running:
        yield running


def test_templates_are_listed_in_order_under_the_name_of_the_pack(renamed: Server) -> None:
    """The folder's name, and the disk's order, would say nothing to a user who looks for CogVideoX."""
    assert json.loads(request(f"{renamed.url}/api/workflow_templates"))[NAME] == NAMES
    texts = json.loads(request(f"{renamed.url}/api/i18n"))
    assert texts["en"]["templateWorkflows"]["category"]["My_CogVideoX-1_5_(2)"] == "CogVideoX"
    assert texts["zh"]["templateWorkflows"]["category"]["My_CogVideoX-1_5_(2)"] == "CogVideoX"
    assert texts["zh"]["nodeDefs"], "the pack's own translations are still there"


@pytest.mark.parametrize("ending", ("json", "jpg"))
def test_each_file_is_served(renamed: Server, ending: str) -> None:
    for name in NAMES:
        path = quote(f"/api/workflow_templates/{NAME}/{name}.{ending}")
        assert request(f"{renamed.url}{path}") == (TEMPLATES / f"{name}.{ending}").read_bytes()


def test_blueprints_and_nodes_are_there(renamed: Server) -> None:
    found = json.loads(request(f"{renamed.url}/api/global_subgraphs")).values()
    ours = [entry["name"] for entry in found if entry["info"]["node_pack"] == f"custom_nodes.{NAME}"]
    assert sorted(ours) == sorted(blueprint.name for blueprint in BLUEPRINTS)
    assert "CogVideoXSample" in object_info(renamed.url)
