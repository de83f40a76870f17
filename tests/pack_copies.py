"""Copies of the pack as people have them: what the Comfy Registry's package contains, in a folder of any name; and
other packs beside it, and packages that are broken."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from pathspec import PathSpec

from cogvideox.devtools.paths import ROOT

NODE = """
class {name}:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "other", "run", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{}}}}

    def run(self):
        return ()

NODE_CLASS_MAPPINGS = {{"{name}": {name}}}
"""


def packaged_files() -> list[str]:
    """What git knows of, but for what .comfyignore names: as comfy-cli's zip_files packs it, paths from the root."""
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = (ROOT / ".comfyignore").read_text("utf-8").splitlines()
    ignored = PathSpec.from_lines("gitwildmatch", [line for line in lines if line and not line.startswith("#")])
    return [file for file in out.splitlines() if not ignored.match_file(file) and (ROOT / file).exists()]


def install_copy(folder: Path, files: Iterable[str] | None = None) -> Path:
    """Copy the package into `folder`, which is created. Its big files are links to ours: nobody changes them."""
    for file in packaged_files() if files is None else files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".safetensors"):
            target.symlink_to(ROOT / file)
        else:
            shutil.copyfile(ROOT / file, target)
    return folder


def make_read_only(folder: Path) -> None:
    """Take the right to write from a folder and all in it; root may write all the same."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)


def make_writable(folder: Path) -> None:
    """For pytest, which deletes old folders."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)


def install_other_pack(folder: Path, node_id: str) -> None:
    """Write a pack with one node, of this id."""
    folder.mkdir()
    (folder / "__init__.py").write_text(NODE.format(name=node_id), "utf-8")


def python_with(packages: Path, script: Path) -> Path:
    """An interpreter, written to `script`, which finds what is in the folder `packages` first."""
    import sys

    script.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" "$@"\n', "utf-8")
    os.chmod(script, 0o755)
    return script
