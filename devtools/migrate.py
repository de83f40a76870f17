"""Rewrite a workflow of ComfyUI-CogVideoXWrapper, and let ComfyUI find its models folder."""

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path

from cogvideox.errors import UserError, printable
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options, Work, report_lines
from cogvideox.migration.workflow_format import parse_workflow
from cogvideox.migration.workflow_limits import MAX_BYTES
from cogvideox.system.small_files import read_small_text

from .errors import DevError, describe_full_disk, is_disk_full
from .wrapper_folder import MODELS, SECTION, Extension, extend, folder_lines


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
        help=f"ComfyUI's extra_model_paths.yaml: {MODELS} is added to it, and its checkpoints are used",
    )


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run `dev.py migrate`; returns the exit status. Raises: DevError."""
    source: Path = arguments.workflow
    yaml: Path | None = arguments.extra_model_paths
    options = Options(wrapper_folder=yaml is not None, leave_out=arguments.leave_out)
    try:
        document, work = migrate_workflow(parse_workflow(_read(source, "a workflow, which is a .json file")), options)
    except UserError as error:
        raise DevError(f"{source} is not migrated. {error}") from error
    if document is None:
        _print_report(work)
        hint = "" if options.leave_out else " --leave-out writes it without, where that is possible."
        raise DevError(f"{source} is not migrated, and nothing is written.{hint}")
    target: Path = arguments.out or source.with_name(f"{source.stem}_migrated.json")
    _check_target(source, target, arguments.overwrite)
    extension = None if yaml is None else _extension(yaml, target)
    _print_report(work)
    _write(target, json.dumps(document, indent=2, ensure_ascii=False) + "\n", "Name another file with --out.")
    print(printable(f"Written: {target}"))
    if yaml is not None and extension is not None:
        _write_extension(yaml, extension)
    return 0


def _read(path: Path, what: str) -> str:
    """The text of a file. what: of which kind it has to be. Raises: DevError."""
    try:
        if path.is_dir():
            raise DevError(f"{path} is a folder. Name {what}.")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DevError(f"{path} has {size >> 20} MiB, more than the {MAX_BYTES >> 20} that are read. Name {what}.")
        return read_small_text(path, MAX_BYTES)
    except UserError as error:
        raise DevError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DevError(f"{path} is not text in UTF-8. Name {what}.") from error
    except OSError as error:
        raise DevError(f"{path} cannot be read: {error.strerror or error}. Name {what}.") from error


def _check_target(source: Path, target: Path, overwrites: bool) -> None:
    """Raises: DevError for a file that must not or cannot be written."""
    another = "Name another file with --out"
    try:
        # Links in a circle are an error here; Path.resolve() raises none from Python 3.13 on.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(target)
        if target.is_dir():
            raise DevError(f"{target} is a folder. {another}.")
        if os.path.exists(target) and not os.path.isfile(target):
            raise DevError(f"{target} is a device or a pipe, and no file takes its place. {another}.")
        if os.path.lexists(target) and not overwrites:
            what = "is the workflow itself" if target.resolve() == source.resolve() else "exists already"
            raise DevError(f"{target} {what}. {another}, or add --overwrite to replace it.")
        if not target.parent.is_dir():
            raise DevError(f"{target} cannot be written: there is no folder {target.parent}. Make it, or name another.")
    except OSError as error:  # a name that is too long; links in a circle
        raise DevError(f"{target} cannot be written: {error.strerror or error}. {another}.") from error


def _print_report(work: Work) -> None:
    for line in report_lines(work, str):
        print(line)


def _extension(yaml: Path, target: Path) -> Extension:
    """What is to be written to extra_model_paths.yaml. Raises: DevError."""
    if os.path.isdir(yaml):
        raise DevError(f"{yaml} is a folder. Name the extra_model_paths.yaml in ComfyUI's own folder.")
    lines = folder_lines(yaml)
    if os.path.realpath(yaml) == os.path.realpath(target):
        raise DevError(f"{target} is the file of --extra-model-paths as well. Name another file with --out.")
    text = _read(yaml, "ComfyUI's extra_model_paths.yaml") if os.path.lexists(yaml) else ""
    return extend(yaml, text, lines)


def _write_extension(yaml: Path, extension: Extension) -> None:
    if extension.text is not None:
        _write(yaml, extension.text, "Add the section by hand, as docs/migration.md shows it.")
        print(printable(f"Written: {yaml}, section {SECTION}. Restart ComfyUI."))
        return
    print(printable(f"{yaml} has a section {SECTION} already, which stays as it is."))
    if extension.lacking:
        print("These lines of it are missing: add them, and restart ComfyUI.")
        for line in extension.lacking:
            print(f"    {line}")
    if extension.differing:
        print("It does not name these folders, or in a way that is not read here. Where models are to be found in them")
        print("too, add the folder to the category that it has already, and restart ComfyUI.")
        for line in extension.differing:
            print(f"    {line}")


def _write(path: Path, text: str, advice: str) -> None:
    """Write a file in UTF-8, complete or not at all, through a link to the file itself. Raises: DevError.

    system/complete_file.py needs a package, and this command runs before any is installed.
    """
    part, place = None, Path(os.path.realpath(path))
    # A lone surrogate in a stranger's text is no character of UTF-8. Bytes, because Windows would change line ends.
    data = text.encode("utf-8", "replace")
    try:
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".migrated.", suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(place.stat().st_mode & 0o777 if place.exists() else 0o644)
        os.replace(part, place)
        part = None
    except OSError as error:
        if is_disk_full(error):
            advice = describe_full_disk(path)
        raise DevError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
