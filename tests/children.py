"""Processes of their own that tests start, and may kill.

Where the system can fork, a server which has imported ComfyUI, and nothing of the pack but a few small modules, makes
them: such a process is there in a tenth of a second, where a fresh interpreter takes ten. A run has one server, from
which the workers of the tests are forked as well (worker_start.py); a run without workers starts it at the first need.
It ends with the tests and all its children. Elsewhere each process is a fresh one.
"""

import importlib
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT: Any = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")
_CONFTEST = "cogvideox.tests.conftest"
_PRELOADED = (_CONFTEST, "nodes", "server")  # the last two are ComfyUI's, and import nearly all of it
# multiprocessing has no public way to use the server of another process; from 3.14 on its server asks for a key too.
CAN_SHARE = CAN_FORK and sys.version_info < (3, 14)
_ADDRESS = "COGVIDEOX_TESTS_FORK_SERVER"
WORKER = shlex.join([sys.executable, "-m", "cogvideox.tests.worker_start"])  # the command that starts a worker


class Child:
    """A process that calls a function of the tests, named as in "training.test_loop.work".

    arguments: anything that can be pickled. environ: variables that differ from this process's; they are set before the
    function's module is imported.
    """

    def __init__(self, function: str, *arguments: Any, environ: Mapping[str, str] = {}):
        handle, log = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self._log = Path(log)
        self._answer, answer = CONTEXT.Pipe()
        given = (function, arguments, {**os.environ, **environ}, log, answer)
        try:
            self._process = start_process(_call, *given, daemon=True)
        except BaseException:
            self._log.unlink()
            raise
        answer.close()  # the child's end alone: whoever waits for an answer learns that it has ended

    def wait(self, timeout_s: float = 120) -> int:
        """Its exit status, negative for a signal; the test fails where it does not end."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            pytest.fail(f"A process did not end within {timeout_s} s. It printed: {self.output()[-3000:]}")
        return self._process.exitcode

    def result(self, timeout_s: float = 120) -> Any:
        """What the function returned; the test fails where it has raised an error, which is printed."""
        assert self._answer.poll(timeout_s), f"No answer within {timeout_s} s: {self.output()[-3000:]}"
        try:
            found = self._answer.recv()
        except EOFError:  # it has ended without an answer
            pytest.fail(f"A process ended with {self.wait()}. It printed: {self.output()[-3000:]}")
        assert self.wait() == 0, self.output()[-3000:]
        return found

    def output(self) -> str:
        """What it has printed so far, its errors and its log among it."""
        return self._log.read_text("utf-8", "replace")

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """End it if it still runs, and delete what it has printed."""
        self._process.kill()
        self._process.join()
        self._answer.close()
        self._log.unlink()


@contextmanager
def running(function: str, *arguments: Any, environ: Mapping[str, str] = {}) -> Iterator[Child]:
    """A Child, which is ended with the block."""
    child = Child(function, *arguments, environ=environ)
    try:
        yield child
    finally:
        child.close()


def start_process(target: Callable[..., None], *arguments: Any, daemon: bool) -> Any:
    """A process that calls target(*arguments), forked where that can be; it should call `begin` first. A daemon may
    start no processes by multiprocessing itself."""
    _start_server()
    process = CONTEXT.Process(target=target, args=arguments, daemon=daemon)
    process.start()
    return process


def share_server() -> None:
    """Start the server that this process's own children use too, worker_start.py's among them."""
    _start_server()
    os.environ[_ADDRESS] = json.dumps([*_of_this_run(), os.fsencode(_forkserver()._forkserver_address).hex()])


def _start_server() -> None:
    """Start what the children are forked from, unless it runs. It must have one thread: a fork copies the locks that
    others hold, and nobody would ever release those. What it has imported has read the variables of the process that
    started it: a library that reads one at its import does not see those of a child."""
    if not CAN_FORK:
        return
    server = _forkserver()
    *run, address = json.loads(os.environ.get(_ADDRESS, "[null]"))
    if run == _of_this_run():
        from multiprocessing import resource_tracker

        if server._forkserver_alive_fd is None:  # no child of the server; those have the one that keeps it alive
            server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
        server._forkserver_address = os.fsdecode(bytes.fromhex(address))
        server.ensure_running = resource_tracker.ensure_running
        return
    server.set_forkserver_preload(list(_PRELOADED))
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}):
        server.ensure_running()


def _of_this_run() -> list[str]:
    """The code that a server has imported: that of another clone, or of another ComfyUI, is no server of ours."""
    return [__file__, os.environ["COMFYUI_PATH"]]


def _forkserver() -> Any:
    """What multiprocessing knows of its server, private names included."""
    from multiprocessing import forkserver

    return forkserver._forkserver  # type: ignore[attr-defined]


def _call(function: str, arguments: tuple, environ: dict[str, str], log: str, answer: Connection) -> None:
    """In the child: what is printed goes to the file `log`, and what the function returns to `answer`."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    begin(environ)
    importlib.import_module(_CONFTEST)
    module, name = function.rsplit(".", 1)
    answer.send(getattr(importlib.import_module(f"cogvideox.tests.{module}"), name)(*arguments))


def begin(environ: Mapping[str, str]) -> None:
    """In a process that the server has forked: its own variables; and its end is that of the one that asked for it."""
    os.environ.clear()
    os.environ.update(environ)
    threading.Thread(target=_end_with_the_tests, daemon=True).start()


def _end_with_the_tests() -> None:
    """A worker that is killed cannot end its children itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
