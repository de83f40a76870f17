"""What keeps the pack, or a part of it, from working, found when ComfyUI starts: one sentence each, in the log and, as
a notice, in the browser (web/js/start_notices.js).

It imports nothing at its top but the standard library and what does the same, so that it still runs where little else
of the pack does.
"""

import importlib
import importlib.metadata
import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError, printable, quoted
from ..system.published_files import SUMS, read_sums
from .optional_packages import package_error
from .served_pages import serve_pages

ROUTE = "/cogvideox/start_notices"  # web/js/start_notices.js asks for it
LOWEST_COMFYUI = (0, 16, 3)  # pyproject.toml: requires-comfyui; a test compares the two
_STORE = "_cogvideox_start_notices"  # an attribute of ComfyUI's server: a list that copies of the pack share
# Packages of requirements.txt -> what does not work without them.
_PURPOSES = {
    "diffusers": "no model loads without it",
    "accelerate": "training needs it",
    "peft": "training needs it",
    "gguf": "GGUF files need it",
    "tomli": "recipes of trainings need it",
}
# A line of requirements.txt. packaging's own parser would take 40 ms of ComfyUI's start.
_REQUIREMENT = re.compile(r"""([\w.-]+)>=([\w.]+)(?:; python_version < "(\d+)\.(\d+)")?""")
_HOST_MODULES = ("comfy", "comfy_api", "comfy_extras", "folder_paths", "latent_preview", "nodes", "server", "execution")


def comfyui_too_old() -> str:
    """A sentence where this ComfyUI is older than the pack can use, else ""; "" too where it does not say its
    version."""
    version = _comfyui_version()
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if not numbers or numbers >= LOWEST_COMFYUI:
        return ""
    lowest = ".".join(map(str, LOWEST_COMFYUI))
    return f"CogVideoX needs ComfyUI {lowest} or newer, and this is {version}. Update ComfyUI."


def import_error(error: Exception, folder: Path) -> UserError:
    """The sentence for an error that has kept the nodes from being imported. folder: the pack's."""
    if sentence := comfyui_too_old():
        return UserError(sentence)
    found = f"{type(error).__name__}: {quoted(str(error))}"
    module = _asked(error)
    package = module.partition(".")[0]
    if isinstance(error, SyntaxError) and Path(error.filename or "").is_relative_to(folder):
        return UserError(
            f"Line {error.lineno} of {error.filename}, a file of CogVideoX's nodes, is damaged ({found}). "
            f"{_again(folder)}"
        )
    # The second is the name that ComfyUI gives to a folder's module.
    if package in ("cogvideox", str(folder).replace(".", "_x_")):
        return UserError(
            f"The folder of CogVideoX's nodes, {folder}, is incomplete or mixes two versions ({found}). "
            f"{_again(folder)}"
        )
    if package in _HOST_MODULES:
        version = _comfyui_version() or "of unknown version"
        return UserError(
            f"CogVideoX's nodes do not fit this ComfyUI {version} ({found}). Update ComfyUI and the nodes, and start "
            "ComfyUI again."
        )
    if package:
        return package_error(package, "CogVideoX", error)
    return UserError(
        f"CogVideoX's nodes could not be loaded from {folder} ({found}; Python {sys.version.split()[0]}, ComfyUI "
        f"{_comfyui_version() or 'unknown'}, torch {_version('torch') or 'not installed'}). Update ComfyUI and the "
        "nodes; if that does not help, report this line."
    )


def installed_twice(used: Path, folder: Path) -> UserError:
    """The sentence for a second copy of the pack. used, folder: the first one's folder, and the second one's, which may
    be two links to one."""
    if used.resolve() == folder.resolve():
        return UserError(
            f"CogVideoX's nodes are found twice: ComfyUI uses {used} and leaves out {folder}, and both lead to the "
            "same folder. Remove one of the two links, not the folder, and start ComfyUI again."
        )
    return UserError(
        f"CogVideoX's nodes are installed twice: ComfyUI uses {used} (version {_pack_version(used)}) and leaves out "
        f"{folder} (version {_pack_version(folder)}). Delete one of the two folders and start ComfyUI again."
    )


def missing_requirements(folder: Path) -> str:
    """A sentence about the packages of requirements.txt that are not installed or too old, else ""."""
    from packaging.version import Version  # comes with transformers, which ComfyUI requires

    lacking = []
    try:
        lines = (folder / "requirements.txt").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return f"{folder / 'requirements.txt'} of CogVideoX's nodes cannot be read. {_again(folder)}"
    for asked in map(_REQUIREMENT.fullmatch, lines):
        if asked is None or (asked[3] and sys.version_info >= (int(asked[3]), int(asked[4]))):
            continue
        name, lowest = asked[1], asked[2]
        purpose = _PURPOSES.get(name, "CogVideoX needs it")
        found = _version(name)
        if not found:
            lacking.append(f"{name} is not installed ({purpose})")
        elif Version(found) < Version(lowest):
            lacking.append(f"{name} {found} is older than {lowest} ({purpose})")
    if not lacking:
        return ""
    return (
        f"CogVideoX lacks Python packages: {'; '.join(lacking)}. Install them into ComfyUI's Python and start ComfyUI "
        f'again: "{sys.executable}" -m pip install -r "{folder / "requirements.txt"}"'
    )


def missing_files(folder: Path) -> str:
    """A sentence where the toy's weights, which the templates begin with, are not all in the pack's folder, else "".

    Their contents are compared with the hashes when they are loaded (host/toy.py)."""
    weights = folder / "nano" / "weights"
    try:
        names = list(read_sums(weights))
    except UserError as error:
        if (weights / SUMS).is_file():
            return str(error)
        return f"The toy model that the templates begin with is not in {weights}. {_again(folder)}"
    missing = [name for name in names if not (weights / name).is_file()]
    if not missing:
        return ""
    return (
        f"{len(missing)} of {len(names)} files of the toy model that the templates begin with are not in {weights}, "
        f"among them {quoted(missing[0])}. {_again(folder)}"
    )


def taken_ids(ours: Mapping[str, type], registered: Mapping[str, type]) -> str:
    """Sentences about the nodes of ours in whose place ComfyUI has nodes of others, or none, else "".

    ours, registered: node id -> class."""
    others: dict[str, list[str]] = {}
    missing: list[str] = []
    for node_id, node in ours.items():
        found = registered.get(node_id)
        if found is not node:
            (missing if found is None else others.setdefault(_pack_of(found), [])).append(node_id)
    told = [_taken_by(pack, ids) for pack, ids in sorted(others.items())]
    return " ".join([*told, *([_not_registered(missing)] if missing else [])])


def replaced_ids(ours: Mapping[str, type], registered: Mapping[str, type]) -> str:
    """A sentence about the nodes of other packs that ours are about to replace, else "". As taken_ids."""
    theirs: dict[str, list[str]] = {}
    for node_id, node in ours.items():
        if (found := registered.get(node_id)) is not None and found is not node:
            theirs.setdefault(_pack_of(found), []).append(node_id)
    return " ".join(
        f"CogVideoX has nodes of the same id as {pack}: {_listed(ids)}. Remove one of "
        "the two packs: ComfyUI takes the node that is loaded last, and workflows of the other run the wrong one."
        for pack, ids in sorted(theirs.items())
    )


def check_install(folder: Path) -> None:
    """Tell what is missing of packages and files, and a ComfyUI that is older than those that are tested. Serve the
    pages where the folder's name keeps ComfyUI from it."""
    if (server := _server()) is not None:
        serve_pages(server, folder)
    for sentence in (comfyui_too_old(), missing_requirements(folder), missing_files(folder)):
        if sentence:
            tell(sentence)


def watch_node_ids(ours: Mapping[str, type]) -> None:
    """Tell, once all packs are loaded, which nodes are not the ones that their workflows mean. ours: id -> class."""
    nodes, server = sys.modules.get("nodes"), _server()
    if nodes is None or server is None:
        return
    registered: dict[str, type] = nodes.NODE_CLASS_MAPPINGS
    before = replaced_ids(ours, registered)

    async def compare(app: Any) -> None:
        for sentence in (before, taken_ids(ours, registered)):
            if sentence:
                tell(sentence)

    # ComfyUI has no hook for this: aiohttp calls it when the server starts, after all packs have been loaded.
    server.app.on_startup.append(compare)


def tell(sentence: str, in_log: bool = True) -> None:
    """Put a sentence into the log, and show it in the browsers that open ComfyUI's page from now on."""
    if in_log:
        logging.warning(printable(sentence))
    notices = serve_notices()
    if notices is not None and sentence not in notices:
        notices.append(sentence)


def serve_notices() -> list[str] | None:
    """The sentences that the browser asks for, of all copies of the pack in this process; None without a server."""
    server = _server()
    if server is None:
        return None
    notices = getattr(server, _STORE, None)
    if notices is None:
        from aiohttp import web

        kept: list[str] = []
        setattr(server, _STORE, kept)

        async def get_notices(request: Any) -> Any:
            return web.json_response([_in_language_of(request, sentence) for sentence in kept])

        # A second route of the same name would keep ComfyUI from starting: hence the attribute.
        server.routes.get(ROUTE)(get_notices)
        return kept
    return notices


def _in_language_of(request: Any, sentence: str) -> str:
    """A sentence in the language of the page that asks for it; in English where that cannot be had."""
    try:
        language = importlib.import_module(".language", __package__)
        return language.localized_for(request, sentence)
    except Exception:  # of a copy that is damaged, which may be what the sentence says
        logging.debug("A notice could not be translated.", exc_info=True)
        return sentence


def _server() -> Any:
    """ComfyUI's server; None in a script, which would take seconds to import it."""
    module: ModuleType | None = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def _asked(error: Exception) -> str:
    """The module in which something was looked for in vain; "" where the error does not say."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ImportError):
        return cause.name or ""
    owner = getattr(cause, "obj", None)  # of an AttributeError
    return owner.__name__ if isinstance(owner, ModuleType) else owner.__module__ if isinstance(owner, type) else ""


def _again(folder: Path) -> str:
    return (
        f"Install the nodes again: delete {folder} and clone or install it once more, or run `git status` in it to see "
        "what differs. Then start ComfyUI again."
    )


def _not_registered(ids: list[str]) -> str:
    return (
        f"ComfyUI no longer has these nodes of CogVideoX, which were loaded: {_listed(ids)}. Workflows with them do "
        "not run. See ComfyUI's log for what has removed them, or start ComfyUI without the other packs to find out "
        "which."
    )


def _pack_of(node: type) -> str:
    """Where a node comes from, as ComfyUI notes it: "custom_nodes.NAME"."""
    module = str(getattr(node, "RELATIVE_PYTHON_MODULE", "") or "")
    return f"the pack {printable(module.replace('.', '/', 1))}" if module.startswith("custom_nodes.") else "ComfyUI"


def _taken_by(pack: str, ids: list[str]) -> str:
    verb, ending = ("is", "a node") if len(ids) == 1 else ("are", "nodes")
    return (
        f"{_listed(ids)} of CogVideoX {verb} replaced by {pack}, which has {ending} of the same id. Remove one of the "
        "two packs: workflows of the other run the wrong node."
    )


def _listed(ids: list[str]) -> str:
    shown = ", ".join(sorted(ids)[:5])
    return f"{shown} and {len(ids) - 5} more" if len(ids) > 5 else shown


def _pack_version(folder: Path) -> str:
    try:
        found = re.search(r'^version = "([^"]*)"', (folder / "pyproject.toml").read_text("utf-8"), re.M)
    except (OSError, ValueError):
        found = None
    return found[1] if found else "unknown"


def _comfyui_version() -> str:
    module = sys.modules.get("comfyui_version")
    if module is None:
        try:
            module = importlib.import_module("comfyui_version")
        except ImportError:
            return ""
    return str(getattr(module, "__version__", ""))


def _version(distribution: str) -> str:
    try:
        found = importlib.metadata.distribution(distribution)
        # importlib.metadata would parse the whole file as an e-mail, its long description too: half a millisecond.
        line = re.search(r"^Version: (\S+)", found.read_text("METADATA") or "", re.M)
        return line[1] if line else found.version or ""
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""
