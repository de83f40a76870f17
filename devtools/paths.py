"""The paths of a clone. Everything that the commands write is under `.venv` and `.dev`, both ignored by git."""

import os
from pathlib import Path

PACK_NAME = "cogvideox"

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
DEV = ROOT / ".dev"
LOGS = DEV / "logs"
CONSTRAINTS = ROOT / "constraints-dev.txt"
BASE = DEV / "base"  # ComfyUI's --base-directory: a user's own checkout is only read
TEMPLATES = ROOT / "example_workflows"


def expanded(path: str | Path) -> Path:
    """A path as a person writes it, with the home folder for ~. The ~ of a user that there is not stays, and is a name
    like any other; pathlib's own expanduser raises a RuntimeError."""
    return Path(os.path.expanduser(path))


def template(title: str) -> Path:
    """The file of a template by its title, before which the name has its number in the list."""
    (file,) = TEMPLATES.glob(f"?? {title}.json")
    return file
