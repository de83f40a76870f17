"""New files in ComfyUI's output folder, numbered as ComfyUI's own save nodes do."""

import os
from pathlib import Path

import folder_paths

from ..errors import UserError


def new_output_path(prefix: str, suffix: str, example: str = "loras/cogvideox") -> Path:
    """The next free `<output>/<prefix>_00001_<suffix>`, counted as ComfyUI's own save nodes count.

    example: a valid prefix, for messages.

    Raises UserError for a prefix that leads out of the output folder or contains no file name.
    """
    name = os.path.basename(os.path.normpath(prefix)) if isinstance(prefix, str) and prefix.strip() else ""
    if name in ("", ".", "..") or "\0" in prefix or prefix.replace("\\", "/").endswith("/"):
        raise UserError(f"{prefix!r} does not contain a file name. Use a prefix such as {example}.")
    # get_save_image_path refuses a prefix that leads out of the folder as well, but with a bare Exception that does not
    # say what to do.
    root = Path(folder_paths.get_output_directory()).resolve()
    subfolder = os.path.dirname(os.path.normpath(prefix))
    if not (root / subfolder).resolve().is_relative_to(root):
        raise UserError(f"{prefix!r} leads out of ComfyUI's output folder. Use a prefix such as {example}.")
    # get_save_image_path also fills in %year% and the like, and makes the subfolder.
    folder, filename, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    return Path(folder) / f"{filename}_{counter:05}_{suffix}"
