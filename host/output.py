"""New files in ComfyUI's output folder, numbered as ComfyUI's own save nodes do."""

from pathlib import Path

import folder_paths

from ..complete_file import remove_unfinished
from ..errors import UserError, quoted
from .file_names import check_file_name
from .inside import is_inside
from .placeholders import fill_in_dates, stand_in


def check_output_prefix(prefix: str, example: str = "loras/cogvideox") -> str:
    """`prefix` with / between folders, dates filled in, and a 0 for each value that is known only in a run.

    example: a valid prefix, for messages.

    Raises UserError for a prefix that leads out of the output folder, or that cannot be a file's name.
    """
    return _checked(stand_in(prefix), example)


def new_output_path(prefix: str, suffix: str, example: str = "loras/cogvideox") -> Path:
    """The next free `<output>/<prefix>_00001_<suffix>`, counted as ComfyUI's own save nodes count.

    prefix: as placeholders.fill_in gives it. What killed processes have left in the output folder is deleted.

    Raises UserError as check_output_prefix does, and where the folder cannot be made.
    """
    plain = _checked(fill_in_dates(prefix), example)
    remove_unfinished(_root(), below=True)
    # get_save_image_path also fills in %width% and %height%, and makes the subfolder.
    try:
        folder, filename, counter, _, _ = folder_paths.get_save_image_path(plain, str(_root()))
    except OSError as error:
        raise UserError(
            f"There is no folder for {quoted(prefix)!r}: {error}. Check the permissions of ComfyUI's output folder, or "
            "choose another filename_prefix."
        ) from error
    return Path(folder) / f"{filename}_{counter:05}_{suffix}"


def _checked(prefix: str, example: str) -> str:
    plain = check_file_name(prefix, example)
    # A link in the output folder may lead out of it. get_save_image_path refuses that as well, but with a bare
    # Exception that does not say what to do.
    if not is_inside((_root() / plain).parent, _root()):
        raise UserError(f"{quoted(prefix)!r} leads out of ComfyUI's output folder. Use a prefix such as {example}.")
    return plain


def _root() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def output_subfolder(*names: str) -> Path:
    """A folder in ComfyUI's output folder; it is not made. Raises UserError where a link leads out of that."""
    folder = _root().joinpath(*names)
    if not is_inside(folder, _root()):
        raise UserError(f"{folder} is a link that leads out of ComfyUI's output folder. Delete it.")
    return folder
