"""Fetch a checkpoint's folder from the model hub: resumed after a kill, verified, never half taken for whole.

No import of torch or ComfyUI, so that dev.py can do it alone. huggingface_hub does none of what matters here: it drops
the half file when a download ends early, and does not compare the hash of what it fetched (2.4.0, file_download.py).
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .hub import (
    Beginning,
    Hub,
    NotThereError,
    PassingError,
    RangeError,
    RemoteFile,
    Stopped,
    UserError,
    in_background,
)
from .manifest import (
    FOLDERS,
    Manifest,
    half_done,
    is_complete,
    part_path,
    part_size,
    read_manifest,
    select_files,
)

LOCK = ".cogvideox-download.lock"
_TRIES = 5  # in a row without progress
_PROGRESS = 1 << 20  # bytes that count as one
_RESERVE = 100 << 20  # bytes of disk left to others
_SYNC = 64 << 20  # bytes between two flushes, so that none takes long
_HASH_CHUNK = 4 << 20
_REPORT_S = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a download is. done and total: bytes of all files; rate: bytes a second, lately."""

    file: str
    done: int
    total: int
    rate: float
    checking: bool = False  # reading a file from the disk, not from the hub

    def describe(self) -> str:
        """One line for the user."""
        doing = "checking" if self.checking else f"{self.rate / 1e6:.1f} MB/s"
        return f"{self.done / 1e6:.0f} MB of {self.total / 1e9:.2f} GB, {doing}, {self.file}"


def download(
    repository: str,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    pause_s: float = 1.0,
) -> int:
    """Make `folder` the diffusers pipeline `repository` of the hub; returns the bytes that were fetched.

    What lies there with the right size and hash is kept, half files are continued, and a folder that is complete
    needs no network. pause_s: before the second try; it doubles from try to try.

    Raises UserError saying what to do, and Stopped when should_stop says so; both leave what was fetched.
    """
    if is_complete(folder) and read_manifest(folder).repository == repository:
        return 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            return _Download(repository, folder, on_progress, should_stop, pause_s).run()
    except OSError as error:
        raise UserError(_describe_disk(folder, error)) from error


class _Download:
    """One run: the folder, the hub, and how far it is."""

    def __init__(self, repository: str, folder: Path, on_progress: Callable, should_stop: Callable, pause_s: float):
        self.repository, self.folder = repository, folder
        self.on_progress, self.should_stop, self.pause_s = on_progress, should_stop, pause_s
        self.hub = Hub()
        self.fetched, self.answered = 0, False
        self.recent: deque[tuple[float, int]] = deque(maxlen=25)  # (seconds, bytes fetched) of the last reports
        self.reported = 0.0

    def run(self) -> int:
        manifest, known = self.manifest()
        try:
            self.finish(manifest)
        except NotThereError:
            if not known:
                raise
            # the revision of an earlier day is gone: take today's, and keep what it shares with the old one
            self.finish(self.new_manifest(manifest))
        return self.fetched

    def manifest(self) -> tuple[Manifest, bool]:
        """The manifest in the folder, or a new one; and whether it was there. Raises UserError."""
        old = read_manifest(self.folder)
        if old is None:
            return self.new_manifest(None), False
        if old.repository != self.repository:
            raise UserError(
                f"{self.folder} holds a download of {old.repository}, not of {self.repository}. "
                "Choose another folder, or delete that one."
            )
        return old, True

    def new_manifest(self, old: Manifest | None) -> Manifest:
        """What the hub holds now. Raises UserError."""
        revision = self.ask(lambda: self.hub.revision(self.repository))
        files = select_files(self.ask(lambda: self.hub.files(self.repository, revision)))
        manifest = Manifest(self.repository, revision, files)
        if old is not None:
            same = {file.path for file in files if file in old.files}
            manifest.verified = {path: seen for path, seen in old.verified.items() if path in same}
        manifest.save(self.folder)
        return manifest

    def ask(self, question: Callable[[], object]) -> object:
        """The hub's answer to a short question, asked again while it is busy. Raises UserError."""
        failures = 0
        while True:
            try:
                answer = next(in_background(lambda: iter([question()]), self.should_stop))
                self.answered = True
                return answer
            except PassingError as error:
                failures += 1
                self.wait(error, failures, None)

    def finish(self, manifest: Manifest) -> None:
        """Bring every file of the manifest to the folder. Raises UserError, Stopped."""
        manifest.complete = False
        manifest.save(self.folder)
        self.total = sum(file.size for file in manifest.files)
        self.done = 0
        missing = []
        for file in manifest.files:
            if self.is_right(manifest, file):
                self.done += file.size
            else:
                missing.append(file)
        self.check_room(missing)
        for file in missing:
            self.fetch(manifest, file)
        manifest.complete = True
        manifest.save(self.folder)
        self.report("", force=True)

    def is_right(self, manifest: Manifest, file: RemoteFile) -> bool:
        """Whether a file is there with the right hash, which is computed once."""
        if manifest.is_verified(self.folder, file):
            return True
        place = self.folder / file.path
        if not place.is_file() or place.stat().st_size != file.size:
            return False
        digest = new_digest(file)
        for chunk in self.read_disk(place, file):
            digest.update(chunk)
        if digest.hexdigest() != file.digest.partition(":")[2]:
            return False
        manifest.verify(self.folder, file)
        manifest.save(self.folder)
        return True

    def read_disk(self, place: Path, file: RemoteFile) -> Iterator[bytes]:
        """The bytes of a file on disk, with progress. Raises Stopped."""
        read = 0
        with place.open("rb") as source:
            while chunk := source.read(_HASH_CHUNK):
                if self.should_stop():
                    raise Stopped
                yield chunk
                read += len(chunk)
                self.report(file.path, read, checking=True)

    def check_room(self, missing: list[RemoteFile]) -> None:
        """Raises UserError where the disk has too little room for what is missing."""
        needed = sum(file.size for file in missing) - half_done(self.folder, missing)
        free = shutil.disk_usage(self.folder).free
        if missing and free < needed + _RESERVE:
            raise UserError(
                f"The disk of {self.folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are still to be "
                f"fetched: free some space, or choose a folder on another disk."
            )

    def fetch(self, manifest: Manifest, file: RemoteFile) -> None:
        """Bring one file, whose bytes are compared with the hub's hash before it gets its name."""
        place = self.folder / file.path
        place.parent.mkdir(exist_ok=True)
        with _Part(place, file) as part:
            for chunk in self.read_disk(part.path, file):
                part.take(chunk)
            for _ in range(2):
                self.complete_part(manifest, part)
                if part.is_right():
                    break
                part.restart()
            else:
                part.discard()
                raise UserError(
                    f"{file.path} arrived with wrong bytes from {self.hub.endpoint} twice, and is deleted. Check the "
                    "proxy and HF_ENDPOINT, or fetch that file with a browser."
                )
            part.become(place)
        self.done += file.size
        manifest.verify(self.folder, file)
        manifest.save(self.folder)

    def complete_part(self, manifest: Manifest, part: "_Part") -> None:
        """Let a half file grow to its size, in as many requests as it takes. Raises UserError, Stopped."""
        failures = refusals = 0
        while part.size < part.file.size:
            before = part.size
            try:
                self.append(manifest, part)
            except RangeError:
                refusals += 1
                if refusals > 2 or not before:
                    raise UserError(
                        f"{self.hub.endpoint} does not send {part.file.path} from byte {before} on. Check HF_ENDPOINT."
                    ) from None
                part.restart()
            except PassingError as error:
                failures = 1 if part.size - before >= _PROGRESS else failures + 1
                self.wait(error, failures, manifest)

    def append(self, manifest: Manifest, part: "_Part") -> None:
        """Add to a half file what one request brings. Raises UserError, PassingError, RangeError, Stopped."""
        file, etag = part.file, manifest.etags.get(part.file.path)
        offset = part.size

        def read() -> Iterator[Beginning | bytes]:
            return self.hub.read(self.repository, manifest.revision, file, offset, etag)

        self.report(file.path, offset, force=True)
        for item in in_background(read, self.should_stop):
            if isinstance(item, Beginning):
                self.answered = True
                if item.offset != part.size:
                    part.restart()
                if item.etag != etag:
                    manifest.etags[file.path] = item.etag
                    manifest.save(self.folder)
                continue
            part.write(item)
            self.fetched += len(item)
            self.report(file.path, part.size)
            if part.size > file.size:
                return  # and the hash will not be right
        if part.size < file.size:
            raise PassingError("the connection was cut", answered=True)

    def wait(self, error: PassingError, failures: int, manifest: Manifest | None) -> None:
        """Be patient before the next try. Raises UserError after the last one, Stopped."""
        self.answered |= error.answered
        if failures > (_TRIES if self.answered else 1):
            raise UserError(self.describe_failure(error, manifest)) from None
        pause = error.wait_s if error.wait_s is not None else self.pause_s * 2 ** (failures - 1)
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            if self.should_stop():
                raise Stopped
            time.sleep(min(left, 0.1))

    def describe_failure(self, error: PassingError, manifest: Manifest | None) -> str:
        """What to do now: later again, or by hand on another machine."""
        if error.answered:
            return f"{self.repository} could not be fetched: {error}. What is there is kept: try again later."
        missing = [] if manifest is None else manifest.missing(self.folder)
        what = ", ".join(f"{file.path} ({file.size / 1e6:.1f} MB)" for file in missing)
        what = what or f"model_index.json and the folders {', '.join(FOLDERS)}, with .safetensors weights"
        return (
            f"{error}: is this machine offline? Fetch the following on another one from "
            f"{self.hub.page(self.repository)} and put it into {self.folder}: {what}. Or try again with a network."
        )

    def report(self, file: str, of_file: int = 0, checking: bool = False, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.reported < _REPORT_S:
            return
        self.reported = now
        self.recent.append((now, self.fetched))
        seconds, count = now - self.recent[0][0], self.fetched - self.recent[0][1]
        rate = count / seconds if seconds else 0.0
        self.on_progress(Progress(file, min(self.done + of_file, self.total), self.total, rate, checking))


class _Part:
    """A file that is not whole yet, and the hash of what is there; a context that closes it."""

    def __init__(self, place: Path, file: RemoteFile):
        self.path, self.file = part_path(place), file
        if part_size(place) > file.size:
            self.path.unlink()
        self.out = self.path.open("ab")
        self.digest, self.size, self.synced = new_digest(file), 0, 0

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        self.out.close()

    def take(self, chunk: bytes) -> None:
        """Count bytes that are on the disk already."""
        self.digest.update(chunk)
        self.size += len(chunk)
        self.synced = self.size

    def write(self, chunk: bytes) -> None:
        self.out.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)
        if self.size - self.synced >= _SYNC:
            self.sync()

    def sync(self) -> None:
        self.out.flush()
        os.fsync(self.out.fileno())
        self.synced = self.size

    def restart(self) -> None:
        """Forget what is there."""
        self.out.truncate(0)
        self.digest, self.size, self.synced = new_digest(self.file), 0, 0

    def discard(self) -> None:
        self.out.close()
        self.path.unlink()

    def is_right(self) -> bool:
        return self.size == self.file.size and self.digest.hexdigest() == self.file.digest.partition(":")[2]

    def become(self, place: Path) -> None:
        """Give the file its name; after a power cut it is whole or not there."""
        self.sync()
        self.out.close()
        os.replace(self.path, place)


def new_digest(file: RemoteFile) -> object:
    """The hash that the hub gives for this file, of nothing yet."""
    if file.digest.startswith("sha256:"):
        return hashlib.sha256()
    # what git names a blob: the hash of its length and its bytes
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(str(folder / LOCK))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"Another download into {folder} is running, in this ComfyUI or in another process. Wait for it, or end it."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _describe_disk(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"The disk of {folder} is full. Free some space and start the download again; what is there is kept."
    return f"{error.filename or folder} cannot be written or read ({error.strerror or error}). Check its permissions."
