"""Rules of the house that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.in_process import PACK

ROOT = Path(__file__).resolve().parent.parent
# Each folder may import from itself and from what is named here.
ALLOWED = {
    "nodes": {"training", "model_loaders", "transformer", "samplers", "vae", "host"},
    "training": {"model_loaders", "transformer", "samplers", "vae", "host"},
    "model_loaders": {"transformer", "samplers", "vae", "host"},
    "transformer": {"host"},
    "samplers": {"host"},
    "vae": {"host"},
    "host": set(),
}
HOST_ONLY = {"comfy_api", "folder_paths", "nodes", "server", "latent_preview"}
FILES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> list[tuple[str, bool]]:
    """(first name, whether it is the pack's own) of every import in a file, wherever it stands."""
    found = []
    depth = len(path.relative_to(ROOT).parts) - 1  # of its own folder: more dots lead to another one
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            if not 1 <= node.level <= depth:
                found += [(name.split(".")[0], node.level > depth) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    """nodes -> model_loaders -> transformer, samplers, vae -> host, or nothing below can be reused or tested alone."""
    folder = path.relative_to(ROOT).parts[0]
    wrong = [name for name, own in imports(path) if own and name not in ALLOWED[folder]]
    if folder not in ("nodes", "host"):
        wrong += [name for name, own in imports(path) if not own and name in HOST_ONLY]
    assert not wrong


def test_importing_the_pack_loads_no_diffusers() -> None:
    """ComfyUI's start must not wait for diffusers, which takes seconds to import."""
    code = (
        "import sys, asyncio; sys.path.insert(0, 'tests'); import conftest\n"
        "before = set(sys.modules)\n"
        f"asyncio.run(asyncio.run(sys.modules['{PACK}'].comfy_entrypoint()).get_node_list())\n"
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] in ('diffusers', 'accelerate', 'peft')))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_ruff() -> None:
    """One style, and none of exec, eval, pickle or two statements in a line."""
    out = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_registry_metadata() -> None:
    """The Comfy Registry refuses a name with ComfyUI in it and a host version that is not of three parts."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    fields = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert "comfyui" not in fields["name"].lower()
    assert fields["requires-comfyui"].count(".") == 2
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")
    version = fields["version"].strip('"')
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert fields["dependencies"] == "[" + ", ".join(f'"{r}"' for r in requirements) + "]"
