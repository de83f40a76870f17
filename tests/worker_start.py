"""How pytest-xdist starts a worker: `python -m cogvideox.tests.worker_start -u -c CODE` runs CODE in a process forked
from the run's server, which has imported torch and ComfyUI once for all workers.

This process stands for the worker: it ends with the same status, and when it is killed, so is the worker.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from cogvideox.tests import children


class Stream:
    """A file descriptor, which arrives as the number of the same file in the other process."""

    def __init__(self, number: int):
        self._number = number

    def __reduce__(self) -> tuple[Any, tuple]:
        from multiprocessing.reduction import DupFd  # which Windows lacks

        return _number_here, (DupFd(self._number),)


def _number_here(descriptor: Any) -> int:
    return descriptor.detach()


def main(code: str) -> int:
    """Run Python code as a worker; returns its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the worker too, which says what it has to say
    streams = [Stream(number) for number in range(3)]
    worker = children.start_process(_work, code, dict(os.environ), streams, daemon=False)
    worker.join()
    if worker.exitcode < 0:  # it was ended by a signal
        if worker.exitcode != -signal.SIGKILL:
            signal.signal(-worker.exitcode, signal.SIG_DFL)
        os.kill(os.getpid(), -worker.exitcode)
    return worker.exitcode


def _work(code: str, environ: dict[str, str], streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    children.begin(environ)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = ["-c"]
    exec(code, {"__name__": "__main__"})  # noqa: S102, as `python -c` does


if __name__ == "__main__":
    sys.exit(main(sys.argv[-1]))
