"""Downloads from ModelScope, and from one hub after the other."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads import fetch as downloads
from cogvideox.model_loaders.downloads import manifest as manifests
from cogvideox.model_loaders.downloads.background import Cancelled
from cogvideox.model_loaders.downloads.repositories import (
    HUGGING_FACE,
    MODELSCOPE,
    REPOSITORIES,
    SOURCES,
    find_repository,
    find_source,
)
from cogvideox.tests.file_server import BIG, ON_MODELSCOPE, REVISION, VAE, Fault, FileServer, running_hub

ENTRY = find_repository("CogVideoX-2b")
NEEDED = 13  # files of the small repository that the pack reads, with the licence and the README


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with running_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def modelscope(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    server = FileServer(hub.files)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads._Download, "wait_before_retry", _without_pause)


_wait = downloads._Download.wait_before_retry


def _without_pause(run: downloads._Download, error: downloads.TransientError, *rest: object) -> None:
    run.pause_s = 0.01
    _wait(run, error, *rest)  # type: ignore[arg-type]


def fetch(folder: Path, source: str = MODELSCOPE, **more: object) -> int:
    return downloads.download_checkpoint(ENTRY, folder, source=source, **more)  # type: ignore[arg-type]


def sizes(hub: FileServer, folder: Path) -> int:
    """How many of the repository's files are in the folder, byte for byte."""
    manifests.require_complete(folder)
    found = [path for path, data in hub.files.items() if (folder / path).is_file()]
    assert all((folder / path).read_bytes() == hub.files[path] for path in found)
    return len(found)


def test_a_checkpoint_comes_from_modelscope(tmp_path: Path, hub: FileServer, modelscope: FileServer) -> None:
    """Where Hugging Face cannot be reached, there was no way but by hand."""
    hub.close()
    assert fetch(tmp_path / "x") > 0 and sizes(modelscope, tmp_path / "x") == NEEDED
    assert {asked.path.partition("?")[0] for asked in modelscope.asked if asked.path.startswith("/api/")} == {
        f"/api/v1/models/{ON_MODELSCOPE}/repo/files"
    }
    (asked,) = modelscope.requests(BIG)
    assert asked.path == f"/models/{ON_MODELSCOPE}/resolve/{REVISION}/{BIG}"
    assert fetch(tmp_path / "x") == 0 and not hub.asked


def test_a_cut_download_is_continued(tmp_path: Path, modelscope: FileServer) -> None:
    """One dropped packet must not cost the gigabytes before it, on whichever hub."""
    modelscope.fail(BIG, Fault(cut_after=200_000), Fault(cut_after=0), Fault(ignore_range=True, cut_after=100_000))
    fetch(tmp_path / "x")
    assert sizes(modelscope, tmp_path / "x") == NEEDED
    assert [asked.range for asked in modelscope.requests(BIG)] == [
        None,
        "bytes=200000-",
        "bytes=200000-",
        "bytes=100000-",
    ]


def test_cancel_keeps_what_came(tmp_path: Path, modelscope: FileServer) -> None:
    modelscope.fail(BIG, Fault(cut_after=50_000), Fault(stall=True))
    with pytest.raises(Cancelled):
        fetch(tmp_path / "x", should_stop=lambda: len(modelscope.requests(BIG)) > 1)
    assert (tmp_path / "x" / f"{BIG}.part").stat().st_size == 50_000
    with pytest.raises(UserError, match="half-finished"):
        manifests.require_complete(tmp_path / "x")
    fetch(tmp_path / "x")
    assert modelscope.requests(BIG)[-1].range == "bytes=50000-" and sizes(modelscope, tmp_path / "x") == NEEDED


def test_wrong_bytes_are_refused(tmp_path: Path, modelscope: FileServer) -> None:
    """The hash is ModelScope's own: another file of the same length must not become the model."""
    modelscope.fail(VAE, Fault(body=bytes(len(modelscope.files[VAE]))), always=True)
    with pytest.raises(UserError, match=f"{VAE} was downloaded twice.*MODELSCOPE_ENDPOINT"):
        fetch(tmp_path / "x")
    assert not (tmp_path / "x" / VAE).exists()


@pytest.mark.parametrize("first, second", [SOURCES, SOURCES[::-1]])
def test_what_one_hub_has_begun_the_other_goes_on_with(
    tmp_path: Path, hub: FileServer, modelscope: FileServer, first: str, second: str
) -> None:
    """Who changes the source because the first one is slow keeps its gigabytes; small files have other hashes there."""
    servers = {HUGGING_FACE: hub, MODELSCOPE: modelscope}
    servers[first].fail(VAE, Fault(403), always=True)
    servers[first].fail(BIG, Fault(cut_after=300_000), Fault(403))
    with pytest.raises(UserError):
        fetch(tmp_path / "x", first)
    fetch(tmp_path / "x", second)
    assert sizes(hub, tmp_path / "x") == NEEDED
    assert [asked.range for asked in servers[second].requests(BIG)] == ["bytes=300000-"]
    assert not servers[second].requests("transformer/config.json")
    before = len(hub.asked) + len(modelscope.asked)
    assert fetch(tmp_path / "x", first) == fetch(tmp_path / "x", second) == 0
    assert len(hub.asked) + len(modelscope.asked) == before


def test_files_that_differ_between_the_hubs_are_downloaded_again(
    tmp_path: Path, hub: FileServer, modelscope: FileServer
) -> None:
    """One hub may have an older VAE: half of one and half of the other would be neither."""
    modelscope.files[VAE] = b"another" + modelscope.files[VAE][7:]
    hub.fail(VAE, Fault(cut_after=20_000), Fault(403))
    with pytest.raises(UserError):
        fetch(tmp_path / "x", HUGGING_FACE)
    fetch(tmp_path / "x", MODELSCOPE)
    assert (tmp_path / "x" / VAE).read_bytes() == modelscope.files[VAE]


def test_no_token_goes_to_modelscope(tmp_path: Path, modelscope: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN is the key to another company's account."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretSECRETsecret")
    fetch(tmp_path / "x")
    assert all("authorization" not in asked.headers for asked in modelscope.asked)


BAD = {
    "no repository": (None, "has no repository ZhipuAI/CogVideoX-2b. Check MODELSCOPE_ENDPOINT"),
    "no list": ("x", "does not answer as ModelScope does"),
    "no hash": (
        [{"Path": "model_index.json", "Size": 1, "Sha256": ""}],
        "names no size and hash of 'model_index.json'",
    ),
    "a path that leads out": ([{"Path": "../evil.json", "Size": 1, "Sha256": "0" * 64}], "leads out of the folder"),
}


@pytest.mark.parametrize("what", BAD)
def test_answers_of_another_form_are_refused(tmp_path: Path, modelscope: FileServer, what: str) -> None:
    files, words = BAD[what]
    answer = {"Code": 200, "Success": files is not None, "Data": {"Files": files}}
    modelscope.fail("", Fault(body=json.dumps(answer).encode()), always=True)
    with pytest.raises(UserError, match=words):
        fetch(tmp_path / "x")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] in ([], [downloads.LOCK])


def test_the_list_comes_from_modelscope_alone(tmp_path: Path, hub: FileServer, modelscope: FileServer) -> None:
    """Another host's list would have its own hashes."""
    modelscope.fail("", Fault(redirect=hub.url))
    with pytest.raises(UserError, match="is redirected to 127.0.0.1, which is another host.*MODELSCOPE_ENDPOINT"):
        fetch(tmp_path / "x")
    assert not hub.asked


@pytest.mark.parametrize("key", ["revision", "file"])
def test_a_manifest_that_was_changed_names_no_other_address(tmp_path: Path, modelscope: FileServer, key: str) -> None:
    """It lies where anybody's zip may have been unpacked, and its revisions go into addresses."""
    fetch(tmp_path / "x")
    value = json.loads((tmp_path / "x" / manifests.MANIFEST).read_text())
    (value if key == "revision" else value["files"][0])["revision"] = "../../../evil"
    (tmp_path / "x" / manifests.MANIFEST).write_text(json.dumps(value))
    assert manifests.read_manifest(tmp_path / "x") is None


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path, hub: FileServer) -> None:
    """Downloads that were finished before files had revisions of their own need no network."""
    fetch(tmp_path / "x", HUGGING_FACE)
    value = json.loads((tmp_path / "x" / manifests.MANIFEST).read_text())
    for entry in value["files"]:
        del entry["revision"]
    (tmp_path / "x" / manifests.MANIFEST).write_text(json.dumps(value))
    assert manifests.is_complete(tmp_path / "x")


@pytest.mark.parametrize("source", ["https://evil.example", "file:///etc", "", "modelscope.cn"])
def test_only_a_hub_of_the_table_is_a_source(source: str) -> None:
    """A stranger's workflow must not make the server fetch from an address of its choice."""
    with pytest.raises(UserError, match="Choose Hugging Face or ModelScope"):
        find_source(source)
    assert find_source("modelscope") == MODELSCOPE


def test_every_checkpoint_is_on_both_hubs() -> None:
    for entry in REPOSITORIES:
        assert [entry.on(source).split("/")[1] for source in SOURCES] == [entry.name] * 2


@pytest.mark.parametrize(
    "seconds, words",
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (5000, "83 min"), (5400, "1 h 30 min"), (7500, "2 h 05 min")],
)
def test_the_time_that_is_left_is_told_as_people_tell_it(seconds: float, words: str) -> None:
    assert downloads.describe_time(seconds) == words


def test_progress_tells_size_speed_and_time_left() -> None:
    """'7 GB of 21 GB' alone does not tell whether to wait or to go to bed."""
    progress = downloads.Progress(BIG, 7_000_000_000, 21_500_000_000, 25e6)
    assert progress.describe() == f"7000 MB of 21.50 GB, 25.0 MB/s, 10 min left, {BIG}"
    still = downloads.Progress(BIG, 7_000_000_000, 21_500_000_000, 0.0)
    assert still.describe() == f"7000 MB of 21.50 GB, 0.0 MB/s, {BIG}"
    checking = downloads.Progress(BIG, 7_000_000_000, 21_500_000_000, 25e6, checking=True)
    assert checking.describe() == f"7000 MB of 21.50 GB, checking, {BIG}"
