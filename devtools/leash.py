"""Run a Python script that ends as soon as the process that started it does, whatever has ended that one.

    python leash.py SCRIPT [ARGUMENT ...]

The other end of its standard input is held by that process alone: the operating system closes it after a SIGKILL too.
By its path and not by its name, so that the script's process imports nothing of the package.
"""

import os
import runpy
import signal
import sys
import threading


def _wait_for_the_end() -> None:
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # and what the script has started
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    sys.argv[:] = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
