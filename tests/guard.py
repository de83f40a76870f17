"""A bound on the time and the memory of a test, for files and values that would take all of both."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TookTooLong(BaseException):
    """Not an Exception: code under test that catches everything must not swallow it."""


@contextmanager
def bounded(seconds: float = 1.0, mebibytes: int = 512) -> Iterator[None]:
    """Let the block take that long and that much further address space, so that a test of an attack fails by itself.

    Where it takes longer the block is broken off; beyond the space it gets a MemoryError. Both are Linux's; elsewhere
    the time is only measured.
    """
    began = time.monotonic()
    if sys.platform != "linux":
        yield
        assert time.monotonic() - began < seconds
        return
    import resource

    def break_off(*_: object) -> None:
        raise TookTooLong(f"not done after {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    previous = signal.signal(signal.SIGALRM, break_off)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)  # pytest-timeout's, which goes on afterwards
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (mebibytes << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    # An alarm waits for the end of a call into C, which may have been the block's last.
    assert time.monotonic() - began < seconds
