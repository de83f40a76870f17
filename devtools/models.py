"""List the published checkpoints and download them, without ComfyUI."""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads import manifest as manifest_files
from cogvideox.model_loaders.downloads import repositories

from . import comfyui, environment, paths
from .console import say
from .errors import DevError
from .process import run_foreground

if TYPE_CHECKING:
    from cogvideox.model_loaders.downloads.fetch import Progress

_NEEDED = {"requests": "requests", "filelock": "filelock"}  # module -> package: what a download imports
_REPORT_S = 10.0  # between two lines where the output is not a terminal


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `dev.py models`."""
    command.add_argument("action", nargs="?", choices=("list", "fetch"), default="list", help="list is the default")
    command.add_argument("name", nargs="?", metavar="NAME", help="the checkpoint to download")
    command.add_argument(
        "--to",
        metavar="DIR",
        help="the folder in which each checkpoint has a folder of its own; by default ComfyUI's models/diffusers",
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run `dev.py models`; returns the exit status. Raises: DevError."""
    target = _target(arguments)
    if arguments.action == "list":
        if arguments.name:
            raise DevError(f"`models list` takes no name. `models fetch {arguments.name}` downloads that checkpoint.")
        list_models(target)
        return 0
    if not arguments.name:
        raise DevError("Name the checkpoint: `models fetch NAME`; `models` lists the names.")
    _require_name(arguments.name)  # a wrong name must be found before anything is installed
    python = interpreter(_NEEDED)
    if python == Path(sys.executable):
        fetch(arguments.name, target)
        return 0
    command = [str(python), str(paths.ROOT / "dev.py"), "models", "fetch", arguments.name, "--to", str(target)]
    return run_foreground(command, cwd=paths.ROOT)


def list_models(target: Path) -> None:
    """Print every checkpoint and whether it is in `target`."""
    print(f"{'checkpoint':31} {'about':>6}  {'licence':17}  {'made for':37}  in {target}")
    for entry in repositories.REPOSITORIES:
        state = describe_state(target / entry.name)
        print(f"{entry.name:31} {entry.gigabytes:3.0f} GB  {entry.licence:17}  {entry.made_for:37}  {state}")
    print("\nLicences: " + "; ".join(f"{name}: {url}" for name, url in (repositories.APACHE, repositories.COGVIDEOX)))
    print("Download one with: python3 dev.py models fetch NAME [--to DIR]")


def describe_state(folder: Path) -> str:
    """The state of a checkpoint's folder in a few words; "-" where there is no checkpoint."""
    manifest = manifest_files.read_manifest(folder)
    if manifest is not None:
        missing = manifest.missing(folder)
        if manifest.complete and not missing:
            return "complete"
        left = sum(file.size for file in missing) - manifest_files.partial_bytes(folder, missing)
        return f"partial, {left / 1e9:.1f} GB to go"
    if (folder / manifest_files.MANIFEST).exists():
        return "partial"
    return "there, not verified" if (folder / "model_index.json").is_file() else "-"


def fetch(name: str, target: Path) -> None:
    """Download one checkpoint into its folder under `target`. Raises: DevError."""
    from cogvideox.model_loaders.downloads.fetch import download  # needs requests

    try:
        entry = repositories.find_repository(name)
        folder = target / entry.name
        say(entry.describe())
        say(f"into {folder}; Ctrl-C stops the download, and the same command continues it")
        downloaded = download(entry.repository, folder, _ProgressLines())
    except UserError as error:
        raise DevError(str(error)) from error
    say(f"Complete and verified: {folder} ({downloaded / 1e9:.2f} GB downloaded)")


class _ProgressLines:
    """Shows progress: on a terminal as one line that changes, elsewhere as a line every _REPORT_S seconds."""

    def __init__(self) -> None:
        self.same_line = sys.stdout.isatty()
        self.reported_at = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        is_last = progress.done >= progress.total
        if self.same_line:
            print(f"\r{progress.describe()[:100]:100}", end="\n" if is_last else "", flush=True)
        elif is_last or time.monotonic() - self.reported_at >= _REPORT_S:
            self.reported_at = time.monotonic()
            say(f"  ... {progress.describe()}")


def _target(arguments: argparse.Namespace) -> Path:
    """The folder of the checkpoints. Raises: DevError where the given folder is not a ComfyUI."""
    return Path(arguments.to).expanduser().resolve() if arguments.to else models_folder(arguments) / "diffusers"


def models_folder(arguments: argparse.Namespace) -> Path:
    """The folder `models` of the ComfyUI that is named, of the one whose custom_nodes the clone is in, or else of the
    clone's own. Raises: DevError where what is named is not a ComfyUI."""
    checkout = getattr(arguments, "comfyui", None) or os.environ.get("COMFYUI_PATH")
    if checkout:
        named_by = "--comfyui" if "comfyui" in arguments else "COMFYUI_PATH"
        return comfyui.find_checkout(checkout, named_by) / "models"
    above = paths.ROOT.parent
    if above.name == "custom_nodes" and (above.parent / "main.py").is_file():
        return above.parent / "models"
    return paths.BASE / "models"


def interpreter(needed: Mapping[str, str]) -> Path:
    """A Python that has some modules: this one, or the venv's. needed: module -> its package. Raises: DevError."""
    if all(importlib.util.find_spec(module) for module in needed):
        return Path(sys.executable)
    paths.LOGS.mkdir(parents=True, exist_ok=True)
    python = environment.create_venv(paths.VENV, paths.LOGS)
    if subprocess.run([str(python), "-c", f"import {', '.join(needed)}"], capture_output=True, check=False).returncode:
        arguments = ["install", *needed.values(), "-c", str(paths.CONSTRAINTS)]
        environment.run_pip(python, arguments, " and ".join(needed.values()), paths.LOGS / "pip-downloads.log")
    return python


def _require_name(name: str) -> None:
    """Raises DevError for a wrong name."""
    try:
        repositories.find_repository(name)
    except UserError as error:
        raise DevError(str(error)) from error
