"""dev.py models: the list and the download, in an interpreter that has no ComfyUI."""

import json
import subprocess
import sys

import pytest

from cogvideox.devtools import cli, models, paths
from cogvideox.tests.file_server import BIG, Fault, running_hub

NAME = "CogVideoX-2b"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    with running_hub(monkeypatch) as server:
        yield server


def state(tmp_path, capsys, name=NAME):
    """What the list says of one checkpoint under tmp_path."""
    capsys.readouterr()
    assert cli.main(["models", "--to", str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))
    return line.split("fps")[1].strip()


def test_list_tells_size_licence_and_what_is_there(hub, tmp_path, capsys):
    # Else the user looks through folders to find out which of them are whole.
    assert cli.main(["models", "list", "--to", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "CogVideoX1.5-5B-I2V" in out and "31 GB  CogVideoX LICENSE" in out and "/LICENSE" in out
    assert state(tmp_path, capsys) == "-"
    (tmp_path / "CogVideoX-5b").mkdir()
    (tmp_path / "CogVideoX-5b" / "model_index.json").write_text("{}")
    assert state(tmp_path, capsys, "CogVideoX-5b") == "there, not verified"
    hub.fail(BIG, Fault(403))
    assert cli.main(["models", "fetch", NAME, "--to", str(tmp_path)]) == 1
    assert state(tmp_path, capsys) == "partial, 0.0 GB to go"
    assert cli.main(["models", "fetch", NAME.lower(), "--to", str(tmp_path)]) == 0
    assert state(tmp_path, capsys) == "complete"
    (tmp_path / NAME / BIG).unlink()
    assert state(tmp_path, capsys).startswith("partial")


def test_fetch_says_where_and_that_it_is_verified(hub, tmp_path, capsys):
    assert cli.main(["models", "fetch", NAME, "--to", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "about 14 GB, Apache-2.0" in out and f"verified: {tmp_path / NAME}" in out
    assert (tmp_path / NAME / BIG).read_bytes() == hub.files[BIG]


def test_fetch_from_modelscope(hub, tmp_path, capsys, monkeypatch):
    # In a country that cannot reach Hugging Face.
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    assert cli.main(["models", "fetch", NAME, "--to", str(tmp_path), "--modelscope"]) == 0
    assert (tmp_path / NAME / BIG).read_bytes() == hub.files[BIG]
    assert all("ZhipuAI/CogVideoX-2b" in asked.path for asked in hub.asked)
    assert state(tmp_path, capsys) == "complete"


def test_list_names_the_single_files(tmp_path, capsys):
    # Who wants one part finds its address and its folder.
    assert cli.main(["models", "--to", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for file in models.repositories.FILES:
        assert f"models/{file.directory}" in out and file.url in out


def test_the_table_for_programs(capsys):
    # Who writes a workflow needs the entry with which ComfyUI offers a missing model.
    assert cli.main(["models", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["checkpoints"]["CogVideoX-5b"] == {
        "Hugging Face": "zai-org/CogVideoX-5b",
        "ModelScope": "ZhipuAI/CogVideoX-5b",
    }
    (t5,) = (file for file in table["files"] if file["name"] == "t5xxl_fp16.safetensors")
    assert t5.keys() == {"name", "url", "directory", "hash", "hash_type"} and t5["directory"] == "text_encoders"


def test_failure_is_one_sentence(hub, tmp_path, capsys):
    hub.close()
    assert cli.main(["models", "fetch", NAME, "--to", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and "offline" in lines[0] and "Try again" in lines[0]
    assert len(lines) == 2 and "model_index.json" in lines[1]  # what to fetch elsewhere


@pytest.mark.parametrize("arguments", [["fetch"], ["fetch", "CogVideoX-7b"], ["list", NAME], ["check", NAME]])
def test_wrong_arguments_ask_no_hub(hub, tmp_path, capsys, arguments):
    assert cli.main(["models", *arguments, "--to", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not hub.asked


def test_folder_is_that_of_the_comfyui_at_hand(tmp_path, monkeypatch):
    # Weights in a folder that no ComfyUI looks into are 20 GB in vain.
    def target(*argv):
        return models._target(cli.parse(["models", *argv])[0])

    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(paths, "BASE", tmp_path / "base")
    assert target() == tmp_path / "base" / "models" / "diffusers"
    comfyui = tmp_path / "ComfyUI"
    for part in ("comfy", "custom_nodes/cogvideox"):
        (comfyui / part).mkdir(parents=True)
    for file in ("main.py", "requirements.txt"):
        (comfyui / file).touch()
    assert target("--comfyui", str(comfyui)) == comfyui / "models" / "diffusers"
    monkeypatch.setattr(paths, "ROOT", comfyui / "custom_nodes" / "cogvideox")
    assert target() == comfyui / "models" / "diffusers"
    assert target("--to", str(tmp_path / "there")) == tmp_path / "there"


def test_list_needs_nothing_but_python(tmp_path):
    # A fresh clone has no packages; -S hides those of this interpreter.
    command = [sys.executable, "-S", "-I", "-c", _ALONE.format(root=str(paths.ROOT), to=str(tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "CogVideoX-5b-I2V" in ended.stdout


_ALONE = """
import sys
sys.path.insert(0, {root!r})
import dev
status = dev.main(["models", "--to", {to!r}])
assert not set(sys.modules) & {{"torch", "comfy", "requests", "filelock"}}
sys.exit(status)
"""


def test_a_python_without_requests_gets_a_venv_that_has_it(tmp_path, monkeypatch, fake_pip, python):
    # The system's Python usually lacks them; the download then runs in the clone's own.
    calls = fake_pip()
    monkeypatch.setattr(paths, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(models.environment, "create_venv", lambda venv, logs: python)
    assert models.interpreter(models._NEEDED) == python
    assert not calls.exists(), "it has them already"
    assert models.interpreter({"no_such_module": "requests", "filelock": "filelock"}) == python
    assert "requests filelock" in calls.read_text("utf-8")
