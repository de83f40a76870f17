"""The run itself, inside an environment that has what it needs: opens pictures, asks the server, keeps the results."""

import asyncio
import contextlib
import io
import json
import os
import struct
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import av.error

from cogvideox.errors import printable

from .. import client, paths
from ..console import say
from ..errors import DevError
from ..run_workflow import Video, describe_video, inspect_video, progress_lines
from ..server import running_server
from .local_models import local_lists, write_extra_paths
from .media import read_media
from .options import Lists
from .remote import FOLDER, download, server_lists, upload
from .requests import Request
from .run_clips import Clip, needs_lists, settle
from .run_graph import SAVE, build_graph
from .run_plan import Plan
from .targets import Target, check_free, find_done, write_result

Serve = Callable[[], contextlib.AbstractContextManager[str]]


@dataclass(frozen=True)
class Own:
    """A server of one's own. host: ComfyUI's folder. models: the folder of models to use; port: None for a free one."""

    host: str
    models: str
    port: int | None


def work(plan: Plan, own: Own | None, out: TextIO) -> int:
    """Make what is asked for, with a line of JSON on `out` for each result; returns the exit status.

    own: None where plan.server is one that runs. Raises: DevError.
    """
    media = read_media(plan.requests)
    with contextlib.ExitStack() as cleanup:
        if own is None:
            assert plan.server is not None
            lists, serve = server_lists(plan.server), partial(contextlib.nullcontext, plan.server)
        else:
            scratch = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=paths.BASE)))
            lists, serve = _prepare_own(own, plan.requests, scratch)
        clips = [settle(request, media, lists) for request in plan.requests]
        return _make_all(list(zip(plan.targets, clips)), serve, plan, out)


def _prepare_own(own: Own, requests: Sequence[Request], scratch: Path) -> tuple[Lists | None, Serve]:
    """The lists of a server that does not run yet, where they are needed, and what starts it."""
    extra = [] if Path(own.models) == paths.BASE / "models" else write_extra_paths(Path(own.models), scratch)
    lists = local_lists(Path(sys.executable), Path(own.host), paths.BASE, extra) if needs_lists(requests) else None

    @contextlib.contextmanager
    def serve() -> Iterator[str]:
        log = paths.LOGS / "server-run.log"
        say(f"Starting ComfyUI (log: {log})")
        options = [option for file in extra for option in ("--extra-model-paths-config", str(file))]
        with running_server(Path(own.host), paths.BASE, log=log, port=own.port, arguments=options) as running:
            say(f"ComfyUI answers at {running.url}")
            yield running.url

    return lists, serve


def _make_all(jobs: list[tuple[Target, Clip]], serve: Serve, plan: Plan, out: TextIO) -> int:
    """Make the clips that are not there yet. One that fails does not keep the others from being made."""
    done = [find_done(target, clip.settings) for target, clip in jobs]
    check_free((target for (target, _), record in zip(jobs, done) if record is None), plan.overwrite)
    failed = []
    with contextlib.ExitStack() as running:
        url = running.enter_context(serve()) if None in done else ""
        for number, ((target, clip), record) in enumerate(zip(jobs, done), 1):
            say(f"{number} of {len(jobs)}: {target.written}")
            if record is not None:
                say("  is there already, with these settings")
            else:
                try:
                    record = _make(url, target, clip, plan)
                except _ClipError as error:
                    print(printable(f"error: {target.written} was not made: {error}"), file=sys.stderr, flush=True)
                    failed.append(target)
                    continue
            print_result(record, out)
    if failed:
        raise DevError(
            f"{len(failed)} of {len(jobs)} videos were not made, for the reasons above; the same command makes what is "
            "missing."
        )
    return 0


def print_result(record: dict[str, Any], out: TextIO) -> None:
    """A line of JSON. Raises: DevError where what read the results has ended."""
    try:
        print(json.dumps(record), file=out, flush=True)
    except BrokenPipeError as error:
        # Python flushes once more at its end, and would complain of that too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise DevError("The program that reads the results has ended: the videos that were made are kept.") from error


class _ClipError(Exception):
    """One clip that could not be made; others may be."""


def _make(url: str, target: Target, clip: Clip, plan: Plan) -> dict[str, Any]:
    """Run one clip on the server and keep its video; returns its record. Raises: DevError, _ClipError."""
    began = time.monotonic()
    file = clip.image or clip.video
    uploaded = ""
    if file is not None:
        uploaded = _of_the_clip(upload, url, file.name, file.data)
    # Under a name of its own, so that what the server has in its cache is saved once more.
    graph = build_graph(clip, uploaded, f"{FOLDER}/{uuid.uuid4().hex}")
    try:
        result = client.run_workflow(url, graph, progress_lines(graph), timeout_s=None)
        saved = client.saved_files(result.outputs.get(SAVE, {}))
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        raise DevError(f"The server at {url} went away ({error}): start it and run the same command again.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise _ClipError(f"the server does not answer as ComfyUI does ({error!r})") from error
    if result.error is not None:
        raise _ClipError(str(result.error))
    if not saved:
        raise _ClipError("the server has saved no video")
    copy = None
    if plan.server is None:
        # The server of our own writes below the clone, where nobody looks for it.
        output = paths.BASE / "output"
        copy = _of_the_clip(client.local_file, saved[0], output, output / FOLDER)
    video = _of_the_clip(download, url, saved[0])
    seconds = round(time.monotonic() - began, 1)
    found = look_at(video)
    if found is None or found.frames != clip.settings["frames"]:
        raise _ClipError(f"the server sent {describe_video(found) if found else 'no video that can be read'}")
    record = {"file": str(target.path), "seed": clip.settings["seed"], "seconds": seconds, "settings": clip.settings}
    written = write_result(target, video, record, plan.overwrite)
    if copy is not None:
        copy.unlink(missing_ok=True)
    say(f"  {target.path}  ({describe_video(found)})")
    return written


def _of_the_clip(transfer: Callable[..., Any], *given: Any) -> Any:
    """A transfer whose failure concerns one clip. Raises: _ClipError."""
    try:
        return transfer(*given)
    except DevError as error:
        raise _ClipError(str(error)) from error


def look_at(video: bytes) -> Video | None:
    """What a decoder finds in a whole file; None where it is none, or damaged."""
    try:
        return inspect_video(io.BytesIO(video))
    except (av.error.FFmpegError, IndexError):
        return None
