import contextlib
import errno
import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cogvideox.devtools import cli, comfyui, environment, overlay, paths, server, suite
from cogvideox.errors import UserError


@pytest.fixture
def dev():
    spec = importlib.util.spec_from_file_location("dev_under_test", paths.ROOT / "dev.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def untouched_clone(tmp_path, monkeypatch):
    """Everything the commands write goes to an empty folder; a ComfyUI of the environment is forgotten."""
    for name, place in (("VENV", ".venv"), ("DEV", ".dev"), ("LOGS", ".dev/logs"), ("BASE", ".dev/base")):
        monkeypatch.setattr(paths, name, tmp_path / place)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


def sentence(capsys) -> str:
    """The one line on stderr, without its `error: `."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_old_python_is_told_which_to_use(dev, monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert dev.main(["demo"]) == 1
    assert sentence(capsys) == "Python 3.10 or newer is needed and this is 3.9.18: run `python3.10 dev.py`."


def test_old_python_can_parse_dev_py():
    import ast

    # A SyntaxError on Python 3.7 would come instead of the sentence above.
    ast.parse((paths.ROOT / "dev.py").read_text("utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize("by_option", [True, False])
def test_wrong_comfyui_path_names_its_source_and_installs_nothing(untouched_clone, monkeypatch, capsys, by_option):
    wrong = untouched_clone / "elsewhere"
    if not by_option:
        monkeypatch.setenv("COMFYUI_PATH", str(wrong))
    assert cli.main(["demo", *(["--comfyui", str(wrong)] if by_option else [])]) == 1
    message = sentence(capsys)
    assert message.startswith(f"{'--comfyui' if by_option else 'COMFYUI_PATH'} names {wrong}")
    assert "main.py" in message
    assert not list(untouched_clone.iterdir())


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_port_in_use_is_found_before_anything_long(untouched_clone, capsys, command):
    with socket.socket() as taken:
        taken.bind((server.ADDRESS, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main([command, "--port", str(port)]) == 1
    assert sentence(capsys).startswith(f"Port {port} cannot be used")
    assert not list(untouched_clone.iterdir())


def test_demos_picture_that_is_not_there_is_named_before_anything_long(untouched_clone, capsys):
    assert cli.main(["demo", "--prompt", "a star", "--image", "nowhere.png"]) == 1
    assert "--image names nowhere.png, which is not there" in sentence(capsys)
    assert not list(untouched_clone.iterdir())


@pytest.fixture
def fake_server(untouched_clone, monkeypatch):
    """A machine that is ready, and a stand-in for a server. Returns the commands that are run on them."""
    commands = []
    running = SimpleNamespace(url="http://127.0.0.1:1", output=untouched_clone / "output")
    ready = cli.Setup(untouched_clone / "host", Path("python"))
    monkeypatch.setattr(cli, "prepare", lambda *_, **__: ready)
    monkeypatch.setattr(cli, "_server", lambda *_: contextlib.nullcontext(running))
    monkeypatch.setattr(cli, "run_foreground", lambda command, **_: commands.append([*map(str, command)]) or 0)
    return commands


def test_demo_runs_three_workflows(untouched_clone, fake_server):
    """The first command of the README."""
    assert cli.main(["demo"]) == 0
    names = ["Text to video", "Image to video", "Inpaint a region of a video"]
    (command,) = fake_server
    assert command[1:] == [
        "-m",
        "cogvideox.devtools.demo",
        "http://127.0.0.1:1",
        str(untouched_clone / "output"),
        *names,
    ]
    assert all(paths.template(name).is_file() for name in names)


@pytest.mark.parametrize(
    "given, asked",
    [
        (["--prompt", "a star"], ["--prompt=a star"]),
        (
            ["--image", "start.png"],
            ["--prompt=A large red square moves up on a white background.", "--image=start.png"],
        ),
        (["--image", "start.png", "--prompt", "a star"], ["--prompt=a star", "--image=start.png"]),
    ],
)
def test_demo_of_a_prompt_or_a_picture_is_a_run(untouched_clone, fake_server, monkeypatch, capsys, given, asked):
    """What is given is made by `run`, under a name that no demo before had, and shown."""
    monkeypatch.chdir(untouched_clone)
    Path("start.png").touch()
    folder = untouched_clone / ".dev" / "base" / "output" / "demo"
    folder.mkdir(parents=True)
    (folder / "9.mp4").touch()
    assert cli.main(["demo", *given]) == 0
    run, sheet = fake_server
    assert run[1:3] == [str(paths.ROOT / "dev.py"), "run"]
    assert [option for option in run[3:-2] if not option.startswith("--out=")] == asked
    assert f"--out={folder / '10.mp4'}" in run
    assert sheet[1:] == ["-m", "cogvideox.devtools.contact_sheet", str(folder / "10.png"), str(folder / "10.mp4")]
    assert str(folder / "10.png") in capsys.readouterr().out


def test_run_goes_on_in_the_clones_own_python(untouched_clone, fake_server, capsys):
    """stdout has the results alone, which another program reads; the server of one's own gets the user's models."""
    assert cli.main(["run", "--prompt", "a", "--out", str(untouched_clone / "a.mp4"), "--seed", "3"]) == 0
    ((python, script, *rest, ready),) = fake_server
    assert (python, script) == ("python", str(paths.ROOT / "dev.py"))
    assert rest == ["run", "--prompt", "a", "--out", str(untouched_clone / "a.mp4"), "--seed", "3", "--ready"]
    assert json.loads(ready) == {
        "host": str(untouched_clone / "host"),
        "models": str(untouched_clone / ".dev" / "base" / "models"),
        "port": None,
    }
    assert capsys.readouterr().out == ""


def test_bench_help_names_the_benchmarks(untouched_clone, capsys):
    """Their names stood in an error message alone. Nothing is installed for it."""
    assert cli.main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    for script in (paths.ROOT / "benchmarks").glob("bench_*.py"):
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [script.stem.removeprefix("bench_")])
        assert line.endswith(".") and len(line.split()) > 5, line
    assert not list(untouched_clone.iterdir())


@pytest.mark.parametrize("command", ["demo", "test", "serve", "run", "models", "migrate", "train"])
def test_help_says_what_a_command_does(command: str, capsys: pytest.CaptureFixture) -> None:
    """It listed options alone, --port among them for commands that start no server: it was taken, and nothing done."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    sentence = shown.split("\n\n")[1].replace("\n", " ")
    assert ended.value.code == 0 and sentence[0].isupper() and sentence.endswith(".")
    assert ("--port" in shown) == (command in ("demo", "serve", "run"))


def test_help_of_one_benchmark_is_its_own(untouched_clone, fake_server):
    """`bench nano --help` printed the options of `bench`, of which it has others."""
    assert cli.main(["bench", "nano", "--help"]) == 0
    (command,) = fake_server
    assert command == ["python", str(paths.ROOT / "benchmarks" / "bench_nano.py"), "--help"]


def test_too_little_room_is_found_before_anything_is_written(untouched_clone, monkeypatch, capsys):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1.5e9}))
    assert cli.main(["demo"]) == 1
    assert "has 1.5 GB free" in sentence(capsys)
    assert not list(untouched_clone.iterdir())


def test_disk_that_fills_up_anywhere_is_one_sentence(untouched_clone, monkeypatch, capsys):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "some/file")

    monkeypatch.setattr(environment, "create_venv", fill)
    monkeypatch.setattr(environment, "check_room", lambda folder: 100.0)
    assert cli.main(["demo"]) == 1
    assert sentence(capsys).startswith("The disk is full, there was no room for some/file")


def test_other_system_errors_are_not_called_a_full_disk(untouched_clone, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(environment, "check_room", fail)
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["demo"])


def test_what_the_system_refuses_of_a_file_is_one_sentence(untouched_clone, monkeypatch, capsys):
    """A traceback does not say more; of an error without a file, and of a fault of ours, it is all there is."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "some/file\x1b[2K")

    def damage(*_):
        raise ValueError("a fault")

    def tell(*_):
        raise UserError("There is no such thing. Name another.")

    monkeypatch.setattr(environment, "check_room", refuse)
    assert cli.main(["demo"]) == 1
    found = "some/file\ufffd[2K (PermissionError: Permission denied)"
    assert sentence(capsys).startswith(f"The system refuses {found}. Check its name")
    monkeypatch.setattr(environment, "check_room", tell)
    assert cli.main(["demo"]) == 1
    assert sentence(capsys) == "There is no such thing. Name another."
    monkeypatch.setattr(environment, "check_room", damage)
    with pytest.raises(ValueError, match="a fault"):
        cli.main(["demo"])


@pytest.mark.parametrize("name", ["~nosuch/x", "x" * 300, "a/" * 3000])
def test_paths_that_no_disk_has_are_one_sentence(untouched_clone, monkeypatch, capsys, name):
    """The home of nobody was a RuntimeError, and a name that is too long an OSError."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for argv in (["serve", "--comfyui", name], ["train", name], ["demo", "--image", name]):
        assert cli.main(argv) == 1
        assert name.rstrip("/") in sentence(capsys)
    monkeypatch.setenv("COMFYUI_PATH", name)
    assert cli.main(["serve"]) == 1
    assert sentence(capsys).startswith("COMFYUI_PATH names ")
    assert cli.main(["models", "list", "--to", name]) == 0


def test_ctrl_c_ends_without_a_traceback(untouched_clone, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "check_room", interrupt)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--host", "0.19.0"], "the versions that can be fetched are 0.30.0, 0.24.0, 0.18.2, 0.16.3"),
        (["--host", "0.18.2", "--comfyui", "X"], "give one of the two"),
    ],
)
def test_host_that_cannot_be_had_is_named_before_anything_long(untouched_clone, capsys, argv, words):
    assert cli.main(["test", *argv]) == 1
    assert words in sentence(capsys)
    assert not list(untouched_clone.iterdir())


def test_older_host_is_fetched_into_an_environment_of_its_own(untouched_clone, monkeypatch):
    """Its packages would replace those of the newest ComfyUI. COMFYUI_PATH, set for every day, must not win."""
    calls = []
    monkeypatch.setenv("COMFYUI_PATH", "/somewhere")
    monkeypatch.setattr(environment, "check_room", lambda folder: 100.0)
    monkeypatch.setattr(environment, "create_venv", lambda venv, logs: Path("shared"))
    monkeypatch.setattr(environment, "install_package", lambda *_: None)
    monkeypatch.setattr(environment, "install", lambda python, name, files, *_, after="": after + name)
    monkeypatch.setattr(comfyui, "fetch", lambda release, *_: Path(release.version))
    monkeypatch.setattr(comfyui, "prepare_base", lambda *_: None)
    monkeypatch.setattr(overlay, "prepare", lambda *given: calls.append(given) or Path("overlay"))
    arguments, _ = cli.parse(["test", "--host", "0.18.2"])
    setup = cli.prepare(arguments, for_tests=True)
    assert (setup.host, setup.python) == (Path("0.18.2"), Path("overlay"))
    assert calls == [(Path("shared"), Path("0.18.2"), "0.18.2", "ComfyUI requirementstest requirements")]
    arguments, _ = cli.parse(["test", "--host", "0.30.0"])
    setup = cli.prepare(arguments, for_tests=True)
    assert (setup.host, setup.python, len(calls)) == (Path("0.30.0"), Path("shared"), 1)


def test_pytest_gets_its_arguments_in_order():
    arguments, rest = cli.parse(["test", "-k", "dit and not slow", "--co", "--comfyui", "X", "tests/vae", "-x"])
    # --co is pytest's; were it read as --comfyui, it would swallow a path.
    assert rest == ["-k", "dit and not slow", "--co", "tests/vae", "-x"]
    assert arguments.comfyui == "X"


@pytest.mark.parametrize(
    "option, argv",
    [
        ("port", ["--port", "5", "migrate", "w.json"]),
        ("comfyui", ["--comfyui", "X", "migrate", "w.json"]),
        *(("port", ["--port", "5", *command]) for command in (["test"], ["bench"], ["models"], ["train", "r.toml"])),
    ],
)
def test_option_without_effect_is_refused_before_the_command_too(option, argv, capsys):
    """Behind the command it was refused, and before it taken without any effect."""
    with pytest.raises(SystemExit) as ended:
        cli.parse(argv)
    assert ended.value.code == 2
    assert f"--{option} has no effect on {argv[2]}: leave it out." in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--comfyui", "X", "--port", "81", "demo"], ["demo", "--comfyui", "X", "--port", "81"]]
)
def test_options_count_before_and_after_the_command(argv):
    arguments, _ = cli.parse(argv)
    assert (arguments.comfyui, arguments.port) == ("X", 81)


def test_misspelt_option_of_demo_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(["demo", "--prot", "81"])
    assert ended.value.code == 2
    assert "--prot 81" in capsys.readouterr().err


def test_unknown_benchmark_names_the_known_ones(untouched_clone, monkeypatch, capsys):
    (untouched_clone / "benchmarks").mkdir()
    for name in ("bench_start.py", "bench_load.py"):
        (untouched_clone / "benchmarks" / name).touch()
    monkeypatch.setattr(paths, "ROOT", untouched_clone)
    assert cli.main(["bench", "stat"]) == 1
    assert sentence(capsys) == "There is no benchmark stat; there are: load, start."


@pytest.mark.parametrize("command", ["test", "bench"])
def test_the_registrys_package_has_neither_tests_nor_benchmarks(command, untouched_clone, monkeypatch, capsys):
    # pytest's own words for a folder that is not there lead nowhere, and come after minutes of pip.
    (untouched_clone / "benchmarks").mkdir()
    (untouched_clone / "benchmarks" / "__init__.py").touch()
    monkeypatch.setattr(paths, "ROOT", untouched_clone)
    assert cli.main([command]) == 1
    assert "is the Comfy Registry's package" in sentence(capsys)


def test_benchmarks_all_run_and_a_failure_is_the_exit_status(untouched_clone, monkeypatch):
    (untouched_clone / "benchmarks").mkdir()
    for name, status in (("bench_a", 3), ("bench_b", 0)):
        code = (
            f"import os, sys; open({name!r} + sys.argv[1], 'w').write(os.environ['COMFYUI_PATH']); sys.exit({status})"
        )
        (untouched_clone / "benchmarks" / f"{name}.py").write_text(code, "utf-8")
    monkeypatch.setattr(paths, "ROOT", untouched_clone)
    ready = cli.Setup(untouched_clone / "host", cli.Path(sys.executable))
    monkeypatch.setattr(cli, "prepare", lambda arguments, for_tests: ready)
    assert cli.main(["bench", "--quick"]) == 3
    for name in ("bench_a", "bench_b"):
        assert (untouched_clone / f"{name}--quick").read_text("utf-8") == str(ready.host)


def test_processes_keep_what_they_compile(monkeypatch):
    """Containers forbid it; then each process of a test run compiles ComfyUI and the pack for seconds."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environ = cli.Setup(cli.Path("host"), cli.Path(sys.executable)).environ()
    command = [sys.executable, "-c", "import sys; sys.exit(sys.dont_write_bytecode)"]
    assert subprocess.run(command, env=environ).returncode == 0


@pytest.mark.parametrize(
    "argv, tier",
    [
        ([], "standard"),
        (["--fast"], "fast"),
        (["--long"], "long"),
        (["--host", "0.18.2"], "fast"),
        (["--host", "0.18.2", "--long"], "long"),
        (["--host", "0.30.0"], "standard"),
    ],
)
def test_suite_runs_a_tier_in_workers(monkeypatch, argv, tier):
    """A tier that does not reach pytest would leave tests out without a word, or take ten times as long."""
    commands = []
    monkeypatch.setattr(suite, "run_foreground", lambda command, cwd, env: commands.append((command, env)) or 0)
    monkeypatch.setattr(suite.os, "cpu_count", lambda: 2)
    arguments, rest = cli.parse(["test", *argv, "-k", "dit"])
    assert suite.run(cli.Path("python"), {}, arguments, rest) == 0
    ((command, env),) = commands
    assert command == ["python", "-m", "pytest", f"--tier={tier}", "-n", "2" if tier == "fast" else "4", "-k", "dit"]
    assert env == {"OMP_NUM_THREADS": "1"}


def test_what_was_measured_is_saved_on_request(monkeypatch):
    """The documents' figures are compared with that file; a run that only seemed to write it would leave old ones."""
    commands = []
    monkeypatch.setattr(suite, "run_foreground", lambda command, cwd, env: commands.append(command) or 0)
    for argv in (["test", "--long", "--save"], ["test", "--long"]):
        arguments, rest = cli.parse(argv)
        suite.run(cli.Path("python"), {}, arguments, rest)
    assert ["--save" in command for command in commands] == [True, False]


@pytest.mark.parametrize(
    "rest", [["tests/vae/test_tiny.py::test_x"], ["--pdb"], ["-n", "4"], ["-pno:xdist"], ["--co", "tests/vae"], ["-s"]]
)
def test_workers_are_left_to_those_who_choose(rest):
    """A debugger in a worker has no terminal; a file alone is quicker in one process."""
    assert suite.worker_options(rest, cores=2) == []


def test_one_core_has_no_workers():
    assert suite.worker_options(["tests/vae"], cores=1) == []
    assert suite.worker_options(["tests/vae"], cores=8) == ["-n", "4"]
    assert suite.worker_options(["tests/vae"], cores=8, tier="fast") == ["-n", "2"]


def test_coverage_is_combined_and_printed(untouched_clone, monkeypatch):
    """Each worker and server writes a file of its own; a failure of the tests must stay the exit status. Servers run in
    another folder: a relative path would be one of theirs."""
    commands = []
    monkeypatch.setattr(suite, "COVERAGE", untouched_clone / "coverage")
    monkeypatch.setattr(
        suite, "run_foreground", lambda command, cwd, env: commands.append(command[3:]) or len(commands)
    )
    arguments, rest = cli.parse(["test", "--coverage", "-n0"])
    assert suite.run(cli.Path("python"), {}, arguments, rest) == 1
    (run, source, omit, *pytest), *after = commands
    assert (run, pytest[:2]) == ("run", ["-m", "pytest"])
    assert after == [["combine", "--quiet"], ["report", "--ignore-errors"]]
    folders = [source.removeprefix("--source="), *omit.removeprefix("--omit=").split(",")]
    assert all(Path(folder).is_absolute() for folder in folders)


def test_faults_are_run_instead_of_the_suite(monkeypatch):
    commands = []
    monkeypatch.setattr(suite, "run_foreground", lambda command, cwd, env: commands.append(command) or 3)
    arguments, rest = cli.parse(["test", "--faults", "--write", "DDIM"])
    assert suite.run(cli.Path("python"), {}, arguments, rest) == 3
    assert commands == [["python", "-m", "cogvideox.tests.faults.run", "--write", "DDIM"]]
