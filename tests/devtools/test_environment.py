import sys
from functools import partial

import pytest

from cogvideox.devtools import environment
from cogvideox.devtools.errors import DevError

# What pip 24 printed on a machine without a network.
OFFLINE = """
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by \
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7fcd4502f5d0>: Failed to establish \
a new connection: [Errno -3] Temporary failure in name resolution')': /simple/diffusers/
ERROR: Could not find a version that satisfies the requirement diffusers (from versions: none)
ERROR: No matching distribution found for diffusers
"""
NO_SOLUTION = "ERROR: Cannot install a and b because these package versions have conflicting dependencies."
DISK_FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"


def failing(output: str) -> str:
    return f"print({output!r})\nsys.exit(1)"


@pytest.fixture
def install(tmp_path, python):
    """install(text of the requirements) -> digest, with its stamps and logs in tmp_path."""
    (tmp_path / "constraints.txt").write_text("torch==2", "utf-8")

    def run(requirements: str = "diffusers", after: str = "") -> str:
        (tmp_path / "requirements.txt").write_text(requirements, "utf-8")
        return environment.install(
            python,
            "the packages",
            [tmp_path / "requirements.txt"],
            tmp_path / "constraints.txt",
            tmp_path / "stamps",
            tmp_path / "logs",
            after,
        )

    return run


def test_offline_pip_is_one_sentence_with_pips_last_word_and_the_log(fake_pip, install, tmp_path):
    fake_pip(failing(OFFLINE))
    with pytest.raises(DevError) as caught:
        install()
    message = str(caught.value)
    assert message.startswith("Could not download the packages: the package index did not answer")
    assert "No matching distribution found for diffusers" in message
    assert str(tmp_path / "logs" / "pip-the-packages.log") in message
    assert "\n" not in message


def test_pip_says_how_much_has_come(fake_pip, python, tmp_path, monkeypatch, capsys):
    """A wheel of gigabytes takes minutes in which pip prints nothing. Its files are on the clone's disk, whose room has
    been looked at: the system's folder for them may be a small one in memory."""
    run_logged = environment.run_logged
    monkeypatch.setattr(environment, "run_logged", partial(run_logged, heartbeat_s=0.9))
    fake_pip(
        "import tempfile, time\nprint('Collecting torch', flush=True)\n"
        "file = tempfile.NamedTemporaryFile()\nfile.write(bytes(5_000_000))\nfile.flush()\n"
        "print(tempfile.gettempdir())\ntime.sleep(3)"  # some heartbeats, on a busy machine too
    )
    environment.run_pip(python, ["install", "torch"], "torch", tmp_path / "logs" / "pip.log")
    assert "Collecting torch, 5 MB so far" in capsys.readouterr().out
    assert str(tmp_path / "logs") in (tmp_path / "logs" / "pip.log").read_text("utf-8")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["pip.log"]


def test_conflicting_packages_are_not_called_offline(fake_pip, install):
    fake_pip(failing(NO_SOLUTION))
    with pytest.raises(DevError, match="Could not install the packages: ERROR: Cannot install a and b"):
        install()


def test_disk_full_in_pip_is_called_so(fake_pip, install):
    fake_pip(failing(DISK_FULL))
    with pytest.raises(DevError, match="^The disk is full"):
        install()


def test_second_run_does_no_pip_work(fake_pip, install):
    calls = fake_pip()
    install()
    first = calls.read_text("utf-8")
    assert "requirements.txt" in first and "-c" in first.split()
    install()
    assert calls.read_text("utf-8") == first


@pytest.mark.parametrize("change", [{"requirements": "diffusers>=1"}, {"after": "another host"}])
def test_changed_requirements_or_host_are_installed_again(fake_pip, install, change):
    calls = fake_pip()
    install()
    install(**change)
    assert len(calls.read_text("utf-8").splitlines()) == 2


def test_changed_constraints_are_installed_again(fake_pip, install, tmp_path):
    calls = fake_pip()
    first = install()
    (tmp_path / "constraints.txt").write_text("torch==3", "utf-8")
    assert install() != first
    assert len(calls.read_text("utf-8").splitlines()) == 2


def test_failed_install_is_not_taken_for_done(fake_pip, install):
    fake_pip()
    install()
    fake_pip(failing(NO_SOLUTION))
    with pytest.raises(DevError):
        install("diffusers>=1")
    # Back to what the old stamp described: the environment may be half changed.
    calls = fake_pip()
    before = len(calls.read_text("utf-8").splitlines())
    install()
    assert len(calls.read_text("utf-8").splitlines()) == before + 1


def test_debian_without_ensurepip_is_told_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(DevError, match=f"apt-get install python{version}-venv"):
        environment.create_venv(tmp_path / "venv", tmp_path / "logs")


@pytest.mark.long  # two times pip
def test_half_made_venv_is_recreated_and_a_working_one_kept(tmp_path):
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "left over").touch()
    python = environment.create_venv(venv, tmp_path / "logs")
    assert python.exists() and not (venv / "left over").exists()
    (venv / "kept").touch()
    assert environment.create_venv(venv, tmp_path / "logs") == python
    assert (venv / "kept").exists()


def test_torch_that_cannot_be_imported_names_the_cause(tmp_path, monkeypatch, python):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 is missing')", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DevError, match="torch cannot be imported .*libcudart.so.13 is missing"):
        environment.has_accelerator(python)
