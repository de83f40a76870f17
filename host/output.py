"""New files in ComfyUI's output folder, numbered as ComfyUI's own save nodes do."""

import re
import time
from pathlib import Path

import folder_paths

from ..complete_file import remove_unfinished
from ..errors import UserError, quoted
from .file_names import check_file_name
from .inside import is_inside


def check_output_prefix(prefix: str, example: str = "loras/cogvideox") -> str:
    """`prefix` with / between folders. example: a valid prefix, for messages.

    Raises UserError for a prefix that leads out of the output folder, or that cannot be a file's name.
    """
    plain = check_file_name(_with_date(prefix), example)
    # A link in the output folder may lead out of it. get_save_image_path refuses that as well, but with a bare
    # Exception that does not say what to do.
    if not is_inside((_root() / plain).parent, _root()):
        raise UserError(f"{quoted(prefix)!r} leads out of ComfyUI's output folder. Use a prefix such as {example}.")
    return plain


def new_output_path(prefix: str, suffix: str, example: str = "loras/cogvideox") -> Path:
    """The next free `<output>/<prefix>_00001_<suffix>`, counted as ComfyUI's own save nodes count.

    What killed processes have left in the output folder is deleted.

    Raises UserError as check_output_prefix does.
    """
    plain = check_output_prefix(prefix, example)
    remove_unfinished(_root(), below=True)
    # get_save_image_path also fills in %year% and the like, and makes the subfolder.
    folder, filename, counter, _, _ = folder_paths.get_save_image_path(plain, str(_root()))
    return Path(folder) / f"{filename}_{counter:05}_{suffix}"


def _with_date(prefix: str) -> str:
    """`prefix` with %date:yyyy-MM-dd% and the like filled in, as ComfyUI's frontend does for its own save nodes
    (formatDate in ComfyUI_frontend, src/utils/formatUtil.ts). For nodes of packs it does not.
    """
    now = time.localtime()
    values = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(match: re.Match[str]) -> str:
        letters = match[0]
        if letters.startswith("y"):
            return str(now.tm_year) if len(letters) == 4 else f"{now.tm_year % 100:02}"
        return f"{values[letters[0]]:0{len(letters)}}"

    def date(match: re.Match[str]) -> str:
        return re.sub("d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy", part, match[1])

    return re.sub("%date:([^%/]{1,40})%", date, prefix) if isinstance(prefix, str) else prefix


def _root() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def output_subfolder(*names: str) -> Path:
    """A folder in ComfyUI's output folder; it is not made. Raises UserError where a link leads out of that."""
    folder = _root().joinpath(*names)
    if not is_inside(folder, _root()):
        raise UserError(f"{folder} is a link that leads out of ComfyUI's output folder. Delete it.")
    return folder
