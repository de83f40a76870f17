"""Calls in threads that a disk which does not answer holds: nothing else waits for it."""

import asyncio
import subprocess
import sys
import threading
from functools import partial

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.nodes import file_inputs
from cogvideox.system.daemon_threads import DaemonThreads

# A program that ends while a disk has not answered yet. It imports nothing else: that takes ten seconds.
END_WHILE_A_CHECK_WAITS = """
import threading
from cogvideox.system.daemon_threads import DaemonThreads

began = threading.Event()
DaemonThreads(1, "test").submit(lambda: (began.set(), threading.Event().wait()))
began.wait()
"""


def test_a_program_ends_though_a_disk_does_not_answer() -> None:
    """After Ctrl-C ComfyUI waited for the thread of the check, and had to be killed."""
    assert isinstance(file_inputs._THREADS, DaemonThreads)
    ended = subprocess.run([sys.executable, "-c", END_WHILE_A_CHECK_WAITS], cwd=ROOT, timeout=120)
    assert not ended.returncode


def test_the_others_go_on() -> None:
    """Each call that is held takes one of the threads; the results of the others arrive, with their own errors."""
    threads, disk = DaemonThreads(3, "test"), threading.Event()
    held = [threads.submit(partial(disk.wait, 60)) for _ in range(2)]
    assert [threads.submit(partial(pow, number, 2)).result(60) for number in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(60)
    assert not any(future.done() for future in held)
    held.append(threads.submit(partial(disk.wait, 60)))
    waiting = threads.submit(lambda: "served")
    assert not waiting.done() and threads._started == 3
    disk.set()
    assert waiting.result(60) == "served" and all(future.result(60) for future in held)


def test_a_client_that_goes_away() -> None:
    """The check that it no longer waits for is not begun, and the thread serves the next one."""
    threads, disk, begun = DaemonThreads(1, "test"), threading.Event(), list[str]()

    async def ask() -> None:
        held = threads.submit(partial(disk.wait, 60))
        waiting = threads.submit(lambda: begun.append("gone"))
        task = asyncio.ensure_future(asyncio.wrap_future(waiting))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not waiting.cancelled():  # asyncio passes it on in its next round
            await asyncio.sleep(0)
        disk.set()
        await asyncio.wrap_future(held)

    asyncio.run(ask())
    assert threads.submit(lambda: "next").result(60) == "next" and not begun
