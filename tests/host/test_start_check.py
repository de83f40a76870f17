"""What is wrong with an installation is one sentence, which ComfyUI's log and its page get."""

import ast
import asyncio
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import cogvideox
from cogvideox.devtools.paths import ROOT
from cogvideox.errors import UserError
from cogvideox.host import folders, start_check, toy
from cogvideox.system.published_files import SUMS, sums_of
from cogvideox.tests.children import running
from cogvideox.tests.pack_copies import install_copy

CODE = ("__init__.py", "errors.py", "pyproject.toml", "requirements.txt", "host/__init__.py")


def load(*folders: Path) -> tuple[list[tuple[bool, bool]], str | None, list[str]]:
    """Of each folder whether ComfyUI has loaded it and has the nodes then; the file that is the package; the log's
    lines about the pack."""
    with running("pack_starts.load", folders) as comfyui:
        loaded, file = comfyui.result()
        return loaded, file, [line for line in comfyui.output().splitlines() if "CogVideoX's nodes" in line]


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page of a server would be told."""
    kept: list[str] = []
    monkeypatch.setattr(start_check, "serve_notices", lambda: kept)
    return kept


class _Page:
    """ComfyUI's server, and a page that asks it for the notices."""

    def __init__(self, accepts: str = "zh-CN,zh;q=0.9", chosen: str | None = None) -> None:
        self.answers: list[Any] = []
        self.routes = SimpleNamespace(get=lambda path: self.answers.append)
        found = {} if chosen is None else {"Comfy.Locale": chosen}
        self.user_manager = SimpleNamespace(settings=SimpleNamespace(get_settings=lambda _: found))
        self.sockets: dict[str, Any] = {}
        self.accepts = accepts

    def ask(self) -> list[str]:
        request = SimpleNamespace(headers={"Accept-Language": self.accepts})
        return json.loads(asyncio.run(self.answers[0](request)).text)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Page]:
    import server

    def make(*arguments: Any) -> _Page:
        made = _Page(*arguments)
        monkeypatch.setattr(server.PromptServer, "instance", made, raising=False)
        return made

    return make


NODE = type("Node", (), {"RELATIVE_PYTHON_MODULE": "custom_nodes.old pack"})


def sentences(folder: Path) -> list[str]:
    """Every notice that there is."""
    (folder / "requirements.txt").write_text("diffusers>=99.1\nnot-a-package>=1\ngguf>=99\n")
    lacking = start_check.missing_requirements(folder)
    (folder / "requirements.txt").unlink()
    ids = {f"CogVideoX{number}": object for number in range(7)}
    (folder / "nano" / "weights").mkdir(parents=True)
    (folder / "nano" / "weights" / "SHA256SUMS").write_text(f"# 0 a\n{'0' * 64}  a\n# 1 b\n{'1' * 64}  b\n")
    some = start_check.missing_files(folder)
    error = ModuleNotFoundError("No module named 'x'", name="comfy.x")
    line = SyntaxError("invalid syntax", (str(folder / "a.py"), 3, 0, ""))
    return [
        lacking,
        some,
        start_check.missing_requirements(folder),
        start_check.missing_files(folder / "nowhere"),
        start_check.taken_ids({"CogVideoXSample": object}, {"CogVideoXSample": NODE}),
        start_check.taken_ids(ids, dict.fromkeys(ids, NODE)),
        start_check.taken_ids(ids, {}),
        start_check.replaced_ids({"CogVideoXSample": object}, {"CogVideoXSample": NODE}),
        start_check.replaced_ids(ids, dict.fromkeys(ids, NODE)),
        str(start_check.installed_twice(folder, folder / "two")),
        str(start_check.installed_twice(folder, folder / "nano" / "..")),
        *(
            str(start_check.import_error(raised, folder))
            for raised in (
                error,
                line,
                ValueError("a bug"),
                ImportError("no", name="cogvideox.keys"),
                ModuleNotFoundError("No module named 'diffusers'", name="diffusers"),
                ImportError("cannot import name", name="accelerate"),
            )
        ),
    ]


def test_every_notice_is_chinese_where_the_page_is(
    page: Callable[..., _Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that somebody reads whose installation is broken was English in a Chinese page."""
    opened = page()
    told = sentences(tmp_path)
    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__="0.3.40"))
    told.append(start_check.comfyui_too_old())
    assert all(told) and len(set(told)) == len(told)
    for sentence in told:
        start_check.tell(sentence, in_log=False)
    shown = opened.ask()
    assert len(shown) == len(told)
    # What is left in Latin letters are names, paths, commands and what Python itself says.
    words = {
        "is",
        "are",
        "of",
        "the",
        "needs",
        "lacks",
        "again",
        "Install",
        "Update",
        "Remove",
        "which",
        "cannot",
        "more",
    }
    for english, chinese in zip(told, shown):
        rest = chinese.replace(str(tmp_path), "").replace("cannot import name", "")
        assert chinese != english and not words & set(re.findall("[A-Za-z]+", rest)), chinese
    assert "以及另外 2 个" in shown[5] and "节点包 custom_nodes/old pack" in shown[5]
    assert shown[-1] == "CogVideoX 需要 ComfyUI 0.16.3 或更新版本，而当前版本是 0.3.40。请更新 ComfyUI。"
    assert shown[0].startswith("CogVideoX 缺少 Python 包：") and "not-a-package 未安装（CogVideoX 需要它）" in shown[0]


@pytest.mark.parametrize(
    ("accepts", "chosen", "is_chinese"),
    [
        ("zh-CN", None, True),
        ("en-US,zh;q=0.5", None, False),
        ("en", "zh", True),
        ("zh", "en", False),
        ("", None, False),
    ],
)
def test_a_notice_is_in_the_language_of_its_page(
    page: Callable[..., _Page], accepts: str, chosen: str | None, is_chinese: bool
) -> None:
    """By the setting, or else by what the browser that asks prefers: it may have no other connection yet."""
    opened = page(accepts, chosen)
    start_check.tell(str(start_check.installed_twice(ROOT, ROOT / "two")), in_log=False)
    (shown,) = opened.ask()
    assert shown.startswith("CogVideoX 的节点安装了两份") == is_chinese
    assert shown.startswith("CogVideoX's nodes are installed twice") != is_chinese


def test_a_notice_that_cannot_be_translated_is_english(
    page: Callable[..., _Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says may be that files are missing, the translator's own among them."""
    opened = page()
    start_check.tell("A sentence.", in_log=False)
    monkeypatch.setitem(sys.modules, "cogvideox.host.language", None)
    assert opened.ask() == ["A sentence."]


def test_a_half_updated_copy_leaves_the_name_to_a_whole_one(tmp_path: Path) -> None:
    """An update that was cut off, beside a copy made by hand: nothing loaded, and the log blamed the whole one."""
    rooms = ("host", "system", "locales")
    code = [path.relative_to(ROOT).as_posix() for room in rooms for path in sorted((ROOT / room).glob("*.py"))]
    half = install_copy(tmp_path / "half", [*CODE, *code])
    loaded, file, (line,) = load(half, ROOT, ROOT)
    assert loaded == [(False, False), (True, True), (True, True)] and file == str(ROOT / "__init__.py")
    assert f"The folder of CogVideoX's nodes, {half}, is incomplete" in line and "cogvideox." in line
    assert "Install the nodes again" in line


def test_a_second_copy_is_left_out(tmp_path: Path) -> None:
    """Both registered their nodes, the later ones in place of the earlier ones, and patched ComfyUI once for both."""
    second = install_copy(tmp_path / "second, 2", [*CODE, "host/start_check.py"])
    loaded, file, (line,) = load(ROOT, second)
    assert loaded == [(True, True), (False, True)] and file == str(ROOT / "__init__.py")
    assert "installed twice" in line and str(ROOT) in line and str(second) in line and "Delete one" in line


def test_a_second_link_to_the_same_folder_is_left_out(tmp_path: Path) -> None:
    """The page got each script twice, of which ComfyUI refuses the second, and nothing said why. ComfyUI may load the
    same link again."""
    links = [tmp_path / "cogvideox-link", tmp_path / "another link"]
    for link in links:
        link.symlink_to(ROOT)
    loaded, file, (line,) = load(links[0], links[1], links[0])
    assert loaded == [(True, True), (False, True), (True, True)] and file == str(links[0] / "__init__.py")
    assert "found twice" in line and str(links[0]) in line and str(links[1]) in line and "Remove one" in line


def test_a_copy_that_lacks_nearly_all(tmp_path: Path) -> None:
    """A download that was cut off after its first file."""
    loaded, file, (line,) = load(install_copy(tmp_path / "cut off", ["__init__.py"]))
    assert loaded == [(False, False)] and file is None
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
    (weights / "b.safetensors").touch()
    (weights / "a").mkdir()
    (weights / "a" / "x.safetensors").touch()
    (weights / SUMS).write_text(sums_of(weights, weights.rglob("*.safetensors")), "utf-8")
    (weights / "a" / "x.safetensors").unlink()
    sentence = start_check.missing_files(tmp_path)
    assert "1 of 2 files" in sentence and "a/x.safetensors" in sentence and "git status" in sentence
    (weights / SUMS).write_text("", "utf-8")
    assert f"{SUMS} is damaged" in start_check.missing_files(tmp_path)


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
    sentence = start_check.taken_ids(ours, {"A": ours["A"], "C": theirs})
    assert "ComfyUI no longer has these nodes of CogVideoX, which were loaded: B. Workflows" in sentence
    assert "C of CogVideoX is replaced by the pack" in sentence and "another pack" not in sentence
    sentence = start_check.replaced_ids(ours, {"A": theirs, "C": theirs, "D": theirs})
    assert "CogVideoX has nodes of the same id as the pack custom_nodes/other pack: A, C. Remove" in sentence


def test_a_notice_is_logged_and_kept_once(notices: list[str], caplog: pytest.LogCaptureFixture) -> None:
    start_check.tell("One.")
    start_check.tell("One.")
    start_check.tell("Two.", in_log=False)
    assert notices == ["One.", "Two."] and [record.message for record in caplog.records] == ["One.", "One."]
