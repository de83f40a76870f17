"""What is wrong with an installation is one sentence, which ComfyUI's log and its page get."""

import ast
import asyncio
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import cogvideox
from cogvideox.devtools.paths import ROOT
from cogvideox.errors import UserError
from cogvideox.host import folders, start_check, toy
from cogvideox.tests.pack_copies import install_copy

# ComfyUI's own load of the folders that are named, one after the other, in a process like ComfyUI's.
LOAD = """
import asyncio, sys
from cogvideox.host.standalone import use_comfyui
use_comfyui()
[sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'cogvideox']
import logging, nodes
logging.basicConfig(format="%(message)s", force=True)
for folder in sys.argv[1:]:
    loaded = asyncio.run(nodes.load_custom_node(folder))
    print(loaded, 'CogVideoXSample' in nodes.NODE_CLASS_MAPPINGS)
print(getattr(sys.modules.get("cogvideox"), "__file__", None))
"""
CODE = ("__init__.py", "errors.py", "pyproject.toml", "requirements.txt", "host/__init__.py")


def load(*folders: Path) -> tuple[list[str], list[str]]:
    """What LOAD has printed and logged."""
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), [line for line in done.stderr.splitlines() if "CogVideoX's nodes" in line]


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page of a server would be told."""
    kept: list[str] = []
    monkeypatch.setattr(start_check, "serve_notices", lambda: kept)
    return kept


def test_a_half_updated_copy_leaves_the_name_to_a_whole_one(tmp_path: Path) -> None:
    """An update that was cut off, beside a copy made by hand: nothing loaded, and the log blamed the whole one."""
    code = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "host").glob("*.py"))]
    half = install_copy(tmp_path / "half", [*CODE, *code])
    printed, logged = load(half, ROOT, ROOT)
    assert printed == ["False False", "True True", "True True", str(ROOT / "__init__.py")]
    (line,) = logged
    assert f"The folder of CogVideoX's nodes, {half}, is incomplete" in line and "cogvideox." in line
    assert "Install the nodes again" in line


def test_a_second_copy_is_left_out(tmp_path: Path) -> None:
    """Both registered their nodes, the later ones in place of the earlier ones, and patched ComfyUI once for both."""
    second = install_copy(tmp_path / "second, 2", [*CODE, "host/start_check.py"])
    printed, logged = load(ROOT, second)
    assert printed == ["True True", "False True", str(ROOT / "__init__.py")]
    (line,) = logged
    assert "installed twice" in line and str(ROOT) in line and str(second) in line and "Delete one" in line


def test_a_copy_that_lacks_nearly_all(tmp_path: Path) -> None:
    """A download that was cut off after its first file."""
    printed, logged = load(install_copy(tmp_path / "cut off", ["__init__.py"]))
    assert printed == ["False False", "None"]
    (line,) = logged
    assert str(tmp_path / "cut off") in line and "incomplete" in line
    assert "Install it again" in line or "Install the nodes again" in line


def test_the_entry_can_be_read_by_any_python() -> None:
    """A file that an old Python cannot parse has no chance to say that the Python is too old."""
    ast.parse((ROOT / "__init__.py").read_text("utf-8"), feature_version=(3, 7))


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(RuntimeError, match=r"need Python 3\.10 or newer, and this ComfyUI runs in Python 3\.9\."):
        asyncio.run(cogvideox.comfy_entrypoint())


@pytest.mark.parametrize("version", ["0.3.40", "0.16.2"])
def test_an_old_comfyui_is_named(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the import stumbles over there says nothing to a user."""
    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    error = start_check.import_error(ImportError("cannot import name 'io'", name="comfy_api.latest"), ROOT)
    assert str(error) == f"CogVideoX needs ComfyUI 0.16.3 or newer, and this is {version}. Update ComfyUI."


@pytest.mark.parametrize("version", ["0.16.3", "0.30.0", "1.0", "unknown"])
def test_a_comfyui_that_is_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    assert start_check.comfyui_too_old() == ""


def test_the_lowest_comfyui_is_the_one_of_the_metadata() -> None:
    lowest = ".".join(map(str, start_check.LOWEST_COMFYUI))
    assert f'requires-comfyui = ">={lowest}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'requires-python = ">={".".join(map(str, cogvideox.LOWEST_PYTHON))}"' in (
        ROOT / "pyproject.toml"
    ).read_text("utf-8")
    assert f"ComfyUI {lowest} or newer" in (ROOT / "__init__.py").read_text("utf-8")


def raised(code: str, **names: Any) -> Exception:
    """The error that running `code` ends with."""
    try:
        eval(compile(code, "x.py", "eval"), names)  # noqa: S307
    except Exception as error:
        return error
    raise AssertionError(code)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            SyntaxError("invalid syntax", (str(ROOT / "nodes/load.py"), 3, 1, "<<<<<<< HEAD")),
            "Line 3 of .*load.py.*damaged",
        ),
        (ImportError("cannot import name 'x'", name="cogvideox.host.ops"), "incomplete or mixes two versions"),
        (ImportError("cannot import name 'x'", name="comfy.ops"), "do not fit this ComfyUI .*Update ComfyUI"),
        (ImportError("cannot import name 'SDPBackend'", name="torch.nn.attention"), r"torch \S+, which cannot .*SDPB"),
        (ModuleNotFoundError("No module named 'x1y'", name="x1y"), "package x1y, which is not installed"),
        (raised("m.no_such_name", m=ModuleType("torch.nn")), r"torch \S+, which cannot be imported .*no_such_name"),
        (raised("m.no_such_name", m=logging.Logger), "package logging"),
        (ValueError("what is this?"), r"could not be loaded from .*what is this\?; Python .*torch .*report this line"),
    ],
)
def test_what_keeps_the_nodes_from_loading(error: Exception, words: str) -> None:
    """A torch, a ComfyUI or a pack of the wrong version fails with an error of Python's that names only a symptom."""
    assert re.search(words, str(start_check.import_error(error, ROOT)), re.S)


def test_packages_that_are_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever clones the pack and installs nothing learns it at the start, with the command for this Python."""
    (tmp_path / "requirements.txt").write_text('a>=2\nb>=1\nc>=3\n\ntomli>=2; python_version < "3.8"\n', "utf-8")
    monkeypatch.setattr(start_check, "_version", lambda name: {"b": "1.5", "c": "2.9"}.get(name, ""))
    sentence = start_check.missing_requirements(tmp_path)
    assert "a is not installed" in sentence and "c 2.9 is older than 3" in sentence
    assert " b " not in sentence
    assert f'"{sys.executable}" -m pip install -r "{tmp_path / "requirements.txt"}"' in sentence
    assert "tomli" not in sentence


def test_nothing_is_missing_here() -> None:
    """A notice at every start of a sound installation would be clicked away, the true ones with it."""
    assert start_check.missing_requirements(ROOT) == ""
    assert start_check.missing_files(ROOT) == ""
    assert start_check.comfyui_too_old() == ""


def test_every_requirement_has_a_purpose() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    asked = [start_check._REQUIREMENT.fullmatch(line) for line in lines]
    assert {line and line[1] for line in asked} == set(start_check._PURPOSES)


def test_the_toys_weights_are_missed(tmp_path: Path) -> None:
    """A copy without large files: every template ended with a name that is not in the list."""
    assert "is not in" in start_check.missing_files(tmp_path)
    weights = tmp_path / "nano" / "weights"
    weights.mkdir(parents=True)
    (weights / "SHA256SUMS").write_text("00  a/x.safetensors\n00  b.safetensors\n", "utf-8")
    (weights / "b.safetensors").touch()
    sentence = start_check.missing_files(tmp_path)
    assert "1 of 2 files" in sentence and "a/x.safetensors" in sentence and "git status" in sentence


@pytest.mark.parametrize(("name", "kind"), [("CogVideoX-nano 5b", "pipeline"), ("CogVideoX-nano pink", "lora")])
def test_a_toy_whose_files_are_gone_is_named(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error asked to put the toy into models/diffusers, where it does not belong."""
    monkeypatch.setattr(toy, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match=f"{name} is a part of the pack, and .* is missing. Install the pack again"):
        folders.find(name, "loras" if kind == "lora" else "diffusers", toy=kind)
    with pytest.raises(UserError, match="There is no 'another'"):
        folders.find("another", "diffusers", toy=kind)


def node_of(module: str) -> type:
    return type("Node", (), {"RELATIVE_PYTHON_MODULE": module})


def test_nodes_of_another_pack_with_the_same_ids() -> None:
    """ComfyUI keeps the node that was loaded last, and says nothing."""
    ours = {name: node_of("custom_nodes.ours") for name in ("A", "B", "C")}
    theirs = node_of("custom_nodes.other pack")
    assert start_check.taken_ids(ours, dict(ours)) == start_check.replaced_ids(ours, {}) == ""
    assert start_check.replaced_ids(ours, dict(ours)) == ""
    sentence = start_check.taken_ids(ours, {**ours, "A": theirs, "B": node_of("comfy_extras.nodes_x")})
    assert "A of CogVideoX is replaced by the pack custom_nodes/other pack" in sentence
    assert "B of CogVideoX is replaced by ComfyUI" in sentence
    sentence = start_check.replaced_ids(ours, {"A": theirs, "C": theirs, "D": theirs})
    assert "A, C of the pack custom_nodes/other pack have the id of a node of CogVideoX" in sentence


def test_a_notice_is_logged_and_kept_once(notices: list[str], caplog: pytest.LogCaptureFixture) -> None:
    start_check.tell("One.")
    start_check.tell("One.")
    start_check.tell("Two.", in_log=False)
    assert notices == ["One.", "Two."] and [record.message for record in caplog.records] == ["One.", "One."]
