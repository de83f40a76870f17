"""CogVideoX for ComfyUI, exactly as its reference implementation runs it.

ComfyUI imports this file at start, under the folder's path as its name, and asks comfy_entrypoint for the nodes;
nothing here loads ComfyUI or diffusers. Everywhere else this folder is the package `cogvideox`.

Where the nodes cannot be loaded, ComfyUI starts without them, and one sentence says why: host/start_check.py. This file
alone has to run in any Python and any ComfyUI, whole or damaged.
"""

import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import CogVideoXExtension

PACKAGE = "cogvideox"
LOWEST_PYTHON = (3, 10)
_FOLDER = Path(__file__).parent
_USED_AS = "_cogvideox_used_as"  # an attribute of the package: the folder by whose name ComfyUI has loaded its nodes


def _other_copy() -> "Path | None":
    """The folder of another copy of this pack whose nodes ComfyUI has loaded."""
    known = sys.modules.get(PACKAGE)
    file = getattr(known, "__file__", None)
    if file is None or not hasattr(known, "comfy_entrypoint") or f"{PACKAGE}.nodes" not in sys.modules:
        return None
    if Path(file).resolve() != Path(__file__).resolve():
        return Path(file).parent
    # The same folder a second time: through another link, or as ComfyUI loads a pack again.
    used = getattr(known, _USED_AS, _FOLDER)
    return None if used == _FOLDER else used


# The page would otherwise get the scripts and help pages of a copy whose nodes are not used.
WEB_DIRECTORY = None if __name__ != PACKAGE and _other_copy() else "./web"


async def comfy_entrypoint() -> "CogVideoXExtension":
    """ComfyUI's V3 entry point. Raises an error whose text is for the user; ComfyUI puts it into its log."""
    if sys.version_info < LOWEST_PYTHON:
        raise RuntimeError(_python_too_old())
    other = _other_copy()
    if other is not None:
        raise _installed_twice(other)
    package = _package()
    name = package.__name__
    try:
        start_check = importlib.import_module(".host.start_check", name)
    except Exception as error:
        _forget(name)
        raise RuntimeError(
            f"The folder of CogVideoX's nodes, {_FOLDER}, is incomplete or mixes two versions "
            f"({type(error).__name__}: {error}). Install it again."
        ) from error
    try:
        extension = importlib.import_module(".nodes", name).CogVideoXExtension()
        _check_origin(name)
    except Exception as error:
        logging.debug("CogVideoX's nodes could not be imported.", exc_info=True)
        _forget(name)
        raise _told(start_check, start_check.import_error(error, _FOLDER)) from error
    setattr(package, _USED_AS, _FOLDER)
    start_check.serve_notices()
    start_check.check_install(_FOLDER)
    return extension


def _package() -> ModuleType:
    """This folder under its proper name, whatever ComfyUI calls it.

    Classes then exist once in the process, for nodes and for scripts that import `cogvideox`, and an error shows as
    `cogvideox.errors.…` instead of as a path. Where that name is taken by another folder, everything works under the
    name that ComfyUI has given.
    """
    ours = sys.modules[__name__]
    if __name__ == PACKAGE:
        return ours
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(PACKAGE, __file__, submodule_search_locations=[str(_FOLDER)])
        assert spec is not None and spec.loader is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    known = sys.modules[PACKAGE]
    if known.__file__ is not None and Path(known.__file__).resolve() == Path(__file__).resolve():
        return known
    logging.warning(f"Another package is called {PACKAGE} already ({known.__file__}): {__file__} works under its path.")
    return ours


def _installed_twice(other: Path) -> Exception:
    """What this copy is left out with. other: the folder of the copy that is used, maybe an older one."""
    try:
        start_check = importlib.import_module(f"{PACKAGE}.host.start_check")
        return _told(start_check, start_check.installed_twice(other, _FOLDER))
    except ImportError:
        return RuntimeError(
            f"CogVideoX's nodes are installed twice: ComfyUI uses {other} and leaves out {_FOLDER}. Delete one of the "
            "two folders and start ComfyUI again."
        )


def _told(start_check: ModuleType, error: Exception) -> Exception:
    """`error`, which ComfyUI puts into the log, after the browser has been given it as well."""
    start_check.tell(str(error), in_log=False)
    return error


def _check_origin(name: str) -> None:
    """Raises ModuleNotFoundError for a module that is not in this folder: where another clone is installed with pip,
    Python takes from there what is missing here."""
    folder, below = str(Path(str(sys.modules[name].__file__)).parent), f"{name}."
    for module, found in list(sys.modules.items()):
        if module.startswith(below) and not str(getattr(found, "__file__", None) or folder).startswith(folder):
            raise ModuleNotFoundError(f"{module} is not in it, but in {found.__file__}", name=module)


def _forget(name: str) -> None:
    """Leave no half imported modules behind: another copy of the pack, a whole one, may be loaded next."""
    if __name__ == PACKAGE:  # a script's own import
        return
    for module in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        if module != __name__:
            del sys.modules[module]


def _python_too_old() -> str:
    lowest, found = (".".join(map(str, version[:2])) for version in (LOWEST_PYTHON, sys.version_info))
    return (
        f"CogVideoX's nodes need Python {lowest} or newer, and this ComfyUI runs in Python {found}. Install a newer "
        "ComfyUI, which brings a newer Python along."
    )


# A ComfyUI from before comfy_entrypoint calls nothing here, and says only that it skips the folder.
if __name__ != PACKAGE and not (importlib.util.find_spec("comfy_api") and importlib.util.find_spec("comfy_api.latest")):
    logging.warning("CogVideoX's nodes need ComfyUI 0.16.3 or newer, and this one is older. Update ComfyUI.")
