"""The table of next steps and the errors that ask for it."""

import ast
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.nodes import NODES
from cogvideox.nodes.advice import ADVICE
from cogvideox.samplers.conditioning import TASKS

ROOT = Path(__file__).resolve().parents[2]
OF_GRAPHS = {"running_graph.py"}  # reads the types of a prompt's nodes
BELOW = ("training", "model_loaders", "sockets", "media", "transformer", "samplers", "vae", "host")
# the nodes of ours by the names that people see, and the stock ones that messages have spoken of
NAMES = {node.GET_SCHEMA().display_name for node in NODES} | {"KSampler", "VOIDSampler", "Load LoRA", "CLIPTextEncode"}


def files() -> list[Path]:
    return [path for room in BELOW for path in sorted((ROOT / room).rglob("*.py"))]


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
    found = []
    for path in files():
        if path.name in OF_GRAPHS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.FunctionDef, ast.ClassDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                found += [f"{path.relative_to(ROOT)}: {name}" for name in NAMES if name in node.value]
    assert not found


def test_messages_are_complete_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI shows str(error), whichever node raised it."""
    error = UserError("The latent has shape [1].", advice="make a latent")
    assert str(error) == f"The latent has shape [1]. {ADVICE['make a latent']}"
    assert str(UserError("Found this.")) == "Found this."
    monkeypatch.setattr("cogvideox.errors._advice", {})
    assert str(error) == "The latent has shape [1]."
