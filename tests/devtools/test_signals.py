"""Commands and tests do what they do, whatever their caller ignores or blocks."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from cogvideox.devtools import cli
from cogvideox.devtools.signals import forget_callers_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has none of these signals")
ALL = ("SIGCHLD", "SIGTERM", "SIGHUP", "SIGINT", "SIGALRM")
CALLER = """
import os, signal, sys
numbers = [getattr(signal, name) for name in sys.argv[1].split(",") if name]
if sys.argv[2] == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
else:
    for number in numbers:
        signal.signal(number, {"ignored": signal.SIG_IGN, "as usual": signal.SIG_DFL}[sys.argv[2]])
os.execv(sys.executable, [sys.executable, "-c", sys.argv[3]])
"""
COMMAND = """
import signal, sys
from cogvideox.devtools import cli
from cogvideox.devtools.process import run_foreground
with cli._stopping_when_asked():
    print(*(signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGHUP, signal.SIGINT)), flush=True)
    sys.exit(run_foreground([sys.executable, "-c", "raise SystemExit(5)"]))
"""


def run_from_caller(names: tuple[str, ...], how: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", CALLER, ",".join(names), how, COMMAND]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_a_failure_stays_a_failure(how: str) -> None:
    """Under a caller that ignores SIGCHLD a failed pip had installed everything, and failing tests had passed."""
    done = run_from_caller(ALL, how)
    assert done.returncode == 5, done.stderr


def test_nohup_and_background_jobs_stay_what_they_are() -> None:
    """Who closes the terminal wants a command under nohup to go on."""
    assert run_from_caller(("SIGHUP", "SIGINT"), "ignored").stdout.split() == ["True", "True"]
    assert run_from_caller(("SIGHUP", "SIGINT"), "as usual").stdout.split() == ["False", "False"]


def test_these_tests_have_forgotten_their_callers() -> None:
    """A test that starts a program and asks how it ended fails under such a caller, or passes without having tested."""
    assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN and not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert subprocess.run([sys.executable, "-c", "raise SystemExit(5)"]).returncode == 5


def test_a_thread_leaves_signals_alone() -> None:
    """Python lets only the main thread set them: dev.py's commands are called from threads in tests."""
    failed: list[BaseException] = []

    def call() -> None:
        try:
            forget_callers_signals()
            with cli._stopping_when_asked():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert not failed
