"""Download a checkpoint's folder from the model hub: resumable, verified, never mistaken for complete too early.

No import of torch or ComfyUI, so that dev.py can run it alone. huggingface_hub was not used: it deletes the partial
file when a download ends early, and does not compare the hash of what it downloaded (2.4.0, file_download.py).
"""

import errno
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from ...errors import UserError
from ...system.complete_file import only_process, remove_unfinished, writing_advice
from .background import Cancelled, in_background
from .hub import Hub, NotFoundError, RangeError, RemoteFile, ResponseStart, TransientError
from .manifest import FOLDERS, Manifest, is_complete, partial_bytes, read_manifest, remove_parts, select_files
from .modelscope import ModelScope
from .part_file import PartFile, equals_digest, new_digest
from .repositories import HUGGING_FACE, MODELSCOPE, SOURCES, Repository

T = TypeVar("T")
LOCK = ".cogvideox-download.lock"
_MAX_FAILURES = 5  # in a row without progress
_PROGRESS_BYTES = 1 << 20  # bytes that a request must bring to count as progress
_RESERVE_BYTES = 100 << 20  # bytes of the disk that are left free
_HASH_CHUNK_BYTES = 4 << 20
_REPORT_S = 0.2


class Progress(NamedTuple):
    """How far a download is. done and total: bytes of all files. rate: bytes per second over the last reports.

    checking: `file` is being hashed on the disk, not downloaded.
    """

    file: str
    done: int
    total: int
    rate: float
    checking: bool = False

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at this rate; None while nothing comes, or files on the disk are read."""
        return (self.total - self.done) / self.rate if self.rate > 0 and not self.checking else None

    def describe(self) -> str:
        """One line for the user."""
        activity = "checking" if self.checking else f"{self.rate / 1e6:.1f} MB/s"
        done, total = f"{self.done / 1e6:.0f}", f"{self.total / 1e9:.2f}"
        if self.left_s is None:
            return f"{done} MB of {total} GB, {activity}, {self.file}"
        return f"{done} MB of {total} GB, {activity}, {describe_time(self.left_s)} left, {self.file}"


def describe_time(seconds: float) -> str:
    """A time to wait, as exact as one needs to know it."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def new_hub(source: str = HUGGING_FACE) -> Hub:
    """The hub of this name, one of repositories.SOURCES. Raises UserError where the environment names none."""
    return ModelScope() if source == MODELSCOPE else Hub()


def download_checkpoint(
    entry: Repository,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    source: str = HUGGING_FACE,
) -> int:
    """Make `folder` the checkpoint `entry`, from a hub of SOURCES; what was begun from another one goes on.

    Returns and raises as `download` does.
    """
    names = {entry.on(known) for known in SOURCES}
    return download(entry.on(source), folder, on_progress, should_stop, source=source, same=names)


def download(
    repository: str,
    folder: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    pause_s: float = 1.0,
    source: str = HUGGING_FACE,
    same: Collection[str] = (),
) -> int:
    """Make `folder` the diffusers pipeline `repository` of the hub; returns the number of bytes downloaded.

    Files with the right size and hash are kept, partial files are continued, and a complete folder needs no network.
    pause_s: before the second try of a request; it doubles from try to try. source: one of SOURCES. same: names of the
    same checkpoint on other hubs.

    Raises UserError saying what to do, and Cancelled when should_stop() is true; both keep what was downloaded.
    """
    # Before the lock and without the network, so that a workflow with a download node also runs offline.
    manifest = read_manifest(folder)
    if manifest is not None and manifest.repository in (repository, *same) and is_complete(folder):
        return 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        busy = (
            f"Another download into {folder} is running, in this ComfyUI or in another process. Wait until it has "
            "finished, or cancel it."
        )
        with only_process(folder / LOCK, busy):
            remove_unfinished(folder)
            return _Download(repository, folder, on_progress, should_stop, pause_s, source, same).run()
    except OSError as error:
        raise UserError(_describe_disk_error(folder, error)) from error


class _Download:
    """One run of `download`: the folder, the hub, and the bytes so far."""

    def __init__(
        self,
        repository: str,
        folder: Path,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
        pause_s: float,
        source: str,
        same: Collection[str],
    ):
        self.repository, self.folder, self.same = repository, folder, same
        self.on_progress, self.should_stop, self.pause_s = on_progress, should_stop, pause_s
        self.hub = new_hub(source)
        self.total = self.done = 0  # bytes of all files, and of those that are complete
        self.downloaded = 0  # bytes received in this run
        self.answered = False  # whether any server has answered in this run
        self.recent: deque[tuple[float, int]] = deque(maxlen=25)  # (time, bytes received) of the last reports
        self.reported_at = 0.0

    def run(self) -> int:
        """Download everything; returns the number of bytes received. Raises UserError, Cancelled."""
        manifest, is_old = self.open_manifest()
        try:
            self.download_all(manifest)
        except NotFoundError:
            if not is_old:
                raise
            # The hub no longer has the revision of an earlier run. Take the current one and keep the files that both
            # have in common.
            self.download_all(self.new_manifest(manifest))
        return self.downloaded

    def open_manifest(self) -> tuple[Manifest, bool]:
        """The folder's manifest, or a new one, and whether it is from an earlier run. Raises UserError, Cancelled."""
        old = read_manifest(self.folder)
        if old is None:
            return self.new_manifest(None), False
        if old.repository != self.repository and old.repository in self.same:
            return self.new_manifest(old), False  # begun from another hub
        if old.repository != self.repository:
            raise UserError(
                f"{self.folder} holds a download of {old.repository}, not of {self.repository}. "
                "Choose another folder, or delete that one."
            )
        return old, True

    def new_manifest(self, old: Manifest | None) -> Manifest:
        """A manifest of what the hub holds now, saved in the folder. Raises UserError, Cancelled."""
        revision = self.query(lambda: self.hub.revision(self.repository))
        files = select_files(self.query(lambda: self.hub.files(self.repository, revision)))
        manifest = Manifest(self.repository, revision, files)
        if old is not None:
            unchanged = {file.path for file in files if file in old.files}
            manifest.verified = {path: stat for path, stat in old.verified.items() if path in unchanged}
        manifest.save(self.folder)
        return manifest

    def query(self, request: Callable[[], T]) -> T:
        """The result of a short request, which is repeated after a TransientError. Raises UserError, Cancelled."""
        failures = 0
        while True:
            try:
                # A generator of one value, so that a cancel is noticed while the server is silent.
                answer = next(in_background(lambda: iter([request()]), self.should_stop))
                self.answered = True
                return answer
            except TransientError as error:
                failures += 1
                self.wait_before_retry(error, failures, None)

    def download_all(self, manifest: Manifest) -> None:
        """Bring every file of the manifest into the folder. Raises UserError, Cancelled."""
        # On the disk before anything else changes: a process that is killed leaves a folder that the loaders refuse.
        manifest.complete = False
        manifest.save(self.folder)
        self.total = sum(file.size for file in manifest.files)
        self.done = 0
        missing = []
        for file in manifest.files:
            if self.matches_digest(manifest, file):
                self.done += file.size
            else:
                missing.append(file)
        self.require_disk_space(missing)
        for file in missing:
            self.download_file(manifest, file)
        manifest.complete = True
        manifest.save(self.folder)
        remove_parts(self.folder)
        self.report("", force=True)

    def matches_digest(self, manifest: Manifest, file: RemoteFile) -> bool:
        """Whether the folder holds a file with the right hash.

        The manifest remembers the result, because hashing 20 GB takes minutes. A file that somebody has copied into the
        folder counts as well.
        """
        if manifest.is_verified(self.folder, file):
            return True
        path = self.folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        digest = new_digest(file)
        for chunk in self.read_disk(path, file):
            digest.update(chunk)
        if not equals_digest(digest, file):
            return False
        manifest.verify(self.folder, file)
        manifest.save(self.folder)
        return True

    def read_disk(self, path: Path, file: RemoteFile) -> Iterator[bytes]:
        """The bytes of a file on the disk, with progress. Raises Cancelled."""
        read = 0
        with path.open("rb") as source:
            while chunk := source.read(_HASH_CHUNK_BYTES):
                if self.should_stop():
                    raise Cancelled
                yield chunk
                read += len(chunk)
                self.report(file.path, read, checking=True)

    def require_disk_space(self, missing: list[RemoteFile]) -> None:
        """Raises UserError where the disk has too little room for the files that are missing."""
        needed = sum(file.size for file in missing) - partial_bytes(self.folder, missing)
        free = shutil.disk_usage(self.folder).free
        if missing and free < needed + _RESERVE_BYTES:
            raise UserError(
                f"The disk of {self.folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are still to be "
                "downloaded. Free some space, or choose a folder on another disk."
            )

    def download_file(self, manifest: Manifest, file: RemoteFile) -> None:
        """Download one file and compare it with the hub's hash before it gets its name. Raises UserError, Cancelled."""
        target = self.folder / file.path
        target.parent.mkdir(exist_ok=True)
        with PartFile(target, file) as part:
            # The bytes of an earlier run are hashed too, not trusted: a power cut can leave zeros among them.
            for chunk in self.read_disk(part.path, file):
                part.add_existing(chunk)
            # A second try from byte 0, since the wrong bytes may be those of the earlier run.
            for _ in range(2):
                self.complete_part(manifest, part)
                if part.matches_digest():
                    break
                part.restart()
            else:
                part.discard()
                raise UserError(
                    f"{file.path} was downloaded twice from {self.hub.endpoint}, both times with contents other than "
                    f"the hub announces (wrong hash), and was deleted. Check the proxy and {self.hub.variable}, or "
                    "download that file with a browser."
                )
            part.finalize()
        self.done += file.size
        manifest.verify(self.folder, file)
        manifest.save(self.folder)

    def complete_part(self, manifest: Manifest, part: PartFile) -> None:
        """Let a partial file grow to its size, in as many requests as it takes. Raises UserError, Cancelled."""
        failures = refusals = 0
        while part.size < part.file.size:
            before = part.size
            try:
                self.append(manifest, part)
            except RangeError:
                # Start again from byte 0. A server that refuses that as well is not asked a third time.
                refusals += 1
                if refusals > 2 or not before:
                    raise UserError(
                        f"{self.hub.endpoint} does not send {part.file.path} from byte {before} on. Check "
                        f"{self.hub.variable}."
                    ) from None
                part.restart()
            except TransientError as error:
                # Failures count in a row: a connection that is cut once every gigabyte still finishes the download.
                failures = 1 if part.size - before >= _PROGRESS_BYTES else failures + 1
                self.wait_before_retry(error, failures, manifest)

    def append(self, manifest: Manifest, part: PartFile) -> None:
        """Append the bytes of one request. Raises UserError, TransientError, RangeError, Cancelled."""
        file, etag = part.file, manifest.etags.get(part.file.path)
        offset = part.size

        def read() -> Iterator[ResponseStart | bytes]:
            return self.hub.read(self.repository, manifest.revision, file, offset, etag)

        self.report(file.path, offset, force=True)
        for item in in_background(read, self.should_stop):
            if isinstance(item, ResponseStart):
                self.answered = True
                # The server sends the file from its beginning, because it has changed or ranges are not supported.
                if item.offset != part.size:
                    part.restart()
                # Saved before the first byte is written, so that a part on the disk never has the tag of other bytes.
                if item.etag != etag:
                    manifest.set_etag(file, item.etag)
                    manifest.save(self.folder)
                continue
            part.write(item)
            self.downloaded += len(item)
            self.report(file.path, part.size)
            if part.size > file.size:
                return  # too long, so that its hash cannot match
        if part.size < file.size:
            raise TransientError("the connection was cut", answered=True)

    def wait_before_retry(self, error: TransientError, failures: int, manifest: Manifest | None) -> None:
        """Sleep until the next try. Raises UserError after the last one, Cancelled."""
        self.answered |= error.answered
        # Where no server has answered at all, this machine is offline: a user need not wait for five tries.
        if failures > (_MAX_FAILURES if self.answered else 1):
            raise UserError(self.describe_failure(error, manifest)) from None
        pause = error.wait_s if error.wait_s is not None else self.pause_s * 2 ** (failures - 1)
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            if self.should_stop():
                raise Cancelled
            time.sleep(min(left, 0.1))

    def describe_failure(self, error: TransientError, manifest: Manifest | None) -> str:
        """What to do now: try again later, or download the files by hand on another machine."""
        if error.answered:
            return (
                f"The download of {self.repository} failed: {error}. What was downloaded is kept. Try again later; the "
                "download continues there."
            )
        missing = [] if manifest is None else manifest.missing(self.folder)
        names = ", ".join(f"{file.path} ({file.size / 1e6:.1f} MB)" for file in missing)
        names = names or f"model_index.json and the folders {', '.join(FOLDERS)}, with .safetensors weights"
        # A toast shows the first line alone.
        lines = (
            f"{error}. This machine may be offline. Try again with a network, or download the files on another "
            "machine.",
            f"They are at {self.hub.page(self.repository)}, and belong into {self.folder}: {names}.",
        )
        return "\n".join(lines)

    def report(self, file: str, of_file: int = 0, checking: bool = False, force: bool = False) -> None:
        """Call on_progress, at most every _REPORT_S seconds unless forced. of_file: bytes of the current file."""
        now = time.monotonic()
        if not force and now - self.reported_at < _REPORT_S:
            return
        self.reported_at = now
        # The rate is an average over the last 25 reports, about 5 seconds.
        self.recent.append((now, self.downloaded))
        seconds, count = now - self.recent[0][0], self.downloaded - self.recent[0][1]
        rate = count / seconds if seconds else 0.0
        self.on_progress(Progress(file, min(self.done + of_file, self.total), self.total, rate, checking))


def _describe_disk_error(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return (
            f"The disk of {folder} is full. Free some space and start the download again; what was downloaded is kept."
        )
    return f"{error.filename or folder} cannot be read or written ({error.strerror or error}). {writing_advice(error)}"
