"""Downloads against a hub that cuts connections, lies, refuses and vanishes."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads import fetch as downloads
from cogvideox.model_loaders.downloads import manifest as manifests
from cogvideox.model_loaders.downloads.background import Cancelled
from cogvideox.model_loaders.downloads.hub import RemoteFile
from cogvideox.model_loaders.downloads.part_file import PartFile
from cogvideox.system import complete_file
from cogvideox.tests.file_server import BIG, REPOSITORY, VAE, Fault, FileServer, running_hub

TOKEN = "hf_secretSECRETsecret"
NOT_NEEDED = {
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "assets/panda: a video?.mp4",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with running_hub(monkeypatch) as server:
        yield server


def fetch(folder: Path, **more: Any) -> int:
    return downloads.download(REPOSITORY, folder, pause_s=0.01, **more)


def check_complete(folder: Path, hub: FileServer) -> None:
    """Exactly the needed files lie there, byte for byte, and the loaders may take the folder."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - {manifests.MANIFEST, downloads.LOCK} == set(hub.files) - NOT_NEEDED
    for path in set(hub.files) - NOT_NEEDED:
        assert (folder / path).read_bytes() == hub.files[path], path
    manifests.require_complete(folder)


def revision_in(folder: Path) -> str:
    manifest = manifests.read_manifest(folder)
    assert manifest is not None
    return manifest.revision


def failure(folder: Path, **more: Any) -> str:
    """The message of the UserError; the folder is then known as unfinished."""
    with pytest.raises(UserError) as raised:
        fetch(folder, **more)
    return str(raised.value)


def test_a_checkpoint_is_downloaded_completely_and_once(tmp_path: Path, hub: FileServer) -> None:
    """Else a user waits for 20 GB again, or gets the .bin and fp16 doubles on top."""
    folder = tmp_path / "CogVideoX-2b"
    needed = sum(len(data) for path, data in hub.files.items() if path not in NOT_NEEDED)
    assert fetch(folder) == needed
    check_complete(folder, hub)
    before = len(hub.asked)
    hub.close()
    assert fetch(folder) == 0
    assert len(hub.asked) == before


def test_progress_counts_every_byte_once(tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that jumps back or ends at 80 % tells nothing."""
    monkeypatch.setattr(downloads, "_REPORT_S", 0.0)
    seen = []
    fetch(tmp_path / "x", on_progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == sum(len(d) for p, d in hub.files.items() if p not in NOT_NEEDED)
    assert any(p.file == BIG and p.rate > 0 for p in seen)


def test_files_that_are_right_already_stay(tmp_path: Path, hub: FileServer) -> None:
    """A user who has copied half of the repository by hand fetches only the rest."""
    folder = tmp_path / "x"
    for path, data in ((BIG, hub.files[BIG]), (VAE, b"x" * len(hub.files[VAE]))):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_bytes(data)
    fetch(folder)
    check_complete(folder, hub)
    assert not hub.requests(BIG)
    assert len(hub.requests(VAE)) == 1  # of the right size, but not the hub's


def test_no_half_file_is_left_of_a_finished_download(tmp_path: Path, hub: FileServer) -> None:
    """Gigabytes of a file that the repository has under another name by now, or that somebody has copied meanwhile."""
    folder = tmp_path / "x"
    gone, copied, other = "transformer/of_a_revision_before.safetensors", BIG, "transformer/mine.txt.backup.part"
    (folder / "transformer").mkdir(parents=True)
    for path in (manifests.part_path(folder / gone), manifests.part_path(folder / copied), folder / other):
        path.write_bytes(b"half")
    (folder / copied).write_bytes(hub.files[copied])
    left = folder / f".{manifests.MANIFEST}.{complete_file._MACHINE}-00000000.part"
    for path in (left, left.with_name(f"{left.name}.lock")):
        path.touch()
    fetch(folder)
    (folder / other).unlink()  # the pack writes no such name
    check_complete(folder, hub)


def test_hashes_are_computed_once(tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing 20 GB again at every start takes minutes."""
    folder = tmp_path / "x"
    fetch(folder)
    (folder / VAE).unlink()
    monkeypatch.setattr(downloads._Download, "read_disk", _only_parts(downloads._Download.read_disk))
    assert fetch(folder) == len(hub.files[VAE])


def _only_parts(read_disk: Callable) -> Callable:
    def checked(self: downloads._Download, path: Path, file: RemoteFile) -> Iterator[bytes]:
        assert path.name.endswith(".part"), f"{path} is hashed again"
        return read_disk(self, path, file)

    return checked


def test_cut_connections_are_continued(tmp_path: Path, hub: FileServer) -> None:
    """One dropped packet must not cost the gigabytes before it."""
    hub.fail(BIG, Fault(cut_after=200_000), Fault(cut_after=0), Fault(cut_after=100_000))
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
    ranges = [asked.range for asked in hub.requests(BIG)]
    assert ranges == [None, "bytes=200000-", "bytes=200000-", "bytes=300000-"]
    assert all(asked.headers.get("if-range") for asked in hub.requests(BIG)[1:])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(tmp_path: Path, hub: FileServer, status: int) -> None:
    """A hub that is busy for a second must not end a night's download."""
    headers = {"Retry-After": "0"} if status == 429 else {}
    hub.fail("", Fault(status, headers))
    hub.fail(BIG, Fault(cut_after=5000), Fault(status, headers), Fault(status, headers))
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
    assert hub.requests(BIG)[-1].range == "bytes=5000-"


def test_a_server_that_stays_broken_is_left_with_what_there_is(tmp_path: Path, hub: FileServer) -> None:
    """Retrying for ever looks like work; the half file stays for the next time."""
    hub.fail(BIG, Fault(cut_after=5000), *[Fault(500)] * 20)
    message = failure(tmp_path / "x")
    assert "answers with status 500" in message and "kept" in message
    assert (tmp_path / "x" / f"{BIG}.part").stat().st_size == 5000
    hub.faults.clear()
    fetched = fetch(tmp_path / "x")
    assert fetched < len(hub.files[BIG]) + 200_000
    check_complete(tmp_path / "x", hub)


def test_416_starts_the_file_again(tmp_path: Path, hub: FileServer) -> None:
    """A part that the server cannot continue must not stay in the way for ever."""
    hub.fail(BIG, Fault(cut_after=7000), Fault(416))
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
    assert [asked.range for asked in hub.requests(BIG)] == [None, "bytes=7000-", None]
    hub.fail(VAE, *[Fault(cut_after=7000), Fault(416)] * 9)
    assert "from byte" in failure(tmp_path / "y")


def test_a_server_without_ranges_starts_the_file_again(tmp_path: Path, hub: FileServer) -> None:
    """Appending a whole file to half of one gives weights that are noise."""
    hub.fail(BIG, Fault(cut_after=7000), Fault(ignore_range=True))
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
    assert len(hub.requests(BIG)) == 2


def test_another_part_of_the_file_than_asked_for_is_not_appended(tmp_path: Path, hub: FileServer) -> None:
    """A cache that answers with its own range would shift every weight behind it."""
    hub.fail(BIG, Fault(cut_after=7000), Fault(headers={"Content-Range": "bytes 5-9/10"}))
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
    assert [asked.range for asked in hub.requests(BIG)] == [None, "bytes=7000-", None]


def test_an_answer_without_a_length_is_not_taken_for_the_whole(tmp_path: Path, hub: FileServer) -> None:
    """Some proxies just close the connection: that is not the end of the file, and no reason to ask for ever."""
    hub.fail(BIG, Fault(unsized=True, cut_after=5000))
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
    hub.fail(BIG, Fault(unsized=True, cut_after=5000), always=True)
    assert "was cut" in failure(tmp_path / "y")


@pytest.mark.parametrize("claim", [-1000, 1000])
def test_a_wrong_content_length_does_no_harm(tmp_path: Path, hub: FileServer, claim: int) -> None:
    """A proxy that miscounts must give neither a short file nor a hang."""
    hub.fail(BIG, Fault(claim=claim))
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"!", lambda d: d + b"more", lambda d: b"<html>" + d[6:]])
@pytest.mark.parametrize("path", [BIG, "model_index.json"])
def test_wrong_bytes_are_downloaded_again_and_then_refused(
    tmp_path: Path, hub: FileServer, path: str, change: Callable[[bytes], bytes]
) -> None:
    """A damaged file in the models folder gives noise, or an error that nobody understands; small ones as well."""
    wrong = Fault(body=change(hub.files[path]))
    hub.fail(path, wrong)
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
    hub.fail(path, wrong, always=True)
    message = failure(tmp_path / "y")
    assert path in message and "wrong hash" in message
    assert not (tmp_path / "y" / path).exists() and not (tmp_path / "y" / f"{path}.part").exists()


def test_a_damaged_half_file_is_found(tmp_path: Path, hub: FileServer) -> None:
    """What lies on the disk of a half file is hashed too: a power cut can leave zeros in it."""
    hub.fail(BIG, Fault(cut_after=300_000), *[Fault(500)] * 5)
    failure(tmp_path / "x")
    part = tmp_path / "x" / f"{BIG}.part"
    part.write_bytes(bytes(1000) + part.read_bytes()[1000:])
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)


def test_a_file_that_changed_on_the_hub_is_not_mixed(tmp_path: Path, hub: FileServer) -> None:
    """Half of yesterday's and half of today's version: the entity tag tells, and the revision is pinned."""
    hub.fail(BIG, Fault(cut_after=300_000), *[Fault(500)] * 5)
    failure(tmp_path / "x")
    pinned = revision_in(tmp_path / "x")
    old, hub.revision = hub.revision, "f" * 40
    hub.files[BIG] = hub.files[BIG][::-1]
    fetch(tmp_path / "x")  # the old revision is gone by now
    check_complete(tmp_path / "x", hub)
    assert pinned == old and revision_in(tmp_path / "x") == hub.revision


def test_offline_says_what_to_put_where(tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network a user needs the address, the files and the folder, soon."""
    hub.fail(BIG, Fault(cut_after=300_000), *[Fault(500)] * 5)
    failure(tmp_path / "half")
    hub.close()
    began = time.monotonic()
    message = failure(tmp_path / "x")
    assert time.monotonic() - began < 2
    assert f"{hub.url}/{REPOSITORY}/tree/main" in message and str(tmp_path / "x") in message
    assert "model_index.json" in message and "text_encoder" in message and "offline" in message
    message = failure(tmp_path / "half")
    assert f"{BIG} (0.6 MB)" in message and "model_index.json" not in message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in failure(tmp_path / "x")


def test_a_half_finished_folder_is_not_loaded(tmp_path: Path, hub: FileServer) -> None:
    """Small files come first, so a folder looks whole long before its weights are."""
    folder = tmp_path / "CogVideoX-2b"
    hub.fail(BIG, Fault(403), always=True)
    failure(folder)
    for path in (folder, folder / "transformer", folder / "text_encoder" / "model.safetensors"):
        with pytest.raises(
            UserError, match="half-finished download of zai-org/CogVideoX-2b.*models fetch CogVideoX-2b"
        ):
            manifests.require_complete(path)
    hub.faults.clear()
    fetch(folder)
    manifests.require_complete(folder)
    (folder / BIG).unlink()
    hub.fail(BIG, Fault(403))
    failure(folder)
    with pytest.raises(UserError, match="1 of 13 files are missing"):
        manifests.require_complete(folder)
    (tmp_path / "by_hand").mkdir()
    manifests.require_complete(tmp_path / "by_hand")


def test_two_downloads_into_one_folder(tmp_path: Path, hub: FileServer) -> None:
    """Two ComfyUIs that write the same half file would give a file of both."""
    hub.fail(BIG, Fault(slow_s=0.01))
    first = threading.Thread(target=fetch, args=(tmp_path / "x",))
    first.start()
    while not hub.requests(BIG):
        time.sleep(0.01)
    assert "Another download" in failure(tmp_path / "x")
    first.join()
    check_complete(tmp_path / "x", hub)


def test_another_checkpoint_in_the_folder_is_not_mixed_in(tmp_path: Path, hub: FileServer) -> None:
    """Otherwise 2b's T5 would be next to 5b's transformer."""
    fetch(tmp_path / "x")
    with pytest.raises(UserError, match="holds a download of zai-org/CogVideoX-2b, not of zai-org/CogVideoX-5b"):
        downloads.download("zai-org/CogVideoX-5b", tmp_path / "x")


@pytest.mark.parametrize("fault", [Fault(stall=True), Fault(slow_s=0.02), Fault(cut_after=5000), Fault(503)])
def test_stop_is_heard_within_a_second(tmp_path: Path, hub: FileServer, fault: Fault) -> None:
    """ComfyUI's cancel button must work on a silent server, a slow one, and between two tries."""
    hub.fail(BIG, fault, always=True)
    asked: list[float] = []

    def stop() -> bool:
        if hub.requests(BIG) and time.monotonic() - began > 0.3:
            asked.append(time.monotonic())
        return bool(asked)

    began = time.monotonic()
    with pytest.raises(Cancelled):
        downloads.download(REPOSITORY, tmp_path / "x", should_stop=stop, pause_s=5.0)
    assert time.monotonic() - asked[0] < 1.0
    hub.faults.clear()
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)


def test_stop_is_heard_while_the_hub_is_silent(tmp_path: Path, hub: FileServer) -> None:
    """Also before the first file."""
    hub.fail("", Fault(stall=True))
    began = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(tmp_path / "x", should_stop=lambda: time.monotonic() - began > 0.2)
    assert time.monotonic() - began < 1.2


def test_a_killed_process_keeps_what_it_downloaded(tmp_path: Path, hub: FileServer) -> None:
    """After kill -9 only the missing bytes are fetched, and the lock is free."""
    folder = tmp_path / "CogVideoX-2b"
    hub.fail(BIG, Fault(slow_s=0.02))
    environ = {**os.environ, "HF_ENDPOINT": hub.url}
    command = [sys.executable, "dev.py", "models", "fetch", "CogVideoX-2b", "--to", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
    part = folder / f"{BIG}.part"
    try:
        while not (part.exists() and part.stat().st_size >= 200_000):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()
    with pytest.raises(UserError, match="half-finished"):
        manifests.require_complete(folder)
    size, before = part.stat().st_size, len(hub.asked)
    fetched = fetch(folder)
    check_complete(folder, hub)
    assert [asked.range for asked in hub.requests(BIG)] == [None, f"bytes={size}-"]
    resumed = hub.asked[before:]
    assert not any("/api/" in asked.path or asked.path.endswith(".json") for asked in resumed)
    assert fetched == sum(len(hub.files[a.path.split(f"{hub.revision}/")[1]]) for a in resumed) - size


def test_too_little_room_is_found_first(tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after nineteen of twenty gigabytes."""
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    assert "GB free" in failure(tmp_path / "x")
    assert not any("/resolve/" in asked.path for asked in hub.asked)


def test_a_disk_that_fills_up_is_one_sentence(tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the half file stays, for when there is room again."""

    def full(self: PartFile, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(PartFile, "write", full)
        assert "is full" in failure(tmp_path / "x")
    fetch(tmp_path / "x")
    check_complete(tmp_path / "x", hub)
