import json

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.nodes import NODES

SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}
FILES = sorted((ROOT / "locales").glob("*/nodeDefs.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_translation_names_every_node_and_input(file):
    # A missing one stays English amid the rest; one for a name that is gone is silently ignored. Outputs that are
    # called like their type get the frontend's own word for it.
    translated = json.loads(file.read_text("utf-8"))
    assert translated.keys() == SCHEMAS.keys()
    for node_id, schema in SCHEMAS.items():
        words = translated[node_id]
        inputs = {entry.id for entry in schema.inputs}
        if any(getattr(entry, "control_after_generate", None) for entry in schema.inputs):
            inputs.add("control_after_generate")  # the frontend's own widget after a seed
        assert words["inputs"].keys() == inputs, node_id
        assert all(entry["name"] for entry in words["inputs"].values()), node_id
        assert words["display_name"] and words["description"], node_id
