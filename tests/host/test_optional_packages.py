"""Packages that are missing or broken in ComfyUI's Python: one sentence that names the package and the command."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cogvideox.devtools import paths
from cogvideox.errors import UserError
from cogvideox.host import optional_packages
from cogvideox.host.optional_packages import import_package
from cogvideox.model_loaders.files.gguf_files import read_gguf_header
from cogvideox.training.config import TrainConfig
from cogvideox.training.graph import train_lora

# How an import fails: by its own versions, by numpy's, by a library of a driver.
FAILURES = {
    "peft": "raise ImportError(\"cannot import name 'HybridCache' from 'transformers'\")",
    "accelerate": "import numpy\nnumpy.no_such_function",
    "gguf": 'raise OSError("libgguf.so: cannot open shared object file")',
}
LOAD = """
import logging
logging.basicConfig(format="%(message)s")
from cogvideox.host.standalone import use_comfyui
use_comfyui(cpu=True)
from cogvideox.host.optional_packages import prepare_diffusers
prepare_diffusers()
prepare_diffusers()
from cogvideox.transformer.dit import CogVideoXDiT
from cogvideox.transformer.control_net import CogVideoXControlNet
from cogvideox.vae.network import CogVideoXAutoencoder
print("loaded")
"""


def break_package(folder: Path, name: str, code: str, version: str = "0.17.0") -> None:
    """Put a package into `folder` that is installed and whose import runs `code`."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code, "utf-8")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that comes before all others when something is imported, as if what the tests put there had not been
    imported yet. What they import is forgotten again."""
    with mock.patch.dict(sys.modules):
        for module in list(sys.modules):
            if module.partition(".")[0] in (*FAILURES, "diffusers", "huggingface_hub"):
                del sys.modules[module]
        monkeypatch.syspath_prepend(tmp_path)
        yield tmp_path


class Missing:
    """A finder for sys.meta_path to which a package is not installed."""

    def __init__(self, name: str):
        self._name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load_models(folder: Path) -> subprocess.CompletedProcess:
    """Import the networks in a process that finds the packages of `folder` first."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(paths.ROOT.parent)])}
    return subprocess.run([sys.executable, "-c", LOAD], env=environ, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("version", ["99.0", pytest.param("0.17.0", marks=pytest.mark.long)])
def test_models_load_whatever_diffusers_would_import_besides(version: str, tmp_path: Path) -> None:
    """peft 0.17 under transformers 5 stopped every model from loading, with an error from within diffusers, though
    nothing but a training needs peft. A new accelerate stopped them from within transformers, which ignores an old
    one."""
    for name, code in FAILURES.items():
        break_package(tmp_path, name, code, version)
    done = load_models(tmp_path)
    assert done.stdout == "loaded\n", done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("Not needed by CogVideoX")]
    for name in FAILURES:
        (line,) = [line for line in said if f"package {name} {version}, which cannot be imported" in line]
        assert f"python -m pip install --upgrade {name}" in line
    assert len(said) == len(FAILURES)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("diffusers", None, "package diffusers, which is not installed. .* install diffusers$"),
        ("diffusers", "", "package diffusers 0.17.0, which cannot be imported .* install --upgrade diffusers$"),
        ("huggingface_hub", "raise OSError()", "package huggingface_hub 0.17.0, .* --upgrade huggingface-hub$"),
    ],
)
def test_what_no_model_loads_without_is_named(
    name: str, code: str | None, words: str, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old or halved diffusers, or none: an error about a module of its own says nothing about what to do."""
    if code is None:
        monkeypatch.setattr(sys, "meta_path", [Missing(name), *sys.meta_path])
    else:
        break_package(packages, name, code)
    with pytest.raises(UserError, match=f"^CogVideoX needs the Python {words}"):
        optional_packages.prepare_diffusers()


def test_a_missing_and_a_broken_package_are_told_apart(packages: Path) -> None:
    """Whoever is told to install what is installed already learns nothing."""
    with pytest.raises(
        UserError, match="^X needs the Python package halved, which is not installed. .* install halved$"
    ):
        import_package("halved", "X")
    break_package(packages, "halved", "import also_missing", "1.2")
    importlib.invalidate_caches()
    words = "^X needs the Python package halved 1.2, which cannot be imported .*No module named 'also_missing'.*"
    with pytest.raises(UserError, match=f"{words}python -m pip install --upgrade halved$"):
        import_package("halved", "X")


def test_a_package_that_another_one_is_too_old_for(packages: Path) -> None:
    """peft 0.18.0 asks transformers 4.50 in vain for a module: the newest peft alone may do so as well."""
    break_package(packages, "halved", "from pytest import no_such_name", "1.2")
    importlib.invalidate_caches()
    with pytest.raises(UserError, match="no_such_name.* python -m pip install --upgrade halved pytest$"):
        import_package("halved", "X")


def test_gguf_that_cannot_be_imported(packages: Path, tmp_path: Path) -> None:
    """A gguf that meets a numpy it does not know raises an AttributeError."""
    break_package(packages, "gguf", FAILURES["accelerate"], "0.9.0")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        UserError, match=r"model\.gguf is a GGUF file\. Reading it needs the Python package gguf 0\.9\.0"
    ):
        read_gguf_header(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["peft", "accelerate"])
def test_training_names_the_package_before_any_work(name: str, packages: Path) -> None:
    """Both are installed for training alone; a broken one was an error of Python's after the model had been copied."""
    break_package(packages, name, FAILURES[name])
    model: Any = object()  # never looked at
    with pytest.raises(UserError, match=f"^Training needs the Python package {name} 0.17.0, which cannot be imported"):
        train_lora(model, [], [], TrainConfig(), packages)


def test_training_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(optional_packages.importlib.util, "find_spec", lambda name: None)
    model: Any = object()
    with pytest.raises(UserError, match=re.escape("python -m pip install accelerate peft")):
        train_lora(model, [], [], TrainConfig(), tmp_path)
