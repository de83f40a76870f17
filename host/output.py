"""New files in ComfyUI's output folder, numbered as ComfyUI's own save nodes do."""

from pathlib import Path

import folder_paths

from ..errors import UserError, quoted
from .file_names import check_file_name


def check_output_prefix(prefix: str, example: str = "loras/cogvideox") -> str:
    """`prefix` with / between folders. example: a valid prefix, for messages.

    Raises UserError for a prefix that leads out of the output folder, or that cannot be a file's name.
    """
    plain = check_file_name(prefix, example)
    # A link in the output folder may lead out of it. get_save_image_path refuses that as well, but with a bare
    # Exception that does not say what to do.
    root = _root()
    if not (root / plain).parent.resolve().is_relative_to(root):
        raise UserError(f"{quoted(prefix)!r} leads out of ComfyUI's output folder. Use a prefix such as {example}.")
    return plain


def new_output_path(prefix: str, suffix: str, example: str = "loras/cogvideox") -> Path:
    """The next free `<output>/<prefix>_00001_<suffix>`, counted as ComfyUI's own save nodes count.

    Raises UserError as check_output_prefix does.
    """
    plain = check_output_prefix(prefix, example)
    # get_save_image_path also fills in %year% and the like, and makes the subfolder.
    folder, filename, counter, _, _ = folder_paths.get_save_image_path(plain, str(_root()))
    return Path(folder) / f"{filename}_{counter:05}_{suffix}"


def _root() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()
