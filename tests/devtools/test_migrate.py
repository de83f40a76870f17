"""`dev.py migrate`: what it writes, where, and what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cogvideox.devtools import cli, paths
from cogvideox.tests.migration.wrapper_flows import TWELVE


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    file = tmp_path / "bear.json"
    file.write_text(json.dumps(TWELVE["t2v_1.5"]().document()), "utf-8")
    return file


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence of a call that must fail."""
    assert cli.main(["migrate", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def kinds(file: Path) -> set[str]:
    return {node["type"] for node in json.loads(file.read_text("utf-8"))["nodes"]}


def test_writes_beside_the_workflow(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The workflow stays as it was, and the report says what is another value."""
    before = workflow.read_bytes()
    assert cli.main(["migrate", str(workflow)]) == 0
    out = capsys.readouterr().out
    target = workflow.with_name("bear_migrated.json")
    assert f"Written: {target}" in out and "What differs from the wrapper:" in out and "the same seed" in out
    assert "CogVideoXSample" in kinds(target) and workflow.read_bytes() == before
    assert sorted(file.name for file in workflow.parent.iterdir()) == ["bear.json", "bear_migrated.json"]


def test_nothing_is_overwritten_unasked(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A workflow may be the only copy of hours of work."""
    before = workflow.read_bytes()
    assert "is the workflow itself" in error_of(capsys, workflow, "--out", workflow)
    target = workflow.with_name("other.json")
    target.write_text("mine", "utf-8")
    assert "exists already" in error_of(capsys, workflow, "--out", target)
    assert workflow.read_bytes() == before and target.read_text("utf-8") == "mine"
    assert cli.main(["migrate", str(workflow), "--out", str(workflow), "--overwrite"]) == 0
    assert "CogVideoXSample" in kinds(workflow)


def test_refused_workflow_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of a workflow would run and make another video."""
    file, yaml = tmp_path / "tora.json", tmp_path / "extra_model_paths.yaml"
    (tmp_path / "models" / "CogVideo").mkdir(parents=True)
    file.write_text(json.dumps(TWELVE["tora"]().document()), "utf-8")
    assert cli.main(["migrate", str(file), "--extra-model-paths", str(yaml)]) == 1
    found = capsys.readouterr()
    assert "What cannot be migrated:" in found.out and "ToraEncodeTrajectory" in found.out
    assert "nothing is written" in found.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "tora.json"]


@pytest.mark.parametrize(
    "contents, word",
    [(b"\xff\xfe", "UTF-8"), (b"{", "not JSON"), (b"[1]", "not a workflow"), (b" " * (32 * 2**20 + 1), "more than")],
)
def test_bad_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: bytes, word: str
) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(contents)
    assert word in error_of(capsys, file)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


def test_missing_file_and_missing_folder(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in error_of(capsys, workflow.with_name("nowhere.json"))
    assert "is a folder" in error_of(capsys, workflow.parent)
    assert "there is no folder" in error_of(capsys, workflow, "--out", workflow.parent / "no" / "x.json")


@pytest.mark.parametrize("name", [".", "/", "", "x" * 300])
def test_path_that_is_no_file_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a path has no name from which that of the new file is made, or one that no disk takes."""
    message = error_of(capsys, name)
    assert "Name a workflow, which is a .json file." in message and message.count("\n") == 1


def test_out_that_is_a_folder_and_names_of_any_length(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --overwrite, too: a folder is not replaced by a file. What is wrong with --out is said before the report."""
    for more in ([], ["--overwrite"]):
        assert cli.main(["migrate", str(workflow), "--out", str(workflow.parent), *more]) == 1
        found = capsys.readouterr()
        assert "is a folder" in found.err and not found.out
    assert "cannot be written" in error_of(capsys, workflow.rename(workflow.with_name("x" * 250 + ".json")))
    longest = workflow.with_name("y" * 250 + ".json")
    assert cli.main(["migrate", str(workflow.with_name("x" * 250 + ".json")), "--out", str(longest)]) == 0
    assert "CogVideoXSample" in kinds(longest)


@pytest.mark.skipif(os.name == "nt", reason="Windows lets only some users make links")
def test_writes_through_a_link(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A user whose workflows are links into a folder of their own keeps both; a circle of links is one sentence."""
    link, circle = workflow.with_name("link.json"), workflow.with_name("circle.json")
    link.symlink_to(workflow)
    circle.symlink_to(circle)
    assert "is the workflow itself" in error_of(capsys, link, "--out", link)
    assert cli.main(["migrate", str(link), "--out", str(link), "--overwrite"]) == 0
    assert link.is_symlink() and "CogVideoXSample" in kinds(workflow)
    workflow.write_text(json.dumps(TWELVE["t2v_2b"]().document()), "utf-8")
    for more in ([], ["--overwrite"]):
        assert "cannot be written" in error_of(capsys, workflow, "--out", circle, *more)
    assert circle.is_symlink(), "a link in a circle was replaced"


def test_line_breaks_in_a_name_make_no_line_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger's workflow could say that something else has been written, or that an error is none."""
    document = TWELVE["t2v_2b"]().document()
    for node in document["nodes"]:
        if node["type"] == "CLIPLoader":
            node["widgets_values"][0] = "a.safetensors\nWritten: /home/me/other.json\r\x1b[2K"
    file = tmp_path / "names.json"
    file.write_text(json.dumps(document), "utf-8")
    assert cli.main(["migrate", str(file)]) == 0
    out = capsys.readouterr().out
    assert "other.json" in out and "\x1b" not in out and "\r" not in out
    written = f"Written: {tmp_path / 'names_migrated.json'}"
    assert [line for line in out.splitlines() if line.startswith("Written")] == [written]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFO")
def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    assert "regular file" in error_of(capsys, tmp_path / "pipe.json")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFO")
@pytest.mark.parametrize("through_link", [False, True])
def test_out_that_is_no_file_stays(
    workflow: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, through_link: bool
) -> None:
    """/dev/null was replaced by a workflow, for all programs of the machine."""
    pipe, out = workflow.with_name("pipe"), workflow.with_name("out.json")
    os.mkfifo(pipe if through_link else out)
    if through_link:
        out.symlink_to(pipe)
    for more in ([], ["--overwrite"]):
        assert f"{out} is a device or a pipe" in error_of(capsys, workflow, "--out", out, *more)
    assert out.is_fifo() and out.is_symlink() == through_link


@pytest.mark.skipif(os.name == "nt", reason="names on Windows are text")
def test_names_that_are_no_text_are_kept(workflow: Path) -> None:
    """What was written could not be printed: a traceback stood in the place of its name."""
    out = os.fsencode(workflow.parent) + b"/gr\xfcn.json"
    program = str(Path(cli.__file__).parents[1] / "dev.py")
    ended = subprocess.run([sys.executable, program, "migrate", str(workflow), "--out", out], capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert "Written: " in ended.stdout.decode() and "gr\ufffdn.json" in ended.stdout.decode()
    assert "CogVideoXSample" in Path(os.fsdecode(out)).read_text("utf-8")


def test_failed_write_leaves_what_was_there(
    workflow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk in the middle of a file must not cost the one that was there."""
    target = workflow.with_name("out.json")
    target.write_text("mine", "utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "disk is full" in error_of(capsys, workflow, "--out", target, "--overwrite")
    assert target.read_text("utf-8") == "mine"
    assert sorted(path.name for path in workflow.parent.iterdir()) == ["bear.json", "out.json"]


def wrapper_models(comfyui: Path) -> None:
    """The folders that the wrapper makes: two 1.5 transformers beside one VAE, LoRAs, control nets."""
    for folder in ("CogVideoX-5b-1.5/transformer_T2V", "CogVideoX-5b-1.5/vae", "CogVideo2B/transformer", "loras"):
        (comfyui / "models" / "CogVideo" / folder).mkdir(parents=True)
    for folder in ("transformer_T2V", "vae"):
        weights = comfyui / "models" / "CogVideo" / "CogVideoX-5b-1.5" / folder / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(b"")
    (comfyui / "models" / "CogVideo" / "loras" / "orbit.safetensors").write_bytes(b"")


def test_models_folder_is_found_by_the_loaders(workflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ComfyUI reads at its start from the line that the command writes is what the migrated loaders name."""
    import folder_paths
    from utils.extra_config import load_extra_path_config

    from cogvideox.host import folders

    comfyui = workflow.parent
    wrapper_models(comfyui)
    yaml, target = comfyui / "extra_model_paths.yaml", comfyui / "out.json"
    yaml.write_text("mine:\n    checkpoints: elsewhere", "utf-8")  # without a new line at its end
    arguments = ["migrate", str(workflow), "--out", str(target), "--extra-model-paths", str(yaml)]
    assert cli.main(arguments) == 0
    text = yaml.read_text("utf-8")
    assert text.startswith("mine:\n    checkpoints: elsewhere\n")
    assert "    diffusers: models/CogVideo\n" in text and "models/CogVideo/loras" in text and "GGUF" not in text
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert yaml.read_text("utf-8") == text, "it is there already"

    known = {name: (list(paths), set(kinds)) for name, (paths, kinds) in folder_paths.folder_names_and_paths.items()}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    load_extra_path_config(str(yaml))
    nodes = {node["type"]: node["widgets_values"] for node in json.loads(target.read_text("utf-8"))["nodes"]}
    assert nodes["CogVideoXLoadModel"][0] in folders.list_components("transformer", "diffusion_models")
    assert nodes["CogVideoXLoadVAE"][0] in folders.list_components("vae", "vae")
    assert "CogVideo2B" in folders.list_components("transformer", "diffusion_models")
    assert "orbit.safetensors" in folders.list_files("loras", folders.LORA_SUFFIXES)
    assert folders.find(nodes["CogVideoXLoadModel"][0], "diffusers", "diffusion_models").is_dir()


def test_models_folder_has_to_be_beside_the_yaml(workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path in it counts from its own folder: elsewhere the line would lead nowhere."""
    message = error_of(capsys, workflow, "--extra-model-paths", workflow.with_name("extra_model_paths.yaml"))
    assert "There is no models/CogVideo beside" in message
    assert [path.name for path in workflow.parent.iterdir()] == ["bear.json"]


def test_needs_no_package(workflow: Path) -> None:
    """It runs before anything is installed: with the standard library alone, and without ComfyUI."""
    code = (
        "import sys\n"
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
        f"sys.path.insert(0, {str(paths.ROOT.parent)!r}); sys.argv = ['dev.py', 'migrate', {str(workflow)!r}]\n"
        "import runpy; runpy.run_path(" + repr(str(paths.ROOT / "dev.py")) + ", run_name='__main__')"
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COMFYUI_PATH")}
    out = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environ, cwd=workflow.parent
    )
    assert out.returncode == 0, out.stderr
    assert "Written:" in out.stdout
