"""Processes of their own that tests start, and may kill.

Where the system can fork, a server which has imported ComfyUI, and nothing of the pack but a few small modules, makes
them: such a process is there in a tenth of a second, where a fresh interpreter takes ten. Each worker of the tests
starts one server at the first need; it ends with the worker and its children. Elsewhere each process is a fresh one.
"""

import importlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
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


class Child:
    """A process that calls a function of the tests, named as in "training.test_loop.work".

    arguments: anything that can be pickled. environ: variables that differ from this process's; they are set before the
    function's module is imported.
    """

    def __init__(self, function: str, *arguments: Any, environ: Mapping[str, str] = {}):
        _start_server()
        handle, log = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self._log = Path(log)
        self._answer, answer = CONTEXT.Pipe()
        given = (function, arguments, {**os.environ, **environ}, log, answer)
        self._process = CONTEXT.Process(target=_call, args=given, daemon=True)
        try:
            self._process.start()
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


def _start_server() -> None:
    """Start what the children are forked from, unless it runs. It must have one thread: a fork copies the locks that
    others hold, and nobody would ever release those. What it has imported has read the variables of the first test that
    needed it: a library that reads one at its import does not see those of a child."""
    if CAN_FORK:
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(list(_PRELOADED))
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}):
            forkserver.ensure_running()


def _call(function: str, arguments: tuple, environ: dict[str, str], log: str, answer: Connection) -> None:
    """In the child: what is printed goes to the file `log`, and what the function returns to `answer`."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    os.environ.clear()
    os.environ.update(environ)
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    importlib.import_module(_CONFTEST)
    module, name = function.rsplit(".", 1)
    answer.send(getattr(importlib.import_module(f"cogvideox.tests.{module}"), name)(*arguments))


def _end_with_the_tests() -> None:
    """A worker that is killed cannot end its children itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
