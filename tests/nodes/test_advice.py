"""The table of next steps and the errors that ask for it."""

import ast
import re
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.nodes import NODES
from cogvideox.nodes.advice import ADVICE
from cogvideox.samplers.conditioning import TASKS
from cogvideox.training.config import TrainConfig
from cogvideox.training.fields import settings_of

ROOT = Path(__file__).resolve().parents[2]
OF_GRAPHS = {"running_graph.py"}  # reads the types of a prompt's nodes
BELOW = ("training", "model_loaders", "sockets", "media", "transformer", "samplers", "vae", "host")
# Inputs that are words of the rooms below as well: settings of a training, and what their functions take and refuse.
KNOWN_BELOW = {*settings_of(TrainConfig), "batch_size", "weight_dtype", "start_image", "end_image", "guidance_rescale"}
SCHEMAS = [node.GET_SCHEMA() for node in NODES]
# the nodes of ours by the names that people see, the stock ones that messages have spoken of, and our nodes' inputs
# whose names are no plain words
NAMES = {schema.display_name for schema in SCHEMAS}
NAMES |= {"KSampler", "VOIDSampler", "Load LoRA", "LoRA loader", "CLIPTextEncode", "Convert Image to Mask"}
NAMES |= {entry.id for schema in SCHEMAS for entry in schema.inputs if "_" in entry.id} - KNOWN_BELOW


OF_NODES = {"remote_control.py", "remote_model.py", "sendable.py", "team.py"}  # of parallel/


def files() -> list[Path]:
    rooms = (*BELOW, "parallel")  # whose other files are those of dev.py's farm as well, which has no nodes
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def test_every_key_has_its_sentence() -> None:
    """A message whose advice is not in the table would end in the middle; one that nobody asks for is dead."""
    asked = set()
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "advice":
                asked.add(ast.unparse(node.value))
    composed = {"f'condition for {family.task}'"}
    keys = {ast.literal_eval(text) for text in asked - composed} | {f"condition for {task}" for task in TASKS}
    assert composed < asked and keys == set(ADVICE)


def test_rooms_below_name_no_node() -> None:
    """A script, or another frontend, has no nodes to speak of; and a renamed node would leave its old name behind."""
    found, any_name = [], re.compile(rf"\b({'|'.join(map(re.escape, NAMES))})\b")
    for path in files():
        if path.name in OF_GRAPHS or path.parent.name == "parallel" and path.name in OF_NODES:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                # a name by itself is a key or an attribute
                named = [] if node.value in NAMES and "_" in node.value else any_name.findall(node.value)
                found += [f"{path.relative_to(ROOT)}: {name}" for name in named]
    assert not found


def test_messages_are_complete_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI shows str(error), whichever node raised it."""
    error = UserError("The latent has shape [1].", advice="make a latent")
    assert str(error) == f"The latent has shape [1]. {ADVICE['make a latent']}"
    assert str(UserError("Found this.")) == "Found this."
    monkeypatch.setattr("cogvideox.errors._advice", {})
    assert str(error) == "The latent has shape [1]."
