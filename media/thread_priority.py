"""The priority of the threads that an encoder starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")  # one folder each


@contextmanager
def usual_priority() -> Iterator[None]:
    """Keep the scheduling of this thread, and give it to the threads that are started inside.

    SVT-AV1, where it runs as root, gives real-time priority to its threads and to the one that opens it, for good: a
    ComfyUI in a container would answer nobody while it encodes, and slow down everything beside it ever after. Source:
    SVT-AV1, Source/Lib/Codec/svt_threads.c.
    """
    if not _THREADS.is_dir():  # not Linux, where alone it does so
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    before = _threads()
    try:
        yield
    finally:
        for thread in (_threads() - before) | {0}:  # 0: the calling one
            with suppress(OSError):  # it has ended
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameters)


def _threads() -> set[int]:
    """The ids of this process's threads."""
    return {int(folder.name) for folder in _THREADS.iterdir()}
