"""The virtual environment of an older ComfyUI: what must differ from `.venv`, and through it all the rest.

A whole environment is 7 GB, most of it torch, and two versions of ComfyUI pin a handful of different packages.
"""

import subprocess
from pathlib import Path

from . import environment, paths
from .console import say
from .errors import DevError
from .process import run_logged

# Pictures and texts of half a gigabyte that no test opens: any version does, and a server starts without them as well.
_SHARED = ("comfyui-workflow-templates", "comfyui-embedded-docs")
_PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"
_LINK = "shared.pth"


def prepare(shared: Path, host: Path, version: str, installed: str) -> Path:
    """The interpreter of an environment in which ComfyUI `version`, in the folder `host`, has the packages it asks for.

    shared: the interpreter of `.venv`. installed: a digest of what is in there; another one has pip look again.
    Raises: DevError as `environment.install` does.
    """
    venv = paths.DEV / f"venv-{version}"
    python = create(venv, shared, paths.LOGS)
    wanted = venv / "requirements.txt"
    wanted.write_text(differing((host / "requirements.txt").read_text("utf-8")), "utf-8")
    packages = [wanted, paths.ROOT / "requirements.txt"]
    name = f"ComfyUI {version} requirements"
    environment.install(python, name, packages, paths.CONSTRAINTS, venv / "dev-stamps", paths.LOGS, after=installed)
    return python


def create(venv: Path, shared: Path, logs: Path) -> Path:
    """Make `venv`, in which every package of the environment of the interpreter `shared` can be imported, pip included.

    pip installs into `venv` what is missing or of another version there, which comes first; it leaves `shared` alone.
    Returns the interpreter of `venv`. Raises: DevError if it cannot be made.
    """
    python = environment.venv_python(venv)
    packages = _packages_folder(shared)
    link = f"import site; site.addsitedir({str(packages)!r})\n"  # a plain path would leave out its own .pth files
    if python.exists() and _links(python) == link:
        return python
    say(f"Creating the virtual environment {venv.name}, which shares the packages of {shared.parent.parent.name}")
    log = logs / f"{venv.name}.log"
    # --clear, because an interrupted run may have left a broken environment, or an older Python one of its own.
    if run_logged([str(shared), "-m", "venv", "--clear", "--without-pip", str(venv)], log):
        raise DevError(environment.describe_failure(f"the virtual environment {venv.name}", log))
    (_packages_folder(python) / _LINK).write_text(link, "utf-8")
    return python


def differing(requirements: str) -> str:
    """The text of a requirements file of ComfyUI's, without the packages of which any version does."""
    lines = requirements.splitlines()
    return "\n".join(line for line in lines if not line.strip().lower().startswith(_SHARED)) + "\n"


def _links(python: Path) -> str:
    """What `create` has written into the environment of an interpreter; "" if it is broken or shares nothing."""
    try:
        return (_packages_folder(python) / _LINK).read_text("utf-8")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _packages_folder(python: Path) -> Path:
    """Where the environment of an interpreter has its packages."""
    out = subprocess.run([str(python), "-c", _PURELIB], capture_output=True, text=True, check=True)
    return Path(out.stdout.strip())
