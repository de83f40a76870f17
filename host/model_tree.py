"""What lies below a model folder, listed in a thread: once, and then again only what has changed.

ComfyUI asks for the lists of every loader at each page load, and for each input of a prompt that is queued, on the
event loop that serves all clients. A folder in a network, or one of 20,000 folders, takes seconds.
"""

import asyncio
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths

from ..errors import UserError
from ..system.file_names import is_system_file
from ..system.small_files import read_small_text
from .component_classes import components_offered

CONFIG = "config.json"
_GIT, _SNAPSHOTS = ".git", "snapshots"
_HUB_STORES = frozenset({"blobs", "refs"})  # beside the snapshots of a hub's cache, whose links lead there
_MAX_FOLDERS = 100_000  # of one root
_MAX_CONFIG_BYTES = 1 << 20
_WAIT_S = 0.25  # how long the event loop waits for a listing, in total
_LARGE_FOLDERS, _SLOW_S = 1000, 0.25  # what makes a listing too dear to repeat at each question
_HOLD_TIMES, _MAX_HOLD_S = 10, 30.0  # it is repeated after ten times the time that it takes
_START_S = 1.0  # for which the listing of start_listing is not repeated
# A file system may keep times in steps of two seconds (FAT): a folder that had just been changed when it was listed may
# have been changed again since, with the same time.
_STEP_NS = 2_000_000_000


class Listed(NamedTuple):
    """One folder. folders, files: names in it, without those of system files. components: what its config.json may
    describe of CogVideoX, by the classes that it names. stamp: what changes when the folder does; None where that
    cannot be told. config_stamp: of config.json."""

    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    components: frozenset[str] = frozenset()
    stamp: tuple[int, ...] | None = None
    config_stamp: tuple[int, ...] | None = None


Tree = Mapping[str, Listed]  # by the path relative to the root, with / on every system; "" is the root


@dataclass
class _Root:
    """A root, and the listing of it that is under way."""

    path: str
    tree: dict[str, Listed] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event | None = None  # set at the end of the listing that is under way
    began: float = 0.0
    ended: float = float("-inf")
    took_s: float = 0.0
    held_until: float = float("-inf")  # the event loop does not repeat the listing before


_roots: dict[str, _Root] = {}
_ENDED = threading.Event()  # of a listing that is not repeated
_ENDED.set()


def tree_of(root: str) -> Tree:
    """What lies below `root`; empty where there is no such folder.

    On the event loop, and only there, the answer may be the one before, or empty where there was none: the loop waits a
    quarter of a second for a listing, and does not repeat one that is slow at every question.
    """
    # ComfyUI's cache for the time in which it answers for all nodes at once, of which six list the same folder. Its
    # own values are of another type.
    cache: Any = folder_paths.cache_helper
    key = f"cogvideox {root}"
    known = cache.get(key)
    if known is None:
        known = _ask(_roots.setdefault(root, _Root(root)))
        cache.set(key, known)
    return known


def start_listing(*roots: str) -> None:
    """Begin to list these folders, so that the answer is there when it is asked for. For a second it then is the answer
    on the event loop: there ComfyUI asks node after node for its lists when it loads the pack."""
    for root in roots:
        listed = _roots.setdefault(root, _Root(root))
        listed.held_until = time.monotonic() + _START_S
        _begin(listed)


def walk(tree: Tree) -> Iterator[tuple[str, str, Listed]]:
    """(path, name, what is in it) of every folder below a root, sorted; not of hidden ones. The root itself is "."."""
    for path in sorted(tree):
        if not any(part.startswith(".") for part in path.split("/")):
            yield path or ".", path.rpartition("/")[2], tree[path]


def _ask(root: _Root) -> Tree:
    is_loop = _on_event_loop()
    if is_loop and root.tree and time.monotonic() - root.ended < _hold_s(root):
        return root.tree
    done, began, is_new = _begin(root, is_held=is_loop and time.monotonic() < root.held_until)
    if not is_loop:
        done.wait()
        if not is_new:  # it may have passed the folder that was changed just before this question
            _begin(root)[0].wait()
    elif root.tree and root.took_s > _SLOW_S:
        pass  # it would not be done in time
    # The wait is counted from the beginning of the listing: whoever asks after it does not wait again.
    elif not done.wait(max(0.0, began + _WAIT_S - time.monotonic())):
        logging.info(f"Listing {root.path} takes long. What is missing in the list will be there at the next refresh.")
    return root.tree


def _hold_s(root: _Root) -> float:
    is_dear = len(root.tree) > _LARGE_FOLDERS or root.took_s > _SLOW_S
    return min(_HOLD_TIMES * root.took_s, _MAX_HOLD_S) if is_dear else 0.0


def _begin(root: _Root, is_held: bool = False) -> tuple[threading.Event, float, bool]:
    """The listing of a root that is under way, or a new one: the event of its end, when it began, and if it is new.

    is_held: the last one is taken where none is under way. That is looked up under the guard: one that ended just
    before would be repeated at once.
    """
    with root.guard:
        if is_held and root.done is None:
            return _ENDED, root.began, False
        is_new = root.done is None
        if root.done is None:
            root.done, root.began = threading.Event(), time.monotonic()
            # A daemon, so that a disk that does not answer keeps no program from ending.
            threading.Thread(target=_list, args=(root, root.done), name="cogvideox-listing", daemon=True).start()
        return root.done, root.began, is_new


def _list(root: _Root, done: threading.Event) -> None:
    try:
        tree = _refreshed(root.path, root.tree)
    except Exception as error:  # whoever waits must get an answer, and the next question another try
        logging.warning(f"{root.path} cannot be listed: {error}")
        tree = root.tree
    with root.guard:
        root.tree, root.ended, root.done = tree, time.monotonic(), None
        root.took_s = root.ended - root.began
    done.set()


def _on_event_loop() -> bool:
    """Whether this is the loop that serves all clients. The thread that runs prompts has one of its own, where a list
    has to be as it is now."""
    if threading.current_thread() is not threading.main_thread():
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _refreshed(root: str, before: dict[str, Listed]) -> dict[str, Listed]:
    """The tree of `root`, for which only folders that have changed are read; `before` itself where none has."""
    found: dict[str, Listed] = {}
    # (path, the folders that it is in, by device and number): a link may lead back to one of them.
    left: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while left:
        path, above = left.pop()
        place = os.path.join(root, path) if path else root
        try:
            status = os.stat(place)
        except OSError:  # deleted meanwhile, or without permission
            continue
        me = (status.st_dev, status.st_ino)
        if not stat.S_ISDIR(status.st_mode) or (me in above and me[1]):
            continue
        old, new = before.get(path), _relisted(place, status, before.get(path))
        found[path] = old if old is not None and new == old else new
        if len(found) >= _MAX_FOLDERS:
            logging.warning(f"{root} has more than {_MAX_FOLDERS} folders. Those beyond are not listed.")
            break
        inner = above | {me}
        left += [(f"{path}/{name}" if path else name, inner) for name in found[path].folders]
    is_same = len(found) == len(before) and all(before.get(path) is listed for path, listed in found.items())
    return before if is_same else found


def _relisted(place: str, status: os.stat_result, before: Listed | None) -> Listed:
    stamp = (status.st_mtime_ns, status.st_dev, status.st_ino)
    listed = before
    if listed is None or listed.stamp != stamp:
        settled = time.time_ns() - status.st_mtime_ns > _STEP_NS
        listed = _scanned(place, stamp if settled else None)
    if CONFIG not in listed.files:
        return listed
    config = _stamp(os.path.join(place, CONFIG))
    if before is not None and config is not None and before.config_stamp == config:
        return listed._replace(components=before.components, config_stamp=config)
    return listed._replace(components=_components(Path(place, CONFIG)), config_stamp=config)


def _scanned(place: str, stamp: tuple[int, ...] | None) -> Listed:
    folders, files = [], []
    dangling = False
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir()  # of what a link leads to
                except OSError:
                    is_folder = False
                if is_folder and entry.name != _GIT:
                    folders.append(entry.name)
                elif not is_folder and not is_system_file(entry.name) and _is_file(entry):
                    files.append(entry.name)
                dangling |= not is_folder and _is_link(entry) and not _is_file(entry)
    except OSError:
        return Listed()
    if _SNAPSHOTS in folders:
        folders = [name for name in folders if name not in _HUB_STORES]
    # What a link leads to may appear, as that of a disk that is mounted, without a change of the folder.
    return Listed(tuple(sorted(folders)), tuple(sorted(files)), stamp=None if dangling else stamp)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry, or what it links to, is a file: not a FIFO, which would be waited for, and not gone."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_link(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a link, as far as the disk says so: one entry that it cannot read hides no other ones."""
    try:
        return entry.is_symlink()
    except OSError:
        return False


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _components(config: Path) -> frozenset[str]:
    """The components that a config.json names and that are offered; none where it cannot be read."""
    try:
        value = json.loads(read_small_text(config, _MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError, UserError):
        return frozenset()
    return components_offered(value) if isinstance(value, dict) else frozenset()
