"""The one exception of the developer's commands."""

import errno
from pathlib import Path


class DevError(Exception):
    """What went wrong, as one sentence for the user: what was found, what to do, which log."""


def describe_full_disk(what: Path | str) -> str:
    """The sentence for a disk that had no room left for `what`."""
    return f"The disk is full, there was no room for {what}: free some space and run the command again."


def is_disk_full(error: OSError) -> bool:
    """Whether the system refused a write for lack of room (disk or quota)."""
    return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
