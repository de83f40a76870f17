"""The virtual environment: room for it, its creation, and what pip puts into it."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .console import say
from .errors import DevError, describe_full_disk
from .process import last_line, run_logged

# ComfyUI's requirements, most of it torch: on Linux its wheel brings the CUDA libraries along.
ROOM_NEEDED_GB = 8 if sys.platform == "linux" else 3

_OFFLINE_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "Could not fetch URL",
    "ConnectionResetError",
)
# pip's lines that show its progress; between them are pages of "Requirement already satisfied".
_PIP_STEPS = r"^(Collecting|Downloading|Building|Installing)"
_DISK_FULL_SIGNS = ("No space left on device", "[Errno 28]", "Disk quota exceeded")


def check_room(folder: Path, needed_gb: float = ROOM_NEEDED_GB) -> float:
    """GB free on the disk of `folder`. Raises: DevError if fewer than `needed_gb`."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise DevError(
            f"The disk of {folder} has {free_gb:.1f} GB free and a first install needs {needed_gb:g} GB: "
            "free some space and run the command again."
        )
    return free_gb


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def create_venv(venv: Path, logs: Path) -> Path:
    """Create `venv` unless it works already; returns its interpreter.

    Raises: DevError where Python came without venv or ensurepip (Debian) or the creation fails.
    """
    python = venv_python(venv)
    if _has_pip(python):
        return python
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = "{}.{}".format(*sys.version_info)
        raise DevError(
            f"This Python {version} cannot create virtual environments because its ensurepip is missing: "
            f"on Debian and Ubuntu run `apt-get install python{version}-venv`."
        )
    say(f"Creating the virtual environment {venv.name}")
    log = logs / "venv.log"
    # --clear, because an interrupted run may have left a broken environment behind.
    if run_logged([sys.executable, "-m", "venv", "--clear", str(venv)], log) or not _has_pip(python):
        raise DevError(describe_failure("the virtual environment", log))
    return python


def install(
    python: Path,
    name: str,
    requirements: Sequence[Path],
    constraints: Path,
    stamps: Path,
    logs: Path,
    after: str = "",
    upgrade: bool = False,
) -> str:
    """pip-install requirement files unless the stamp says that exactly these are installed; returns their digest.

    name: of the stamp and in the messages. after: the digest of an install this one builds on. upgrade: take the newest
    of what is named, whatever is installed.
    Raises: DevError when offline, when the disk is full, when pip finds no solution.
    """
    digest = digest_files([*requirements, constraints], after)
    stamp = stamps / name.replace(" ", "-")
    if stamp.exists() and stamp.read_text("utf-8") == digest:
        say(f"{name}: installed already")
        return digest
    log = logs / f"pip-{stamp.name}.log"
    say(f"{name}: installing, which takes minutes the first time (log: {log})")
    stamp.unlink(missing_ok=True)
    files = [argument for file in requirements for argument in ("-r", str(file))]
    # Python compiles what it imports. pip would compile all of the twenty thousand files, for a minute.
    options = ["--no-compile", *(["--upgrade"] if upgrade else [])]
    run_pip(python, ["install", *options, *files, "-c", str(constraints)], name, log)
    stamps.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest, "utf-8")
    return digest


def install_package(python: Path, root: Path, stamps: Path, logs: Path) -> None:
    """Make the clone `root` importable as `cogvideox`, where it is, unless that has been done.

    Raises: DevError as `install` does.
    """
    digest = digest_files([root / "pyproject.toml"], after=str(root))
    stamp = stamps / "package"
    if stamp.exists() and stamp.read_text("utf-8") == digest:
        return
    say(f"This clone: installing it as the package cogvideox, where it lies (log: {logs / 'pip-package.log'})")
    stamp.unlink(missing_ok=True)
    run_pip(python, ["install", "--no-deps", "--editable", str(root)], "this clone", logs / "pip-package.log")
    stamps.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest, "utf-8")


def digest_files(files: Iterable[Path], after: str = "") -> str:
    """sha256 over the contents of `files`, in order, chained to an earlier digest."""
    digest = hashlib.sha256(after.encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def run_pip(python: Path, arguments: Sequence[str], what: str, log: Path) -> None:
    """Run pip with its output in `log`. Raises: DevError with the reason, as far as pip's log has it."""
    command = [
        str(python),
        "-m",
        "pip",
        arguments[0],
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        *arguments[1:],
    ]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pip-", dir=log.parent) as scratch:
        if arguments[0] == "install":
            # On the disk whose room has been looked at: the system's folder for such files may be one in memory.
            environ |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch)
        measure = partial(_written_since, time.time(), (Path(scratch), python.parent.parent))
        status = run_logged(command, log, env=environ, matching=_PIP_STEPS, measure=measure)
    if status:
        raise DevError(describe_failure(what, log))


def _written_since(began: float, folders: Iterable[Path]) -> str:
    """How much has been written into folders: pip says nothing while a file of gigabytes comes. "" below a megabyte."""
    megabytes = sum(size for folder in folders for size in _new_sizes(folder, began)) / 1e6
    return f"{megabytes:,.0f} MB so far" if megabytes >= 1 else ""


def _new_sizes(folder: Path, began: float) -> Iterator[int]:
    """The bytes of every file below a folder that is newer than `began`. Another program writes there meanwhile."""
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(place, name))
                if status.st_ctime >= began:
                    yield status.st_size


def describe_failure(what: str, log: Path) -> str:
    """One sentence on why installing `what` failed, from the log."""
    text = log.read_text("utf-8", "replace")
    if any(sign in text for sign in _DISK_FULL_SIGNS):
        return f"{describe_full_disk(what)} The log is {log}."
    errors = [line.strip() for line in text.splitlines() if line.strip().upper().startswith("ERROR:")]
    reason = errors[-1][:300] if errors else last_line(log)
    if any(sign in text for sign in _OFFLINE_SIGNS):
        return (
            f"Could not download {what}: the package index did not answer (is this machine offline?): {reason} ({log})"
        )
    return f"Could not install {what}: {reason} ({log})"


def has_accelerator(python: Path) -> bool:
    """Whether the venv's torch can use a GPU. Takes seconds, as it imports torch."""
    question = (
        "import torch\n"
        "print(torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())"
    )
    answer = subprocess.run([str(python), "-c", question], capture_output=True, text=True, check=False)
    if answer.returncode:
        cause = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        venv = python.parent.parent
        raise DevError(f"torch cannot be imported in {venv} ({cause}): delete that folder and run again.")
    return answer.stdout.strip().endswith("True")


def _has_pip(python: Path) -> bool:
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", "import pip"], capture_output=True, check=False).returncode == 0
