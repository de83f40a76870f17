"""The lowest and the newest libraries: what is asked of pip, and that the tests run with what was asked for."""

import sys
from pathlib import Path
from typing import Any

import pytest

from cogvideox.devtools import browser, cli, environment, libraries, overlay, paths, suite
from cogvideox.devtools.errors import DevError
from cogvideox.training.recipe import read_toml

PACK = "# comment\naccelerate>=1.7.0\npeft >= 0.18.0\n\ntomli>=2.0; os_name == 'x'\n"
HOST = "torch\ntransformers>=4.50.3\nnumpy>=1.25.0\n"


@pytest.mark.parametrize(
    ("chosen", "lines"),
    [
        (
            "lowest",
            ["accelerate==1.7.0", "peft==0.18.0", "tomli==2.0; os_name == 'x'", "transformers==4.50.3"],
        ),
        ("mixed", ["accelerate==1.7.0", "peft==0.18.0", "tomli==2.0; os_name == 'x'", "transformers>=5"]),
        ("newest", ["accelerate", "peft", "tomli; os_name == 'x'", "transformers"]),
    ],
)
def test_versions_are_those_that_the_requirements_allow(chosen: str, lines: list[str]) -> None:
    """Written down a second time, a lowest version would go on being tested when the requirements have moved."""
    assert libraries.requirements(chosen, PACK, HOST).splitlines() == lines


def test_every_requirement_of_the_pack_has_a_lowest_version() -> None:
    """requirements.txt and pyproject.toml name the same: what only one of them allows would not be tested."""
    pack = (paths.ROOT / "requirements.txt").read_text("utf-8")
    project = read_toml((paths.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dependencies"] == libraries._lines(pack)
    assert libraries.requirements("lowest", pack, HOST).count("==") == len(project["dependencies"]) + 1
    with pytest.raises(DevError, match="'scipy' has no lowest version"):
        libraries.requirements("lowest", "scipy\n", HOST)


@pytest.mark.parametrize("chosen", libraries.SETS)
def test_an_environment_is_asked_for_without_torch(
    chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip would fetch gigabytes of another torch; and under the pinned diffusers no other one could be installed. A
    newest release of last week is not the newest."""
    calls: list[Any] = []
    for name in ("DEV", "LOGS"):
        monkeypatch.setattr(paths, name, tmp_path)
    (tmp_path / "requirements.txt").write_text(HOST, "utf-8")
    (tmp_path / f"venv-{chosen}").mkdir()
    monkeypatch.setattr(overlay, "create", lambda venv, shared, logs: Path(sys.executable))
    monkeypatch.setattr(environment, "install", lambda *given, **options: calls.append((given, options)))
    assert libraries.prepare(chosen, Path("shared"), tmp_path, "digest") == Path(sys.executable)
    ((_, _, (wanted,), constraints, stamps, _, after), options) = calls[0]
    assert wanted.parent == constraints.parent == stamps.parent == tmp_path / f"venv-{chosen}"
    assert [line.split("=")[0] for line in constraints.read_text("utf-8").split()] == [
        "torch",
        "torchvision",
        "torchaudio",
    ]
    assert options == {"upgrade": chosen == "newest"} and (after == "digest") == (chosen != "newest")


def test_versions_are_those_of_the_interpreter() -> None:
    """The run names what it was made with: an environment that shares too much would pass with the pinned ones."""
    from importlib.metadata import version

    named = dict(pair.split(" ", 1) for pair in libraries.describe(Path(sys.executable), PACK).split(", "))
    assert named["transformers"] == version("transformers") and named["peft"] == version("peft")
    assert list(named) == ["transformers", "accelerate", "peft", "tomli"]


@pytest.mark.parametrize(
    ("argv", "sets", "status"),
    [
        (["--libraries", "lowest"], ["lowest"], 0),
        (["--libraries", "all", "--long"], ["lowest", "mixed", "newest"], 3),
    ],
)
def test_each_set_is_run_and_a_failure_is_the_exit_status(
    argv: list[str], sets: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A set that fails must not keep the others from being run, and none may hide it."""
    ready, ran = cli.Setup(Path("host"), Path("shared"), "digest"), []
    monkeypatch.setattr(cli, "prepare", lambda arguments, for_tests: ready)
    monkeypatch.setattr(browser, "ensure_browser", lambda logs: None)
    monkeypatch.setattr(libraries, "prepare", lambda chosen, *rest: Path(chosen) if len(rest) == 3 else None)

    def run(command: list[str], cwd: Path, env: dict) -> int:
        ran.append((command[0], command[3]))
        return 3 if command[0] == "mixed" else 0

    monkeypatch.setattr(suite, "run_foreground", run)
    assert cli.main(["test", *argv]) == status
    tier = "--tier=long" if "--long" in argv else "--tier=fast"
    assert ran == [(name, tier) for name in sets]
    out = capsys.readouterr().out
    assert all(f"{name}: {'failed (exit status 3)' if name == 'mixed' else 'passed'}" in out for name in sets)


def test_pip_is_told_to_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the newest set is what `.venv` has: pip leaves what satisfies."""
    commands: list[Any] = []
    monkeypatch.setattr(environment, "run_pip", lambda python, arguments, *rest: commands.append(arguments))
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("peft\n", "utf-8")
    for up in (True, False):
        environment.install(Path("python"), "x", [wanted], wanted, tmp_path / "stamps", tmp_path, str(up), upgrade=up)
    assert ["--upgrade" in command for command in commands] == [True, False]


@pytest.mark.parametrize("more", [["--host", "0.18.2"], ["--faults"]])
def test_what_cannot_be_combined_is_refused_before_anything_long(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: pytest.fail("prepared"))
    assert cli.main(["test", "--libraries", "lowest", *more]) == 1
    assert "run the two commands one after the other" in capsys.readouterr().err
