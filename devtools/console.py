"""Progress lines with the seconds since the command began."""

import os
import time

from cogvideox.errors import printable

# Inherited by the processes a command starts, so that their lines count from the same moment.
_START = float(os.environ.setdefault("COGVIDEOX_DEV_START", str(time.time())))


def say(message: str) -> None:
    """Print one progress line, at once. What a server or a file says in it is no command to the terminal."""
    print(f"[{time.time() - _START:6.1f} s] {printable(message)}", flush=True)
