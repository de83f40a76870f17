"""Rewrite a workflow of ComfyUI-CogVideoXWrapper, and let ComfyUI find its models folder."""

import argparse
import json
import os
import tempfile
from pathlib import Path

from cogvideox.errors import UserError, printable
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import CHANGED, LEFT_OUT, REFUSED, Options, Work
from cogvideox.migration.workflow_format import parse_workflow
from cogvideox.migration.workflow_limits import MAX_BYTES
from cogvideox.small_files import read_small_text

from .errors import DevError, describe_full_disk, is_disk_full

SECTION = "cogvideox_wrapper"
_MODELS = "models/CogVideo"  # of the wrapper, in ComfyUI's folder
# A category of ComfyUI's -> the folder below _MODELS. The first has the checkpoints, and is the line that is needed.
_CATEGORIES = {
    "diffusers": "",
    "loras": "/loras",
    "controlnet": "/ControlNet",
    "vae": "/VAE",
    "diffusion_models": "/GGUF",
}
_TITLES = {
    CHANGED: "What is another value, or another file, than in the wrapper:",
    LEFT_OUT: "What is left out:",
    REFUSED: "What has no counterpart:",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `dev.py migrate`."""
    command.add_argument("workflow", type=Path, metavar="WORKFLOW", help="a .json file, as saved or in API format")
    command.add_argument("--out", type=Path, metavar="FILE", help="by default WORKFLOW_migrated.json, beside it")
    command.add_argument("--overwrite", action="store_true", help="replace FILE, which may be WORKFLOW itself")
    command.add_argument(
        "--leave-out", action="store_true", help="write the workflow without what has no counterpart, where that works"
    )
    command.add_argument(
        "--extra-model-paths",
        type=Path,
        metavar="YAML",
        help=f"ComfyUI's extra_model_paths.yaml: {_MODELS} is added to it, and its checkpoints are used",
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run `dev.py migrate`; returns the exit status. Raises: DevError."""
    source: Path = arguments.workflow
    target: Path = arguments.out or source.with_name(f"{source.stem}_migrated.json")
    yaml: Path | None = arguments.extra_model_paths
    options = Options(wrapper_folder=yaml is not None, leave_out=arguments.leave_out)
    try:
        document, work = migrate_workflow(parse_workflow(_read(source)), options)
    except UserError as error:
        raise DevError(f"{source} is not migrated. {error}") from error
    _print_report(work)
    if document is None:
        hint = "" if options.leave_out else " --leave-out writes it without, where that is possible."
        raise DevError(f"{source} is not migrated, and nothing is written.{hint}")
    _check_target(source, target, arguments.overwrite)
    lines = None if yaml is None else _extended(yaml)
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    except RecursionError as error:  # written less deep than it is read
        raise DevError(f"{source} is not migrated: it is nested too deeply.") from error
    _write(target, text)
    print(f"Written: {target}")
    if yaml is not None and lines is not None:
        _write(yaml.resolve(), lines)
        print(f"Written: {yaml}, section {SECTION}. Restart ComfyUI.")
    return 0


def _read(path: Path) -> str:
    try:
        return read_small_text(path, MAX_BYTES)
    except UnicodeDecodeError as error:
        raise DevError(f"{path} is not text in UTF-8. Save the workflow as JSON with ComfyUI.") from error
    except OSError as error:
        raise DevError(f"{path} cannot be read: {error.strerror or error}. Name a workflow's file.") from error


def _check_target(source: Path, target: Path, overwrites: bool) -> None:
    if target.exists() and not overwrites:
        what = "is the workflow itself" if target.resolve() == source.resolve() else "exists already"
        raise DevError(f"{target} {what}. Name another file with --out, or add --overwrite to replace it.")


def _print_report(work: Work) -> None:
    for kind, title in _TITLES.items():
        lines = work.of(kind)
        if lines:
            print(title)
            for line in lines:
                print(f"  - {printable(line)}")


def _extended(yaml: Path) -> str | None:
    """The text of extra_model_paths.yaml with the wrapper's folders; None where it has them. Raises: DevError."""
    home = yaml.resolve().parent
    if not (home / _MODELS).is_dir():
        raise DevError(
            f"There is no {_MODELS} beside {yaml}. Name the extra_model_paths.yaml in ComfyUI's own folder; it is made "
            "where it is not there yet."
        )
    text = _read(yaml) if yaml.exists() else ""
    if any(line.startswith(f"{SECTION}:") for line in text.splitlines()):
        return None
    # Without a base_path, a path counts from the folder of this file (ComfyUI's utils/extra_config.py).
    entries = [
        f"    {category}: {_MODELS}{folder}"
        for category, folder in _CATEGORIES.items()
        if (home / f"{_MODELS}{folder}").is_dir()
    ]
    before = text if not text or text.endswith("\n") else f"{text}\n"
    return f"{before}{SECTION}:  # of ComfyUI-CogVideoXWrapper\n" + "\n".join(entries) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file in UTF-8, complete or not at all. Raises: DevError.

    complete_file.py needs a package, and this command runs before any is installed.
    """
    part = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            # A lone surrogate in a stranger's text is no character of UTF-8.
            file.write(text.encode("utf-8", "replace").decode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        part.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(part, path)
        part = None
    except OSError as error:
        advice = describe_full_disk(path) if is_disk_full(error) else "Name another file with --out."
        raise DevError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
