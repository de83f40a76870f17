"""Which Pythons are promised, and that what is pinned can be installed with each of them."""

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cogvideox.devtools import paths
from cogvideox.training.recipe import read_toml

PROMISED = ("3.10", "3.11", "3.12", "3.13")  # ComfyUI runs with each; the first is the lowest that it allows
PROJECT = read_toml((paths.ROOT / "pyproject.toml").read_text("utf-8"))
PINNED = ("constraints-dev.txt", "requirements-dev.txt")


def pins(python: str) -> Iterator[Requirement]:
    """What `dev.py test` installs in a given version with this Python."""
    for name in PINNED:
        for line in (paths.ROOT / name).read_text("utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                pin = Requirement(line)
                if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                    yield pin


@pytest.mark.parametrize("python", PROMISED)
def test_pinned_libraries_can_be_installed(python: str) -> None:
    """diffusers 0.42.1 and transformers 5.23.0 were pinned for Python 3.10 as well, which has neither: pip found no
    solution, and no command of dev.py began."""
    impossible, checked = [], []
    for pin in pins(python):
        try:
            installed = metadata(pin.name)
        except PackageNotFoundError:
            continue
        if installed["Version"] not in pin.specifier:
            continue  # of another Python; the weekly tests install it
        checked.append(pin.name)
        if not SpecifierSet(installed["Requires-Python"] or "").contains(f"{python}.20"):
            impossible.append(str(pin))
    assert not impossible and len(checked) >= 5, checked


@pytest.mark.parametrize("python", PROMISED)
def test_each_library_is_pinned_once(python: str) -> None:
    """A marker that leaves a gap lets pip take any version, and two that overlap let it take none."""
    names = [pin.name for pin in pins(python)]
    assert sorted(names) == sorted(set(names))
    assert set(names) == {pin.name for pin in pins("3.11")}


def test_one_lowest_python_is_named_everywhere() -> None:
    """The type checker and ruff report what the lowest Python lacks, for the one that they are set to."""
    lowest = PROMISED[0]
    assert PROJECT["project"]["requires-python"] == f">={lowest}"
    assert PROJECT["tool"]["basedpyright"]["pythonVersion"] == lowest
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{lowest.replace('.', '')}"
    assert f"MINIMUM_PYTHON = ({lowest.replace('.', ', ')})" in (paths.ROOT / "dev.py").read_text("utf-8")
    assert f"Python {lowest} or newer" in (paths.ROOT / "README.md").read_text("utf-8")


def test_the_weekly_tests_run_with_the_lowest_and_the_newest() -> None:
    """A promise about a Python that nothing runs with is none."""
    text = (paths.ROOT / Path(".github/workflows/weekly.yml")).read_text("utf-8")
    assert {PROMISED[0], PROMISED[-1]} < set(re.findall(r'python: "([\d.]+)"', text)) | {"3.11"}
