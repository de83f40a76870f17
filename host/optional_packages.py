"""Python packages that ComfyUI may lack, or that other packs have left in a state in which they cannot be imported.

A package that is missing or broken is one sentence: which it is, who needs it, and the command that mends it.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

from ..errors import UserError, printable, quoted

# Whatever the pack takes of diffusers comes with these: each module imports most of the library.
_DIFFUSERS_MODULES = (
    "diffusers.models.transformers.cogvideox_transformer_3d",
    "diffusers.models.autoencoders.autoencoder_kl_cogvideox",
    "diffusers.pipelines.cogvideo.pipeline_cogvideox",
)
# What diffusers cannot be imported without; of ComfyUI's own requirements some are among them.
_REQUIRED = ("diffusers", "huggingface_hub", "numpy", "safetensors", "torch", "transformers")
_DISTRIBUTIONS = {"cv2": "opencv-python", "huggingface_hub": "huggingface-hub"}  # where pip has another name


def import_package(name: str, purpose: str) -> Any:
    """The package `name`. purpose: the beginning of a sentence: "Training", "Reading a GGUF file".

    Raises UserError where it is not installed or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    # A package raises nearly anything where it meets versions that it does not know, or libraries it cannot load.
    except Exception as error:
        raise package_error(name, purpose, error) from error


def is_installed(name: str) -> bool:
    """Whether there is a package `name`, working or not; it is not imported."""
    return importlib.util.find_spec(name) is not None


def package_error(name: str, purpose: str, error: BaseException) -> UserError:
    """The sentence for a package whose import has raised `error`."""
    pip_name = _DISTRIBUTIONS.get(name, name)
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return UserError(
            f"{purpose} needs the Python package {name}, which is not installed. Install it into ComfyUI's Python: "
            f"python -m pip install {pip_name}"
        )
    return UserError(f"{purpose} needs the Python package {_broken(name, error)}")


def prepare_diffusers() -> None:
    """Import what the pack takes of diffusers, which takes seconds the first time.

    diffusers imports peft, accelerate, gguf and others wherever they are installed, though nothing that the pack takes
    needs them, and fails with any that is broken: peft 0.17 stops all of diffusers under transformers 5. transformers
    does the same with accelerate. Such a package is named in the log, and both are told that it is not there.

    Raises UserError where diffusers itself, or what it cannot do without, is missing, broken or too old.
    """
    hidden: set[str] = set()
    while True:
        try:
            for module in _DIFFUSERS_MODULES:
                importlib.import_module(module)
            return
        except Exception as error:
            culprit = _culprit(error)
            if culprit in _REQUIRED or not _hide(culprit):
                name = culprit if culprit in _REQUIRED else "diffusers"
                raise package_error(name, "CogVideoX", error) from error
            if culprit not in hidden:
                logging.warning(printable(f"Not needed by CogVideoX: the Python package {_broken(culprit, error)}"))
            hidden.add(culprit)


def _broken(name: str, error: BaseException) -> str:
    """The end of a sentence about a package that is installed and cannot be imported."""
    pip_name = _DISTRIBUTIONS.get(name, name)
    try:
        found = f"{name} {importlib.metadata.version(pip_name)}"
    except importlib.metadata.PackageNotFoundError:
        found = name
    cause = _first(error)
    # A name that another package no longer has, or not yet: pip keeps both as they are unless it is told of both.
    asked = str(getattr(cause, "name", None) or name).partition(".")[0]
    if asked != name and is_installed(asked):
        pip_name = f"{pip_name} {_DISTRIBUTIONS.get(asked, asked)}"
    return (
        f"{found}, which cannot be imported ({type(cause).__name__}: {quoted(str(cause))}). Update it in ComfyUI's "
        f"Python: python -m pip install --upgrade {pip_name}"
    )


def _first(error: BaseException) -> BaseException:
    """What was raised first: diffusers wraps the errors of its imports."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _culprit(error: BaseException) -> str:
    """The package that has failed while diffusers was imported: the one that diffusers imported last itself, since
    what that one imports is its own affair, unless it is transformers, which can go without a package as well;
    diffusers, where it asked in vain for a name or a module of its own."""
    packages = _imported(error)
    after = packages[len(packages) - packages[::-1].index("diffusers") :] if "diffusers" in packages else []
    if (
        len(after) > 1
        and after[0] == "transformers"
        and after[1] not in _REQUIRED
        and _transformers_goes_without(after[1])
    ):
        return after[1]
    if after:
        return after[0]
    cause = _first(error)
    missing = cause.name if isinstance(cause, ImportError) else None
    return (missing or "diffusers").partition(".")[0]


def _imported(error: BaseException) -> list[str]:
    """The packages whose code was running when `error` was raised, each as often as it was entered, outermost first."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    packages: list[str] = []
    for raised in chain:  # each was caught where the traceback of the one before it ends
        traceback = raised.__traceback__
        while traceback is not None:
            package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
            if package not in ("importlib", "", *packages[-1:]):
                packages.append(package)
            traceback = traceback.tb_next
    return packages


def _transformers_goes_without(package: str) -> bool:
    """Whether transformers asks if `package` is installed before it imports it."""
    return package not in _REQUIRED and hasattr(
        sys.modules.get("transformers.utils.import_utils"), f"is_{package}_available"
    )


def _hide(package: str) -> bool:
    """Have diffusers and transformers take `package` for missing; False where neither asks for it, or both know
    already."""
    from .patches import hide_from_diffusers, hide_from_transformers

    known: ModuleType = importlib.import_module("diffusers.utils.import_utils")
    name = {"cv2": "opencv"}.get(package, package)
    flags = [flag for flag in vars(known) if flag.startswith(f"_{name}") and flag.endswith("_available")]
    flags = [flag for flag in flags if getattr(known, flag) is True]
    hide_from_diffusers(known, flags)
    transformers = sys.modules.get("transformers.utils.import_utils")
    is_there = getattr(transformers, f"is_{name}_available", lambda: False)
    if transformers is None or not is_there():
        return bool(flags)
    hide_from_transformers(transformers, name)
    return bool(flags) or not is_there()
