"""The section of ComfyUI's extra_model_paths.yaml through which it finds the wrapper's models folder.

Text in, text out, without a YAML library: the command runs before any package is installed.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from cogvideox.errors import quoted

from .errors import DevError

SECTION = "cogvideox_wrapper"
MODELS = "models/CogVideo"  # of the wrapper, in ComfyUI's folder
# A category of ComfyUI's -> the folder below MODELS. The first has the checkpoints, and is the line that is needed.
_CATEGORIES = {
    "diffusers": "",
    "loras": "/loras",
    "controlnet": "/ControlNet",
    "vae": "/VAE",
    "diffusion_models": "/GGUF",
}
_LINE_END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what YAML 1.1 takes for one
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")  # YAML 1.1, 5.1
# What may follow a section's name in its line: nothing, or a comment; null; a mapping in braces; an anchor or a tag of
# the mapping below it, or an alias of one.
_SECTION_VALUE = re.compile(r"(?:#|(?:~|null|Null|NULL|\{.*\}|[&!*]\S+)\s*(?:$|\s#))|$")
_KEY = re.compile(r"""(?:'([^']+)'|"([^"\\]+)"|([^\s#&*!|>'"%@`{}\[\],?:-][^:#'"{}\[\],]*?))\s*:(?:\s|$)""")


@dataclass(frozen=True)
class Extension:
    """text: of the file with the section, None where it has one. lacking: the lines that its own section does not have,
    and that the folders on this disk need. differing: those whose category it has, without their folder as far as can
    be read: a second line of the same category would take the place of the first."""

    text: str | None
    lacking: list[str]
    differing: list[str] = field(default_factory=list)


def folder_lines(yaml: Path) -> list[str]:
    """ "category: folder" for each folder of the wrapper's that there is. Raises DevError where there is none."""
    # ComfyUI counts a path from the folder of this file, links not followed (its utils/extra_config.py).
    home = Path(os.path.abspath(yaml)).parent
    if not os.path.isdir(home / MODELS):
        by_hand = _section(["diffusers: the whole path of the wrapper's folder CogVideo"])
        raise DevError(
            f"There is no {MODELS} beside {yaml}. Name the extra_model_paths.yaml in ComfyUI's own folder; it is made "
            f"where it is not there yet. If your models are elsewhere, add this to it by hand:\n{by_hand}"
        )
    there = {name: MODELS + folder for name, folder in _CATEGORIES.items() if (home / (MODELS + folder)).is_dir()}
    return [f"{name}: {folder}" for name, folder in there.items()]


def extend(yaml: Path, text: str, lines: list[str]) -> Extension:
    """The file `text`, which may be empty, with the section. Everything that is in it stays as it is, comments and line
    ends included. Raises DevError for a file that is not ComfyUI's, where a section at its end would be damage."""
    if damage := _NOT_PRINTABLE.search(text):
        raise _refuse(yaml, len(_LINE_END.split(text[: damage.start()])), "a character that YAML does not have", lines)
    found, sections = _LINE_END.split(text), {}
    for number, line in enumerate(found):
        is_inside = line[:1].isspace() and sections
        if is_inside or not _is_content(line) or (not sections and re.match(r"---\s*(#|$)", line)):
            continue
        match = _KEY.match(line)
        if match is None or not _SECTION_VALUE.match(line[match.end() :].lstrip()):
            raise _refuse(yaml, number + 1, quoted(line.strip()), lines)
        sections[number] = next(filter(None, match.groups()))
    if SECTION in sections.values():
        begin = next(number for number, name in sections.items() if name == SECTION)
        end = next((number for number in sections if number > begin), len(found))
        return _compare(yaml, found[begin], found[begin + 1 : end], lines)
    line_end = "\r\n" if "\r\n" in text else "\n"
    before = text if not text or text.endswith(("\n", "\r")) else text + line_end
    return Extension(before + _section(lines, line_end) + line_end, [])


def _refuse(yaml: Path, line: int, found: str, lines: list[str]) -> DevError:
    return DevError(
        f"{yaml} is not written to: in its line {line} ({found}) no section begins, as in ComfyUI's file. Name that "
        f"file, or add this to it by hand:\n{_section(lines)}"
    )


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _section(lines: list[str], line_end: str = "\n") -> str:
    return line_end.join((f"{SECTION}:  # of ComfyUI-CogVideoXWrapper", *(f"    {line}" for line in lines)))


def _compare(yaml: Path, heading: str, own: list[str], lines: list[str]) -> Extension:
    """What a section of the user's does not have. With a base_path its folders count from elsewhere, and nothing is
    said of it."""
    given = _folders_in(own)
    if "base_path" in given:
        return Extension(None, [])
    # In braces, by an alias or by a merge, a category may be given that no line of the section names.
    is_elsewhere = "<<" in given or bool(re.match(r"\s*[{*]", _KEY.sub("", heading, count=1)))
    home = os.path.abspath(yaml.parent)
    lacking, differing = [], []
    for line in lines:
        category, folder = line.split(": ", 1)
        if category not in given:
            (differing if is_elsewhere else lacking).append(line)
        elif _place(home, folder) not in [_place(home, path) for path in given[category]]:
            differing.append(line)
    return Extension(None, lacking, differing)


def _folders_in(own: list[str]) -> dict[str, list[str]]:
    """Category -> its folders, one or a block of them, in the lines below a section's name."""
    found: dict[str, list[str]] = {}
    category, depth = "", 0
    for line in filter(_is_content, own):
        indent, text = len(line) - len(line.lstrip()), line.lstrip()
        match = _KEY.match(text) if not found or indent <= depth else None
        if match is None:
            found.setdefault(category, []).append(text)
            continue
        category, depth = next(filter(None, match.groups())), indent
        value = text[match.end() :]
        # "|" and ">" begin a block: its folders are the lines below.
        found[category] = [] if re.match(r"\s*(?:[|>][-+\d]*\s*)?(?:#|$)", value) else [value]
    return found


def _place(home: str, path: str) -> str:
    """A folder as ComfyUI finds it, counted from `home`, in one spelling."""
    plain = re.sub(r"\s+#.*|['\"]", "", path.replace("\\", "/")).strip()
    return os.path.normcase(os.path.normpath(os.path.join(home, plain)))
