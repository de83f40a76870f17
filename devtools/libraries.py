"""The versions of libraries that the pack is tested with besides the pinned ones, each in an environment of its own.

requirements.txt of the pack and of ComfyUI say from which version on a library will do. People have all of them: pip
leaves a library as it is that satisfies both. What a set needs comes on top of `.venv`, as for an older ComfyUI.
"""

import re
import subprocess
import time
from pathlib import Path

from . import environment, overlay, paths
from .console import say
from .errors import DevError

SETS = {
    "lowest": "the lowest versions that the pack and ComfyUI allow",
    "mixed": "the lowest that the pack allows, with the newest transformers",
    "newest": "the newest releases, looked up once a week",
}
_HOSTS_OWN = "transformers"  # of ComfyUI's requirements the one that diffusers and peft depend on
_LINE = re.compile(r"(?P<name>[\w-]+)\s*>=\s*(?P<version>[\w.]+)\s*(?P<marker>;.*)?")
_KEPT = ("torch",)  # gigabytes that no set replaces
_VERSIONS = """
import importlib.metadata, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
print(", ".join(f"{name} {version(name)}" for name in sys.argv[1:]))
"""


def prepare(chosen: str, shared: Path, host: Path, installed: str) -> Path:
    """The interpreter of an environment with the libraries of the set `chosen`.

    shared: the interpreter of `.venv`; installed: a digest of what is in there. host: ComfyUI's folder.
    Raises: DevError as environment.install does.
    """
    venv = paths.DEV / f"venv-{chosen}"
    python = overlay.create(venv, shared, paths.LOGS)
    wanted, constraints = venv / "requirements.txt", venv / "constraints.txt"
    pack = (paths.ROOT / "requirements.txt").read_text("utf-8")
    wanted.write_text(requirements(chosen, pack, (host / "requirements.txt").read_text("utf-8")), "utf-8")
    pinned = paths.CONSTRAINTS.read_text("utf-8").splitlines()
    constraints.write_text("\n".join(line for line in pinned if line.startswith(_KEPT)) + "\n", "utf-8")
    after = installed + (time.strftime("%G-%V") if chosen == "newest" else "")
    name, stamps = f"{chosen} libraries", venv / "dev-stamps"
    environment.install(python, name, [wanted], constraints, stamps, paths.LOGS, after, upgrade=chosen == "newest")
    say(f"Libraries: {describe(python, pack)}")
    return python


def requirements(chosen: str, pack: str, host: str) -> str:
    """The requirements of a set. pack, host: the texts of the requirements.txt of the pack and of ComfyUI.

    Raises: DevError for a line without a lowest version, which nobody could test.
    """
    own = [_parse(line) for line in _lines(pack)]
    (hosts_own,) = [_parse(line) for line in _lines(host) if line.startswith(_HOSTS_OWN)]
    if chosen == "newest":
        lines = [f"{name}{marker}" for name, _, marker in [*own, hosts_own]]
    else:
        lines = [f"{name}=={version}{marker}" for name, version, marker in own]
        name, version, _ = hosts_own
        lines.append(f"{name}=={version}" if chosen == "lowest" else f"{name}>=5")
    return "\n".join(lines) + "\n"


def describe(python: Path, pack: str) -> str:
    """The versions that an interpreter has of the libraries in `pack`, a requirements.txt, and of transformers."""
    names = [_HOSTS_OWN, *(_parse(line)[0] for line in _lines(pack))]
    out = subprocess.run([str(python), "-c", _VERSIONS, *names], capture_output=True, text=True, check=True)
    return out.stdout.strip()


def _lines(requirements_txt: str) -> list[str]:
    lines = (line.strip() for line in requirements_txt.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _parse(line: str) -> tuple[str, str, str]:
    """Name, lowest version and marker, "" or with its semicolon."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise DevError(f"The requirement {line!r} has no lowest version. Write it as name>=version.")
    return found["name"], found["version"], found["marker"] or ""
