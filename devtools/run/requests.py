"""What a person asks for: the command line, and a file of prompts. Standard library only."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError, quoted
from cogvideox.system.inside import is_inside, is_spelled_inside
from cogvideox.system.small_files import read_small_text
from cogvideox.video_limits import check_size

from ..errors import DevError
from ..paths import expanded
from .options import OPTIONS, TEXTS, Option

_MAX_FILE_BYTES = 64 << 20
_MAX_PROMPTS = 100_000  # a request takes about a kilobyte, and a line of the file may be one letter
# What a message calls a value of JSON that cannot be an option's.
_JSON_KINDS = {dict: "an object", list: "a list", type(None): "null", bool: "true or false", int: "a number"}
FILES = {"image": "picture", "video": "video"}  # the options that name a file of the person's own -> what it is


@dataclass(frozen=True)
class Request:
    """One clip. values: those of OPTIONS that were given. own: those of them that its line in a file gives.

    source: the line, such as "line 3 of prompts.txt"; "" for the command line. folder: what its paths start from.
    """

    values: Mapping[str, Any]
    own: frozenset[str] = field(default_factory=frozenset)
    source: str = ""
    folder: Path = Path()

    def label(self, name: str) -> str:
        """How a message calls an option."""
        return f"{name} in {self.source}" if name in self.own else f"--{name.replace('_', '-')}"

    def file(self, name: str) -> Path | None:
        """The path that the option image or video names."""
        written = self.values.get(name)
        if written is None:
            return None
        path = expanded(written)
        return self.folder / path if name in self.own else path


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `dev.py run` that say what is made."""
    add_options(command, OPTIONS)
    command.add_argument("--prompts", metavar="FILE", type=Path, help="a prompt in each line, or JSON with options")
    add_media_folder(command, "--prompts")


def add_options(command: argparse._ActionsContainer, names: Iterable[str]) -> None:
    """Options of one clip, as text: what is wrong with it is said in our own words."""
    for name in names:
        option = OPTIONS[name]
        command.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=option.metavar,
            help=option.help.replace("%", "%%"),
            action="append" if option.repeats else "store",
        )


def add_media_folder(command: argparse.ArgumentParser, prompts: str) -> None:
    """prompts: how the command line calls the file of prompts."""
    command.add_argument(
        "--media-folder",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help=f"lines of {prompts} may name pictures and videos in this folder too, not only in that of the file; may "
        "be given several times",
    )


def read_requests(arguments: argparse.Namespace) -> list[Request]:
    """The clips that the command line asks for. Raises: DevError for what can be seen without opening pictures."""
    common = read_common(arguments)
    if arguments.prompts is None:
        requests = [common]
    elif "prompt" in common.values:
        raise DevError("--prompt makes one video and --prompts one for each line of a file: give one of the two.")
    else:
        folder = expanded(arguments.prompts).parent
        requests = [read_line(line, source, folder, common) for line, source in prompt_lines(arguments.prompts)]
        if not requests:
            raise DevError(f"--prompts names {arguments.prompts}, in which there is no prompt: write one in each line.")
    check_media_folders(arguments.media_folder)
    for request in requests:
        check_request(request, arguments.media_folder)
    return requests


def read_common(arguments: argparse.Namespace) -> Request:
    """What the command line says of every clip. Raises: DevError."""
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name, None) is not None}
    return Request({name: _read(name, value, f"--{name.replace('_', '-')}") for name, value in given.items()})


def check_media_folders(folders: Iterable[Path]) -> None:
    """Raises: DevError."""
    for folder in folders:
        if not os.path.isdir(expanded(folder)):
            raise DevError(f"--media-folder names {folder}, which is not a folder: give one that is there.")


def _check_shape(request: Request) -> None:
    """Raises: DevError for a size and a length that no model can make."""
    width, height = request.values.get("size", (16, 16))
    frames = request.values.get("frames", 1)
    try:
        check_size(width, height, frames)
    except UserError as error:
        labels = [request.label(name) for name in ("size", "frames") if name in request.values]
        raise DevError(f"{' and '.join(labels)}: {error}") from error


def check_request(request: Request, media_folders: Sequence[Path]) -> None:
    """Raises: DevError for what one clip lacks, and for files that are not there or may not be named."""
    if "prompt" not in request.values:
        place = f"{_begin(request.source)} has no prompt" if request.source else "There is no prompt"
        raise DevError(f"{place}: give one with {'its key prompt' if request.source else '--prompt or --prompts'}.")
    for name, kind in FILES.items():
        path = request.file(name)
        if path is not None and name in request.own:
            check_place(request.label(name), request.values[name], path, request.folder, media_folders)
        if path is not None:
            check_is_file(request.label(name), request.values[name], path, kind)
    _check_shape(request)
    if "image" in request.values and "video" in request.values:
        raise DevError(f"{request.label('image')} and {request.label('video')} are given: a clip takes one of the two.")


def check_is_file(label: str, written: str, path: Path, kind: str) -> None:
    """Raises: DevError. label: what names the path; written: how. kind: of the file that it should be."""
    # os.path, because pathlib raises where a path is too long, or its folder may not be read.
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no file" if os.path.exists(path) else "not there"
        raise DevError(f"{label} names {written}, which is {found}: give a {kind} file.")


def check_place(label: str, written: str, path: Path, folder: Path, media_folders: Sequence[Path] = ()) -> None:
    """Raises: DevError where a line of a file names something outside of the folders that it may take files from.

    label, written, path: as check_is_file has them. folder: that of the file whose line it is.

    Such a file may come from a stranger, and what it names is uploaded to a server: a picture of an identity card, in
    the worst case. What the command line itself names is the person's own choice.
    """
    allowed = [folder, *map(expanded, media_folders)]
    # The spelling first: to look up //server/share on Windows calls that server.
    if any(is_spelled_inside(path, folder) for folder in allowed) and any(is_inside(path, at) for at in allowed):
        return
    raise DevError(
        f"{label} names {quoted(written)}, which is not in the folder of that file: what it names is uploaded, and it "
        "may be a stranger's. Put the file beside it, or allow its folder with --media-folder DIR."
    )


def prompt_lines(file: Path, option: str = "--prompts") -> Iterator[tuple[str, str]]:
    """(the line, what a message calls it) of each line of a file but the empty ones and those that begin with #.

    option: what names the file. Raises: DevError.
    """
    try:
        text = read_small_text(expanded(file), _MAX_FILE_BYTES)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DevError(f"Line {line} of {file} is not UTF-8: save the file as UTF-8.") from error
    except UserError as error:
        raise DevError(f"{option}: {error}") from error
    except OSError as error:
        raise DevError(f"{option} names {file}, which cannot be read: {error.strerror or error}.") from error
    # Not splitlines, which also splits at characters that editors count as part of a line.
    count = 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            count += 1
            if count > _MAX_PROMPTS:
                raise DevError(f"{option} names {file}, which has more than {_MAX_PROMPTS} prompts: divide it.")
            yield line, f"line {number} of {file}"


def read_line(line: str, source: str, folder: Path, common: Request) -> Request:
    """The clip of a line: a prompt, or an object in JSON. Raises: DevError."""
    found = read_object(line, source)
    if found is None:
        return Request({**common.values, "prompt": line}, frozenset({"prompt"}), source, folder)
    return read_clip(found, source, folder, common)


def read_object(line: str, source: str) -> dict[str, Any] | None:
    """The object that a line has in JSON; None for a line that is a prompt. Raises: DevError."""
    if not line.startswith("{"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DevError(
            f"{_begin(source)} begins with {{ and is not JSON: {error}. Write an object in one line, such as "
            '{"prompt": "a star", "seed": 2}, or the prompt alone.'
        ) from error


def read_clip(found: Mapping[str, Any], source: str, folder: Path, common: Request) -> Request:
    """The clip of an object whose keys are names of OPTIONS. Raises: DevError."""
    unknown = [quoted(str(key)) for key in found if key not in OPTIONS]
    if unknown:
        raise DevError(
            f"{_begin(source)} has {', '.join(unknown)}, which is not an option; there are: {', '.join(OPTIONS)}."
        )
    own = {name: _read_json(name, value, f"{name} in {source}") for name, value in found.items()}
    return Request({**common.values, **own}, frozenset(own), source, folder)


def _begin(source: str) -> str:
    """A source at the beginning of a sentence."""
    return source[:1].upper() + source[1:]


def _read_json(name: str, value: Any, label: str) -> Any:
    """The value of an option, from JSON. Raises: DevError."""
    option = OPTIONS[name]
    if not isinstance(value, list):
        return _read(name, _as_text(value, option, label), label)
    if not option.repeats:
        raise DevError(f"{label} is a list: give one value.")
    return _read(name, [_as_text(item, option, f"An entry of {label}") for item in value], label)


def _as_text(value: Any, option: Option, label: str) -> str:
    """A single value of JSON as the command line would have it. Raises: DevError for lists, objects and null."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (list, dict)) or option.read in TEXTS:
        expected = "a text in quotes" if option.read in TEXTS else "one value"
        kind = _JSON_KINDS.get(type(value), "a number")
        raise DevError(f"{label} is {kind}: give {expected}, or leave the key out.")
    if isinstance(value, bool):
        return "on" if value else "off"
    return json.dumps(value)


def _read(name: str, value: str | list[str], label: str) -> Any:
    """The value of an option. Raises: DevError."""
    option = OPTIONS[name]
    texts = value if isinstance(value, list) else [value]
    values = []
    for text in texts:
        try:
            values.append(option.read(text))
        except ValueError as error:
            raise DevError(f"{label} is {quoted(text)!r}: {error}.") from error
    return tuple(values) if option.repeats else values[0]
