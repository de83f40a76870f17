import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.nodes import NODES

DOCS = ROOT / "web" / "docs"
SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_help_tells_of_every_socket_and_widget(node_id):
    # Else the (i) panel is empty for a new node, or silent on the input that the user looks for.
    text = (DOCS / f"{node_id}.md").read_text("utf-8")
    inputs, outputs = text.split("## Outputs")
    inputs = inputs.split("## Inputs")[1]
    schema = SCHEMAS[node_id]
    told = [line.split("**`")[1].split("`**")[0] for line in inputs.splitlines() if line.startswith("- **`")]
    assert told == [entry.id for entry in schema.inputs]
    for output in schema.outputs:
        assert f"**`{output.display_name or output.io_type}`**" in outputs


def test_no_help_for_nodes_that_are_gone():
    assert {file.stem for file in DOCS.glob("*.md")} == set(SCHEMAS)
