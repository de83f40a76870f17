"""List the published models, download checkpoints and ask the hubs what has moved, without ComfyUI."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cogvideox.errors import UserError, printable
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
    command.add_argument(
        "action",
        nargs="?",
        choices=("list", "fetch", "check"),
        default="list",
        help="list is the default; check asks the hubs whether sizes and hashes are still those of the list",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="the checkpoint to download")
    command.add_argument("--json", action="store_true", help="list as JSON: of a file its entry in `properties.models`")
    command.add_argument("--modelscope", action="store_true", help="download from ModelScope, not from Hugging Face")
    command.add_argument(
        "--to",
        metavar="DIR",
        help="the folder in which each checkpoint has a folder of its own; by default ComfyUI's models/diffusers",
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run `dev.py models`; returns the exit status. Raises: DevError."""
    target = _target(arguments)
    if arguments.action != "fetch" and arguments.name:
        raise DevError(
            f"`models {arguments.action}` takes no name. `models fetch {arguments.name}` downloads that checkpoint."
        )
    if arguments.action == "list":
        if arguments.json:
            print_json()
        else:
            list_models(target)
        return 0
    if arguments.action == "fetch":
        if not arguments.name:
            raise DevError("Name the checkpoint: `models fetch NAME`; `models` lists the names.")
        _require_name(arguments.name)
    python = interpreter(_NEEDED)
    if python != Path(sys.executable):
        name = [arguments.name] if arguments.name else []
        source = ["--modelscope"] if arguments.modelscope else []
        command = [str(python), str(paths.ROOT / "dev.py"), "models", arguments.action, *name, "--to", str(target)]
        return run_foreground([*command, *source], cwd=paths.ROOT)
    if arguments.action == "check":
        return check()
    fetch(arguments.name, target, repositories.MODELSCOPE if arguments.modelscope else repositories.HUGGING_FACE)
    return 0


def list_models(target: Path) -> None:
    """Print every checkpoint and whether it is in `target`."""
    print(printable(f"{'checkpoint':31} {'about':>6}  {'licence':17}  {'made for':37}  in {target}"))
    for entry in repositories.REPOSITORIES:
        state = describe_state(target / entry.name)
        print(f"{entry.name:31} {entry.gigabytes:3.0f} GB  {entry.licence:17}  {entry.made_for:37}  {state}")
    print("\nLicences: " + "; ".join(f"{name}: {url}" for name, url in (repositories.APACHE, repositories.COGVIDEOX)))
    print("Download one with: python3 dev.py models fetch NAME [--to DIR] [--modelscope]")
    print("\nSingle files, for a loader of one part each:")
    for file in repositories.FILES:
        what = ", ".join(file.families) or file.holds
        print(f"{file.name:51} {file.gigabytes:4.1f} GB  {what:24}  models/{file.directory:16}  {file.url}")


def print_json() -> None:
    """Print the table for programs. A file's entry is what a workflow has of it in `properties.models` of a node, from
    which ComfyUI offers its download."""
    checkpoints = {
        entry.name: dict(zip(repositories.SOURCES, map(entry.on, repositories.SOURCES)))
        for entry in repositories.REPOSITORIES
    }
    files = [file.as_property() for file in repositories.FILES]
    print(json.dumps({"checkpoints": checkpoints, "files": files}, indent=1))


def describe_state(folder: Path) -> str:
    """The state of a checkpoint's folder in a few words; "-" where there is no checkpoint."""
    manifest = manifest_files.read_manifest(folder)
    if manifest is not None:
        missing = manifest.missing(folder)
        if manifest.complete and not missing:
            return "complete"
        left = sum(file.size for file in missing) - manifest_files.partial_bytes(folder, missing)
        return f"partial, {left / 1e9:.1f} GB to go"
    if os.path.exists(folder / manifest_files.MANIFEST):
        return "partial"
    return "there, not verified" if os.path.isfile(folder / "model_index.json") else "-"


def check() -> int:
    """Ask the hubs for every entry of the table, and print what they say; returns the exit status.

    Raises: DevError where the environment names no hub.
    """
    from .check_models import check as ask_hubs  # needs requests

    findings = []
    try:
        for finding in ask_hubs(repositories.REPOSITORIES, repositories.FILES):
            findings.append(finding)
            print(finding.describe(), flush=True)
    except UserError as error:
        raise DevError(str(error)) from error
    wrong = [finding for finding in findings if finding.problems]
    where = "model_loaders/downloads/repositories.py"
    say(f"{len(wrong)} of {len(findings)} entries are not as in {where}." if wrong else f"All {len(findings)} are so.")
    return 1 if wrong else 0


def fetch(name: str, target: Path, source: str = repositories.HUGGING_FACE) -> None:
    """Download one checkpoint into its folder under `target`. Raises: DevError."""
    from cogvideox.model_loaders.downloads.fetch import download_checkpoint  # needs requests

    try:
        entry = repositories.find_repository(name)
        folder = target / entry.name
        say(entry.describe())
        say(f"into {folder}; Ctrl-C stops the download, and the same command continues it")
        downloaded = download_checkpoint(entry, folder, _ProgressLines(), source=source)
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
            print(f"\r{printable(progress.describe())[:118]:118}", end="\n" if is_last else "", flush=True)
        elif is_last or time.monotonic() - self.reported_at >= _REPORT_S:
            self.reported_at = time.monotonic()
            say(f"  ... {progress.describe()}")


def _target(arguments: argparse.Namespace) -> Path:
    """The folder of the checkpoints. Raises: DevError where the given folder is not a ComfyUI."""
    return (
        Path(os.path.realpath(paths.expanded(arguments.to))) if arguments.to else models_folder(arguments) / "diffusers"
    )


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
    install_missing(python, needed)
    return python


def install_missing(python: Path, needed: Mapping[str, str]) -> None:
    """Install packages into an environment that lacks one of them. needed: as `interpreter`. Raises: DevError."""
    if subprocess.run([str(python), "-c", f"import {', '.join(needed)}"], capture_output=True, check=False).returncode:
        arguments = ["install", *needed.values(), "-c", str(paths.CONSTRAINTS)]
        environment.run_pip(python, arguments, ", ".join(needed.values()), paths.LOGS / "pip-downloads.log")


def _require_name(name: str) -> None:
    """Raises DevError for a wrong name, before anything is installed."""
    try:
        repositories.find_repository(name)
    except UserError as error:
        raise DevError(str(error)) from error
