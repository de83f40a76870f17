"""Ask the hubs whether what the table of published models says is still so. Needs requests, and a network."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

from cogvideox.errors import MAX_CHARACTERS, UserError, printable, shortened
from cogvideox.model_loaders.downloads.fetch import new_hub
from cogvideox.model_loaders.downloads.hub import Hub, NotFoundError, RemoteFile, TransientError
from cogvideox.model_loaders.downloads.manifest import select_files
from cogvideox.model_loaders.downloads.repositories import HUGGING_FACE, SOURCES, Repository, SingleFile

T = TypeVar("T")
_TRIES, _PAUSE_S = 3, 2.0
_CHECKPOINT_TOLERANCE = 0.1  # of the size: READMEs round, and one hub may have a VAE in fp32 where the other has bf16
_FILE_TOLERANCE_GB = 0.06  # where only the size in GB is published, to one decimal


@dataclass(frozen=True)
class Finding:
    """What one hub answers of one entry of the table.

    problems: sentences about what is not as the table says; none where all of it is. told: what the hub holds.
    """

    name: str
    source: str
    problems: tuple[str, ...]
    told: str = ""

    def describe(self) -> str:
        """One line for a person."""
        state = " ".join(self.problems) if self.problems else "as in the table"
        # What a hub answers is printed: no commands to a terminal.
        line = f"{self.name:51} {self.source:12}  {state}{f'  ({self.told})' if self.told else ''}"
        return printable(shortened(" ".join(line.splitlines()), MAX_CHARACTERS))


class _Hub:
    """A hub that is asked again after a TransientError, until it has answered nothing for so long that it is not waited
    for a second time: without a network a table of fifty entries would take minutes."""

    def __init__(self, hub: Hub):
        self._hub, self._tries = hub, _TRIES

    def list(self, repository: str) -> tuple[str, list[RemoteFile]]:
        """What the repository is called now, and its files. Raises UserError, TransientError."""
        tries, self._tries = self._tries, 1
        revision, name = _repeated(lambda: self._hub.current(repository), tries)
        files = _repeated(lambda: self._hub.files(repository, revision), tries)
        self._tries = _TRIES
        return name, files


def _repeated(ask: Callable[[], T], tries: int) -> T:
    """The result of a request, which is repeated after a TransientError. Raises what `ask` raises."""
    for failures in range(1, tries):
        try:
            return ask()
        except TransientError as error:
            time.sleep(error.wait_s if error.wait_s is not None else _PAUSE_S * failures)
    return ask()


def check(repositories: Sequence[Repository], files: Iterable[SingleFile]) -> Iterator[Finding]:
    """What the hubs answer, entry by entry. Raises UserError where the environment names no hub."""
    for source in SOURCES:
        hub = _Hub(new_hub(source))
        for entry in repositories:
            yield _asked(entry.name, source, partial(_check_checkpoint, hub, entry.on(source), entry.gigabytes))
    hub = _Hub(new_hub(HUGGING_FACE))
    for repository, group in groupby(sorted(files, key=lambda entry: entry.repository), lambda entry: entry.repository):
        yield from _check_files(hub, repository, list(group))


def _asked(name: str, source: str, ask: Callable[[], tuple[list[str], str]]) -> Finding:
    """The problems that `ask` returns, or the one that it met."""
    try:
        problems, told = ask()
    except UserError as error:
        gone = "It is gone: " if isinstance(error, NotFoundError) else ""
        problems, told = [f"{gone}{error}"], ""
    except TransientError as error:
        problems, told = [f"It could not be asked: {error}. Ask again later."], ""
    return Finding(name, source, tuple(problems), told)


def _renamed(repository: str, name: str) -> list[str]:
    return [] if name == repository else [f"{repository} is called {name} now."]


def _check_checkpoint(hub: _Hub, repository: str, gigabytes: float) -> tuple[list[str], str]:
    """The problems with a checkpoint of this size, and its size. Raises UserError, TransientError."""
    name, files = hub.list(repository)
    found = sum(file.size for file in select_files(files)) / 1e9
    problems = _renamed(repository, name)
    if abs(found - gigabytes) > _CHECKPOINT_TOLERANCE * gigabytes:
        problems.append(f"Its size is {found:.1f} GB, not {gigabytes} GB.")
    return problems, f"{found:.1f} GB"


def _check_files(hub: _Hub, repository: str, entries: list[SingleFile]) -> Iterator[Finding]:
    """What one repository answers of its single files; it is asked once."""
    try:
        name, files = hub.list(repository)
    except (UserError, TransientError) as error:
        for entry in entries:
            yield _asked(entry.name, HUGGING_FACE, _raiser(error))
        return
    for entry in entries:
        problems, told = _compare(entry, files)
        yield Finding(entry.name, HUGGING_FACE, (*_renamed(repository, name), *problems), told)


def _raiser(error: Exception) -> Callable[[], tuple[list[str], str]]:
    def fail() -> tuple[list[str], str]:
        raise error

    return fail


def _compare(entry: SingleFile, files: list[RemoteFile]) -> tuple[list[str], str]:
    """The problems with a file, given all files of its repository, and what the table could say more exactly."""
    file = next((file for file in files if file.path == entry.path), None)
    sha256 = f"sha256:{entry.sha256}"
    if file is None:
        moved = [f.path for f in files if f.digest == sha256 or f.path.rsplit("/", 1)[-1] == entry.name]
        where = f"It is at {' and '.join(moved)} now." if moved else "It is gone."
        return [f"{entry.path} is not in {entry.repository}. {where}"], ""
    problems = []
    if entry.size is not None and file.size != entry.size:
        problems.append(f"Its size is {file.size} bytes, not {entry.size}.")
    elif entry.size is None and abs(file.size / 1e9 - entry.gigabytes) > _FILE_TOLERANCE_GB:
        problems.append(f"Its size is {file.size / 1e9:.1f} GB, not {entry.gigabytes} GB.")
    if entry.sha256 is not None and file.digest != sha256:
        problems.append(f"Its hash is {file.digest}, not {sha256}.")
    unknown = [f"{file.size} bytes"] * (entry.size is None) + [file.digest] * (entry.sha256 is None)
    return problems, ", ".join(unknown)
