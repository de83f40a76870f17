"""Whether a path lies in a folder: the one rule by which nothing leads out of ComfyUI's folders or a dataset's.

On Windows, where names differ in case and still mean one file, pathlib compares without regard to it.
"""

import os
from pathlib import Path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it, after all links, .. and relative parts of both are followed.

    What does not exist is taken by its name. A path that no file can have lies nowhere.
    """
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, or a circle of links
        return False


def is_below(path: Path, folder: Path) -> bool:
    """is_inside, and not `folder` itself."""
    return is_inside(path, folder) and not is_inside(folder, path)


def is_spelled_inside(path: Path, folder: Path) -> bool:
    """is_inside by the spelling alone: nothing is looked up on a disk or in a network.

    Ask it first where a stranger has chosen the path: on Windows, to resolve //server/share calls that server.
    """
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
