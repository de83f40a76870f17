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
    """Let the block take that much processor time and that much further address space, so that a test of an attack
    fails by itself.

    Where it takes longer the block is broken off; beyond the space it gets a MemoryError. Both are Linux's; elsewhere
    the time is only measured. Processor time, because other workers and servers of the suite run beside it; a block
    that waits for ever is pytest-timeout's.
    """
    # coverage traces every line; a loop of short ones takes several times as long under it
    seconds *= 4 if "coverage" in sys.modules and sys.gettrace() else 1
    began = time.process_time()
    if sys.platform != "linux":
        yield
        assert time.process_time() - began < seconds
        return
    import resource

    def break_off(*_: object) -> None:
        raise TookTooLong(f"not done after {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    previous = signal.signal(signal.SIGPROF, break_off)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (mebibytes << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    # The signal waits for the end of a call into C, which may have been the block's last.
    assert time.process_time() - began < seconds
