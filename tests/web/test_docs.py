"""The nodes' help pages, their tooltips and docs/nodes.md: what they say of sockets and widgets is the schema's."""

import re

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.host.toy import LISTED, NAME
from cogvideox.model_loaders.downloads.repositories import REPOSITORIES
from cogvideox.model_loaders.load_text_encoder import T5_PRECISIONS
from cogvideox.model_loaders.load_vae import VAE_DTYPES
from cogvideox.model_loaders.precision import PRECISIONS, WEIGHT_DTYPES
from cogvideox.nodes import NODES
from cogvideox.nodes.missing_models import KINDS, say_empty
from cogvideox.tests.figures.phrases import looks_measured
from cogvideox.tests.web.input_heads import ENGLISH, head

DOCS = ROOT / "web" / "docs"
SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}
WIDGETS = ("COMBO", "STRING", "INT", "FLOAT", "BOOLEAN", "LOSS_MAP")
LOADERS = {  # what the loader accepts of weight_dtype
    "CogVideoXLoadPipeline": PRECISIONS,
    "CogVideoXLoadModel": PRECISIONS,
    "CogVideoXLoadTextEncoder": T5_PRECISIONS,
    "CogVideoXLoadVAE": VAE_DTYPES,
    "CogVideoXLoadControlNet": WEIGHT_DTYPES,
}


def read_page(path):
    """The text of a node's help page, which every node has in every language."""
    assert path.is_file(), f"add {path.relative_to(ROOT).as_posix()}"
    return path.read_text("utf-8")


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_help_tells_of_every_socket_and_widget(node_id):
    # Else the (i) panel is empty for a new node, or silent on the input that the user looks for.
    text = read_page(DOCS / f"{node_id}.md")
    inputs, outputs = text.split("## Outputs")
    inputs = inputs.split("## Inputs")[1]
    schema = SCHEMAS[node_id]
    told = [line.split(":")[0] for line in inputs.splitlines() if line.startswith("- **`")]
    assert told == [head(entry, ENGLISH) for entry in schema.inputs]
    told = [line.split(":")[0] for line in outputs.split("## Example")[0].splitlines() if line.startswith("- **`")]
    assert told == [f"- **`{out.display_name or out.io_type}`** ({out.io_type})" for out in schema.outputs]


def test_no_help_for_nodes_that_are_gone():
    assert {file.stem for file in DOCS.glob("*.md")} == set(SCHEMAS)


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_tooltips_have_no_measured_numbers(node_id):
    # Nothing would notice when they are no longer so; the help page is compared with the results.
    schema = SCHEMAS[node_id]
    texts = [schema.description, *(entry.tooltip or "" for entry in schema.inputs if entry.id != "checkpoint")]
    sizes = [repository.gigabytes for repository in REPOSITORIES]
    given = f"{min(sizes):.0f} to {max(sizes):.0f} GB"  # of CogVideoX Download
    assert not [match[0] for text in texts for match in looks_measured(text.replace(given, ""), with_units_alone=True)]


@pytest.mark.parametrize("node_id", LOADERS)
def test_loaders_offer_what_they_take(node_id):
    # A tooltip that recommends a precision which the loader refuses costs a run to find out.
    (widget,) = (entry for entry in SCHEMAS[node_id].inputs if entry.id == "weight_dtype")
    named = set(re.findall(r"\b(?:fp|bf|int)\d+\w*|\b_fast", widget.tooltip))
    taken = {*LOADERS[node_id], *(["_fast"] if "int8_fast" in LOADERS[node_id] else [])}
    assert named <= taken


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_list_of_nodes_names_the_sockets(node_id):
    # Who looks there for a node that makes a LATENT finds none, or the wrong one.
    rows = re.findall(rf"/{node_id}\.md\) \| (.*?) \|", "\n".join(_node_list()))
    assert len(rows) == 1, f"add one row of {node_id} to docs/nodes.md"
    taken, _, given = rows[0].partition("→")
    schema = SCHEMAS[node_id]
    assert _sockets(given) == [out.io_type for out in schema.outputs if out.io_type not in WIDGETS]
    wanted = [entry.get_io_type() for entry in schema.inputs if entry.get_io_type() not in WIDGETS]
    missing = [name for name in _sockets(taken) if name not in wanted]
    assert not missing and set(wanted) - set(_sockets(taken)) <= {"MASK", "IMAGE", "AUDIO", "LATENT", "CONDITIONING"}


def _node_list() -> list[str]:
    return [line for line in (ROOT / "docs" / "nodes.md").read_text("utf-8").splitlines() if line.startswith("| [")]


def _sockets(side: str) -> list[str]:
    """CONDITIONING ×2, VAE -> [CONDITIONING, CONDITIONING, VAE]."""
    found = re.findall(r"\b([A-Z][A-Z_]+)\b(?: ×(\d))?", side)
    return [name for name, count in found for _ in range(int(count or 1)) if name not in WIDGETS]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_help_tells_of_every_choice_and_of_no_other(node_id):
    # A choice that is not explained is one to be guessed; one that is gone cannot be found in the list.
    text = read_page(DOCS / f"{node_id}.md")
    for entry in SCHEMAS[node_id].inputs:
        choices = [str(choice) for choice in entry.as_dict().get("options") or []]
        if not choices or entry.as_dict().get("image_upload"):  # the user's own files
            continue
        (line,) = [line for line in text.splitlines() if line.startswith(f"- **`{entry.id}`**")]
        if entry.as_dict().get("default") is None:  # a list of files: the toy's, and the line that there are no others
            offered = {choice for choice in choices if choice not in map(say_empty, KINDS)}
            assert offered <= set().union(*LISTED.values()) and (NAME in line or not offered)
            continue
        if entry.id not in ("checkpoint", "family"):  # lists of all models
            assert not [choice for choice in choices if f"`{choice}`" not in line], entry.id
        explained = re.findall(r"`([^`]+)`: ", line.partition("): ")[2])
        assert not [name for name in explained if name not in choices], entry.id
