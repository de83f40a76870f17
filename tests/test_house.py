"""Rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each folder may import from itself and from what is named here.
ALLOWED = {
    "nodes": {"training", "model_loaders", "transformer", "samplers", "vae", "host", "errors"},
    "training": {"model_loaders", "transformer", "samplers", "vae", "host", "errors"},
    "model_loaders": {"transformer", "samplers", "vae", "host", "errors"},
    "transformer": {"host", "errors"},
    "samplers": {"host", "errors"},
    "vae": {"host", "errors"},
    "host": {"errors"},
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
        "import sys, asyncio, cogvideox.tests.conftest\n"
        "before = set(sys.modules)\n"
        "asyncio.run(asyncio.run(cogvideox.comfy_entrypoint()).get_node_list())\n"
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] in ('diffusers', 'accelerate', 'peft')))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_packaging_knows_every_folder() -> None:
    """Whoever installs the package with pip would lack a folder that pyproject.toml does not list."""
    listed = set(re.findall(r'^    "cogvideox\.?(.*)",$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M))
    tracked = subprocess.run(["git", "ls-files", "*__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {str(Path(line).parent.as_posix()).replace("/", ".").strip(".") for line in tracked.stdout.split()}
    assert listed == found


def test_any_folder_name_is_the_package_in_comfyui(tmp_path: Path) -> None:
    """ComfyUI imports the folder under its path; an error would show that path, and a script's classes would be others
    than the nodes'."""
    folder = tmp_path / "ComfyUI-CogVideoX.main"
    folder.symlink_to(ROOT, target_is_directory=True)
    code = (
        "import asyncio, sys; from cogvideox.host.standalone import use_comfyui; use_comfyui()\n"
        "[sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'cogvideox']\n"
        "import nodes\n"
        f"assert asyncio.run(nodes.load_custom_node({str(folder)!r}))\n"
        "import cogvideox.nodes.sample, cogvideox.host.errors\n"
        "assert nodes.NODE_CLASS_MAPPINGS['CogVideoXSample'] is cogvideox.nodes.sample.CogVideoXSample\n"
        "assert cogvideox.host.errors.CheckpointError.__module__ == 'cogvideox.host.errors'\n"
        "print([name for name in sys.modules if 'ComfyUI-CogVideoX' in name])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    # the module that ComfyUI itself has made, and none below it
    assert out.stdout.strip().splitlines()[-1].count("',") == 0


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
