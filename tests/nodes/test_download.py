"""The download node as ComfyUI runs it, against a hub on this machine."""

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
from comfy_api.internal import first_real_override
from comfy_api.latest import io
from comfy_execution.validation import validate_node_input

from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads.fetch import Progress
from cogvideox.model_loaders.downloads.repositories import MODELSCOPE, REPOSITORIES, SOURCES
from cogvideox.nodes import download as module
from cogvideox.nodes.load import CogVideoXLoadPipeline
from cogvideox.tests.file_server import BIG, ON_MODELSCOPE, Fault, FileServer, running_hub

Node = module.CogVideoXDownload
NAME = "CogVideoX-2b"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/diffusers of a ComfyUI of its own."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path / "diffusers")], {"folder"}))
    return tmp_path / "diffusers"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with running_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node shows on itself."""
    lines: list[str] = []
    monkeypatch.setattr(module, "show_on_node", lambda text, node_id: lines.append(text))
    return lines


def test_the_node_fetches_and_names_the_folder(models: Path, hub: FileServer, shown: list[str]) -> None:
    """And says before it starts how much comes under which licence, and at the end that all is verified."""
    assert Node.execute(NAME).args == (NAME,)
    assert (models / NAME / BIG).read_bytes() == hub.files[BIG]
    assert "14 GB" in shown[0] and "Apache-2.0" in shown[0] and str(models / NAME) in shown[0]
    assert " MB of " in shown[1] and "MB/s" in "".join(shown)
    assert "verified" in shown[-1] and "Apache-2.0" in shown[-1]
    hub.close()
    assert Node.execute(NAME).args == (NAME,)
    assert "nothing to download" in shown[-1]


def test_it_shows_size_speed_and_time_left(
    models: Path, hub: FileServer, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for 20 GB wants to know whether for minutes or for the night."""
    monkeypatch.setattr(module, "_SHOW_S", 0.0)
    hub.fail(BIG, Fault(slow_s=0.01))
    Node.execute(NAME)
    during = [line for line in shown if line.endswith(BIG) and " left, " in line]
    assert during and all(" MB of 0.00 GB, " in line and " MB/s, " in line for line in during)
    display = module._Display("7")
    display(Progress(BIG, 10**9, 14 * 10**9, 20e6))
    assert shown[-1] == f"1000 MB of 14.00 GB, 20.0 MB/s, 11 min left, {BIG}"


def test_modelscope_is_a_source(
    models: Path, hub: FileServer, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Hugging Face cannot be reached, there was no button."""
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    assert Node.execute(NAME, MODELSCOPE).args == (NAME,)
    assert f"from {ON_MODELSCOPE} on ModelScope" in shown[0] and "verified" in shown[-1]
    assert all(ON_MODELSCOPE in asked.path for asked in hub.asked) and len(hub.asked) > 10
    assert not math.isnan(Node.fingerprint_inputs(NAME, MODELSCOPE))
    assert Node.fingerprint_inputs(NAME, MODELSCOPE) == Node.fingerprint_inputs(NAME)


@pytest.mark.parametrize("source", ["https://evil.example", "http://127.0.0.1:8188", "file:///etc", ""])
def test_a_workflow_chooses_no_address(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Only names of the table: else a stranger's workflow would make the server ask whom it likes."""
    monkeypatch.setattr(module, "download_checkpoint", lambda *_: pytest.fail("a hub was asked"))
    with pytest.raises(UserError, match="source is .*: use Hugging Face or ModelScope"):
        Node.execute(NAME, source)
    entry = Node.GET_SCHEMA().inputs[1]
    assert isinstance(entry, io.Combo.Input) and entry.options == list(SOURCES) and entry.optional


def test_cancel_ends_it_at_once_and_the_next_run_goes_on(models: Path, hub: FileServer, shown: list[str]) -> None:
    """Else the only way out of 20 GB is to kill the server, and then to begin again."""
    hub.fail(BIG, Fault(cut_after=50_000), Fault(stall=True))
    pressed: list[float] = []

    def press_cancel() -> None:
        while len(hub.requests(BIG)) < 2:
            time.sleep(0.01)
        pressed.append(time.monotonic())
        comfy.model_management.interrupt_current_processing()

    button = threading.Thread(target=press_cancel, daemon=True)
    button.start()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            Node.execute(NAME)
    finally:
        button.join()
        comfy.model_management.interrupt_current_processing(False)
    assert time.monotonic() - pressed[0] < 1.0
    assert (models / NAME / f"{BIG}.part").stat().st_size == 50_000
    Node.execute(NAME)
    assert hub.requests(BIG)[-1].range == "bytes=50000-"
    assert (models / NAME / BIG).read_bytes() == hub.files[BIG]


def test_only_a_complete_folder_is_taken_for_done(models: Path, hub: FileServer, shown: list[str]) -> None:
    """ComfyUI keeps results: a node that failed, or whose files were deleted, must run again."""
    assert math.isnan(Node.fingerprint_inputs(NAME))
    Node.execute(NAME)
    done = Node.fingerprint_inputs(NAME)
    assert done == Node.fingerprint_inputs(NAME)
    (models / NAME / BIG).unlink()
    assert math.isnan(Node.fingerprint_inputs(NAME))
    Node.execute(NAME)
    assert (models / NAME / BIG).is_file()


def test_the_folder_can_be_linked_to_the_loaders(models: Path) -> None:
    """ComfyUI refuses a STRING at a list; the download could then not come before the loader in one workflow."""
    info = Node.GET_NODE_INFO_V1()
    assert info["output_node"] and info["output"] == ["COMBO"]
    taken = CogVideoXLoadPipeline.GET_SCHEMA().inputs[0].get_io_type()
    assert validate_node_input(info["output"][0], taken) and not validate_node_input("STRING", taken)


def test_a_checkpoint_lies_where_it_was_begun(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several model folders a half file in the second must not be begun again in the first."""
    roots = [str(models), str(tmp_path / "second")]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", (roots, {"folder"}))
    assert module._folder(NAME) == models / NAME
    (tmp_path / "second" / NAME).mkdir(parents=True)
    assert module._folder(NAME) == tmp_path / "second" / NAME


def test_size_and_licence_of_each_are_told_beforehand() -> None:
    """Who accepts a licence and 21 GB must be able to read so first; the values in workflows are plain names."""
    entry = Node.GET_SCHEMA().inputs[0]
    assert isinstance(entry, io.Combo.Input) and entry.tooltip and entry.options
    for repository in REPOSITORIES:
        line = next(line for line in entry.tooltip.splitlines() if line.startswith(f"{repository.name}:"))
        assert f"{repository.gigabytes:.0f} GB" in line and repository.licence in line
        assert repository.name in entry.options
    assert "licence" in Node.GET_SCHEMA().description


def test_an_unknown_checkpoint_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited workflow must not make the server ask the hub for anything."""
    monkeypatch.setattr(module, "download_checkpoint", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="checkpoint is '../../evil': use CogVideoX-2b, "):
        Node.execute("../../evil")
    # when the prompt is queued, ComfyUI compares what validate_inputs does not name with the options
    assert first_real_override(Node, "validate_inputs") is None
