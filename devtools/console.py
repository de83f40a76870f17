"""Progress lines with the seconds since the command began."""

import os
import time

# Inherited by the processes a command starts, so that their lines count from the same moment.
_START = float(os.environ.setdefault("COGVIDEOX_DEV_START", str(time.time())))


def say(message: str) -> None:
    """Print one progress line, at once."""
    print(f"[{time.time() - _START:6.1f} s] {message}", flush=True)
