"""What `dev.py farm` says of input that cannot work: one sentence, before anything long."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cogvideox.devtools import cli, models
from cogvideox.devtools.farm.farm_plan import Plan, read_plan

GRAPH = {"1": {"class_type": "PreviewAny", "inputs": {"source": "a"}}}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own cluster; the command itself changes the last one."""
    for name in (*TOKEN, "RAY_AUTH_TOKEN_PATH", "COGVIDEOX_RAY_ADDRESSES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """refused(lines, arguments...) -> the one sentence that the command ends with; nothing may be set up before it."""
    for owner, name in ((cli, "prepare"), (models, "interpreter"), (cli, "go_on_as")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("it went on"))

    def run(lines: str, *arguments: str) -> str:
        Path("prompts.jsonl").write_text(lines)
        given = arguments if "--out" in arguments else ("--out", "out", *arguments)
        assert cli.main(["farm", "prompts.jsonl", *given]) == 1
        captured = capsys.readouterr()
        assert captured.out == "", "stdout is for results alone"
        (line,) = captured.err.splitlines()
        return line.removeprefix("error: ")

    return run


def plan_of(lines: str, *arguments: str) -> Plan:
    Path("prompts.jsonl").write_text(lines)
    return read_plan(cli.parse(["farm", "prompts.jsonl", "--out", "out", *arguments])[0])


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('a\n{"prompt": ', "Line 2 of prompts.jsonl begins with { and is not JSON"),
        ("# nothing\n", "in which there is no prompt"),
        ('{"workflow": "nowhere.json"}', "workflow in line 1 of prompts.jsonl names nowhere.json, which is not there"),
        ('{"workflow": "../elsewhere.json"}', "which is not in the folder of that file"),
        ('{"workflow": "prompts.jsonl"}\na', "which cannot be read as JSON"),
        ('{"workflow": 3}', "is not a workflow in API format"),
        ('{"workflow": {"1": {"inputs": {}}}}', "is not a workflow in API format"),
        ('{"workflow": {"nodes": [], "links": []}}', "export it with File, Export (API)"),
        ('{"workflow": {}, "prompt": "a"}', "has a workflow and prompt"),
        (json.dumps({"workflow": GRAPH, "inputs": ["a.png"]}), "names a.png, which is not there"),
        (json.dumps({"workflow": GRAPH, "inputs": ["../a.png"]}), "is not a valid file name"),
        (json.dumps({"workflow": GRAPH, "inputs": "a.png"}), "is not a list of names"),
        ('{"prompt": "a", "inputs": ["a.png"]}', "has inputs and no workflow"),
        (
            '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "X"}',
            "line 2 of prompts.jsonl has the id X, which",
        ),
        ('{"prompt": "a", "id": "0002"}\nb', "line 2 of prompts.jsonl has the id 0002"),
        ('{"prompt": "a", "id": "a/b"}', "id in line 1 of prompts.jsonl is 'a/b'"),
        ('{"prompt": "a", "id": 7}', "give up to 100 letters"),
        ('{"prompt": "a", "speed": 7}', "has speed, which is not an option"),
        ('{"steps": 7}', "has no prompt"),
        ('{"prompt": "a", "image": "a.png"}', "names a.png, which is not there"),
    ],
)
def test_a_wrong_line_is_named(refused: Callable[..., str], lines: str, sentence: str) -> None:
    """A night's work would otherwise end in the morning with the clips that are missing."""
    assert sentence in refused(lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--workers", "0"), "--workers is '0': give a whole number from 1"),
        (("--tries", "many"), "--tries is 'many'"),
        (("--limit", "0"), "--limit is '0': give a whole number from 1 to 100000"),
        (("--fetch", "CogVideoX-7b"), "CogVideoX-7b"),
        (("--steps", "0"), "--steps is '0'"),
        (("--out", " "), "--out is empty"),
        (("--out", "prompts.jsonl"), "nothing can be written to"),
        (("--address", "10.0.0.1:6379"), "is not used without a token"),
    ],
)
def test_a_wrong_option_is_named(refused: Callable[..., str], arguments: tuple[str, ...], sentence: str) -> None:
    """A cluster without a token would run anybody's code."""
    assert sentence in refused("a star", *arguments)


def test_lines_get_their_options_and_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line speaks for every prompt, a line for itself; a number is that of the prompt."""
    Path("graph.json").write_text(json.dumps(GRAPH))
    Path("sub").mkdir()
    Path("sub/first.png").touch()
    named = {"workflow": "graph.json", "inputs": ["sub/first.png"], "id": "mine"}
    written_out = {"workflow": GRAPH}
    lines = ["# a comment", "a star", '{"prompt": "b", "steps": 3}', json.dumps(named), json.dumps(written_out)]
    star, other, workflow, last = plan_of("\n".join(lines), "--steps", "7").jobs
    assert (star.id, other.id, workflow.id, last.id) == ("0001", "0002", "mine", "0004")
    assert star.request is not None and star.request.values == {"prompt": "a star", "steps": 7}
    assert other.request is not None and other.request.values == {"prompt": "b", "steps": 3}
    assert workflow.request is None and workflow.graph == last.graph == GRAPH
    assert [(name, path.name) for name, path in workflow.inputs.items()] == [("sub/first.png", "first.png")]


def test_whoever_types_an_address_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow needs the server's owner to allow an address; here the owner types it. The token is needed still."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    assert plan_of("a star", "--address", "10.0.0.1:6379").address == "10.0.0.1:6379"


def test_the_command_becomes_the_one_that_has_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """A parent in between would leave the farm running where it is killed."""
    commands: list[list[str]] = []
    missing: list[dict] = []
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: cli.Setup(tmp_path / "host", tmp_path / "python"))
    monkeypatch.setattr(models, "models_folder", lambda *_: tmp_path / "models")
    monkeypatch.setattr(models, "install_missing", lambda python, needed: missing.append(needed))
    monkeypatch.setattr(cli, "go_on_as", lambda command, environ: commands.append(command) or 0)
    Path("prompts.jsonl").write_text("a star")
    assert cli.main(["farm", "prompts.jsonl", "--out", "out"]) == 0
    ((python, script, *arguments, option, ready),) = commands
    assert (python, Path(script).name, option) == (str(tmp_path / "python"), "dev.py", "--ready")
    assert arguments == ["farm", "prompts.jsonl", "--out", "out"] and missing == [{"ray": "ray"}]
    folders = json.loads(ready)
    assert (folders["comfyui"], folders["models"]) == (str(tmp_path / "host"), str(tmp_path / "models"))
    assert capsys.readouterr().out == ""
