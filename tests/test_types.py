"""The code as a type checker and a finder of dead code see it. Both read the files and run nothing of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cogvideox import PACKAGE
from cogvideox.tests.vulture_whitelist import UNUSED

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "host locales media migration model_loaders nodes parallel samplers sockets system training transformer vae".split()
)
BELOW = "errors.py keys.py official_settings.py video_limits.py".split()
TOOLS = "__init__.py benchmarks dev.py devtools nano".split()


def run(*command: str) -> str:
    """What a command prints, whatever its exit status."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


@pytest.mark.parametrize("of_all", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_type_checker_finds_no_errors(tmp_path: Path, of_all: bool) -> None:
    """An attribute that does not exist, an argument that is missing: `dev.py demo` once failed for one.

    of_all: the tests are checked as well, in which 64 errors had gathered, and transformers' 2,700 files are read, of
    which the pack uses two classes; without them whatever comes from there may be anything.
    """
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / PACKAGE).symlink_to(ROOT, target_is_directory=True)
    settings: dict[str, object] = {"extends": str(ROOT / "pyproject.toml")}
    settings["extraPaths"] = [str(tmp_path / "packages"), os.environ["COMFYUI_PATH"]]
    if not of_all:
        settings["exclude"] = [str(ROOT / name) for name in ("tests", "**/.*", "**/__pycache__")]
        stub = tmp_path / "stubs" / "transformers" / "__init__.pyi"
        stub.parent.mkdir(parents=True)
        stub.write_text("from typing import Any\ndef __getattr__(name: str) -> Any: ...\n", "utf-8")
        settings["stubPath"] = str(tmp_path / "stubs")
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps(settings), "utf-8")
    printed = run("basedpyright", "--level", "error", "--pythonpath", sys.executable, "-p", str(config))
    assert re.search(r"^0 errors", printed, re.MULTILINE), printed


def test_nothing_is_dead() -> None:
    """Code that nothing uses is read, kept working and believed all the same. Tests do not count as a use."""
    printed = run("vulture", *ROOMS, *BELOW, *TOOLS, "--min-confidence", "60")
    known = {name for names in UNUSED.values() for name in names.split()}
    names = {line: re.search(r"'(\w+)'", line) for line in printed.splitlines()}
    dead = [line for line, name in names.items() if name is None or name[1] not in known]
    assert not dead, "\n".join(dead)
    stale = known - {name[1] for name in names.values() if name}
    assert not stale, f"used again or gone, so these no longer belong in the whitelist: {sorted(stale)}"
