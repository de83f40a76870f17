"""Rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from cogvideox import PACKAGE, keys

ROOT = Path(__file__).resolve().parent.parent
# The rooms from top to bottom: each may import from itself and from those below; rooms of one line not from each other.
ORDER = (
    {"nodes"},
    {"training", "parallel"},
    {"model_loaders"},
    {"sockets"},
    {"media"},
    {"transformer", "samplers", "vae"},
    {"host"},
    {"migration"},
    {"official_settings", "video_limits", "system", "locales"},
    {"errors", "keys"},
)
HOST_ONLY = {"comfy_api", "folder_paths", "nodes", "server", "latent_preview"}
# Calls that change a setting of the process, by the beginning of their name or by its end; and methods that change what
# an attribute of a module holds, such as os.environ.
SETTERS = (
    *("warnings.", "logging.disable", "logging.basicConfig", "logging.captureWarnings", "faulthandler."),
    *("torch.set_", "torch.manual_seed", "torch.use_deterministic", "random.seed", "numpy.random.seed"),
    *("torch.multiprocessing.set_", "multiprocessing.set_", "signal.signal", "atexit.register", "locale.setlocale"),
    *("os.chdir", "os.umask", "os.putenv", "os.unsetenv", "gc.disable", "gc.freeze", "gc.set_", "sys.set"),
    "socket.setdefaulttimeout",
)
SETTING_METHODS = (".addFilter", ".addHandler", ".setLevel", "._reset_state", ".set_start_method", ".seed_all")
IN_PLACE = (".insert", ".append", ".extend", ".update", ".setdefault", ".pop", ".clear", ".remove")
ROOMS = {name for line in ORDER for name in line}


MOST_LINES = 60  # of a function
# File names of the rooms that the tools have as well, and too many imports of them to be worth another name.
TWICE = {f"{name}.py" for name in "clips control_net errors folders fun layout text train vae".split()}


def module_name(path: Path) -> str:
    """samplers/ddim.py -> samplers.ddim; a folder's __init__.py is the folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for room in ROOMS for path in [ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")]}
FILES = {name: path for name, path in FILES.items() if path.is_file()}


@cache
def imports(module: str) -> tuple[set[str], set[str]]:
    """(our own modules, everybody else's top-level names) that a module imports, wherever in it the import stands."""
    own, foreign = set(), set()
    package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*([PACKAGE] if node.level else []), *base, *([node.module] if node.module else [])])
            # a name is a module of its own where there is such a file
            names = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix(f"{PACKAGE}.") in FILES else source for name in names]
        else:
            continue
        own |= {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
        foreign |= {name.split(".")[0] for name in names if name.split(".")[0] != PACKAGE}
    return own, foreign


def test_words_that_nobody_else_uses_stay_away() -> None:
    """They came back twice. A translator and a reader from the field stumble over each."""
    # a space here stands for an underscore too: names of tests are read as sentences
    words = "an" + "ew|" + "that (is|are) no" + "ne|" + "that (is|are) no" + " numbers|beside the" + " noisy"
    any_of = re.compile(rf"(?<![A-Za-z])(?:{words.replace(' ', '[ _]')})(?![A-Za-z])", re.IGNORECASE)
    texts = [*FILES.values(), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *ROOT.glob("docs/*.md")]
    texts += [*ROOT.glob("web/docs/**/*.md"), *ROOT.glob("nano/**/*.md"), *ROOT.glob("tests/**/*.md")]
    texts += [path for room in ("tests", "devtools", "benchmarks", "nano") for path in (ROOT / room).rglob("*.py")]
    found = {path.name: any_of.findall(path.read_text("utf-8")) for path in texts}
    assert not {name: these for name, these in found.items() if these}


# What German word order makes of a message: "expected is a tensor", "the file is no JSON".
_ODD_ENGLISH = re.compile(
    r"\b[Ee]xpected (?:is|are)\b|(?<![Tt]here )\b(?:is|are) no (?!longer\b|more\b)[A-Za-z]"
    r"|\b(?:another content|something else|anything else) than\b"
)


def messages_in(source: str) -> list[str]:
    """Every text of a module but its docstrings; an f-string with {} for what it inserts."""
    tree, texts = ast.parse(source), []
    documented = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
    formatted = [node.values for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    for parts in formatted:
        texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts))
    pieces = {id(part) for parts in formatted for part in parts}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            texts += [] if node.value in docstrings else [node.value]
    return texts


def test_messages_are_english_at_the_first_reading() -> None:
    """ "Expected is X" and "is no X" came back 40 times: an English reader looks for the word that is missing."""
    paths = [*FILES.values(), *(ROOT / "devtools").rglob("*.py")]
    found = {path.name: list(filter(_ODD_ENGLISH.search, messages_in(path.read_text("utf-8")))) for path in paths}
    assert not {name: texts for name, texts in found.items() if texts}


@pytest.mark.parametrize(
    ("message", "is_odd"),
    [
        ("{}; expected is one. Connect it.", True),
        ("Expected are rows", True),
        ("The file is no JSON", True),
        ("their settings are no lists", True),
        ("There is no file", False),
        ("{} is no longer there", False),
        ("a list is expected", False),
    ],
)
def test_odd_english_is_found(message: str, is_odd: bool) -> None:
    """The test above would let through what it does not recognise, and complain of what is right."""
    written = message.replace("{}", "{x}")
    (text,) = messages_in(f'def f():\n    """Expected is nothing."""\n    raise ValueError(f"{written}")')
    assert bool(_ODD_ENGLISH.search(text)) == is_odd


def test_file_names_are_unique() -> None:
    """In an editor's list of open files, in a traceback and in a search, two `lora.py` are one too many."""
    in_rooms = Counter(path.name for path in FILES.values() if path.name != "__init__.py")
    assert not {name for name, count in in_rooms.items() if count > 1}
    tools = [path.name for room in ("benchmarks", "devtools", "nano") for path in (ROOT / room).rglob("*.py")]
    names = in_rooms + Counter(name for name in tools if name != "__init__.py")
    assert {name for name, count in names.items() if count > 1} == TWICE


def test_imports_point_downwards() -> None:
    """nodes -> training -> model_loaders -> sockets -> media -> the networks -> host -> errors and keys, or nothing
    below can be reused or tested alone. Absolute imports count, late ones too."""
    level = {room: number for number, line in enumerate(ORDER) for room in line}
    wrong = []
    for module in FILES:
        own, foreign = imports(module)
        room = module.split(".")[0]
        for other in sorted(own):
            target = other.split(".")[0]
            if target != room and level.get(target, -1) <= level[room]:
                wrong.append(f"{module} imports {other}")
        if room not in ("nodes", "host"):
            wrong += [f"{module} imports {name}" for name in sorted(foreign & HOST_ONLY)]
    assert not wrong


def test_no_import_circles() -> None:
    """Two modules that need each other can only be understood, and imported, together."""
    below = {module: imports(module)[0] & FILES.keys() for module in FILES}
    # take away what imports nothing that is left, until nothing is left or only circles are
    while free := [module for module, others in below.items() if not others & below.keys() - {module}]:
        for module in free:
            del below[module]
    assert not below


def test_entries_of_sockets_are_written_in_one_place() -> None:
    """Who renames or adds an entry of LATENT or CONDITIONING would overlook the one that another module writes by hand:
    keys.py has a function that builds each."""
    ours = re.compile("cogvideox_")
    names = {*filter(ours.match, [*keys.Latent.__annotations__, *keys.Concat.__annotations__])}
    written = {}
    for module in FILES.keys() - {"keys"}:
        tree = ast.parse(FILES[module].read_text("utf-8"))
        given = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
        stored = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
        given += [node.slice for node in stored if isinstance(node.ctx, ast.Store)]
        if found := {key.value for key in given if isinstance(key, ast.Constant)} & names:
            written[module] = found
    assert not written


def test_nodes_say_which_types_they_take() -> None:
    """What a socket hands over is hidden by `object`, from a reader as from the type checker."""
    functions = {
        f"{module}.{node.name}": ast.unparse(node.args)
        for module, path in FILES.items()
        if module.startswith("nodes.")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "execute"
    }
    assert functions and not [name for name, taken in functions.items() if ": object" in taken]


def changes_of_shared_state(source: str) -> list[str]:
    """The statements of a module that change what the whole process shares: another module, or a setting."""
    tree, modules, found = ast.parse(source), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # all that may be a module, such as model_management, and classes: these are shared as well
            modules |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else []
        if isinstance(node, ast.AugAssign):
            targets = [node.target]
        if isinstance(node, ast.Call) and (called in ("setattr", "delattr") or called.endswith(IN_PLACE)):
            targets = [node.args[0] if called in ("setattr", "delattr") else node.func]
        for target in targets:
            root = target
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            is_part = target is not root or called in ("setattr", "delattr")
            if is_part and isinstance(root, ast.Name) and root.id in modules:
                found.append(ast.unparse(node))
        if called.startswith(SETTERS) or called.endswith(SETTING_METHODS):
            found.append(ast.unparse(node))
    return found


def test_what_the_process_shares_is_changed_in_one_place() -> None:
    """host/patches.py lists every change to ComfyUI's modules and to the process's settings: one made elsewhere nobody
    would know of, and another pack would suffer from it."""
    found = {module: changes_of_shared_state(path.read_text("utf-8")) for module, path in FILES.items()}
    changed = {module: lines for module, lines in found.items() if lines}
    # All but the first only in processes that are not ComfyUI.
    assert set(changed) == {"host.patches", "host.standalone", "parallel.worker", "training.headless"}, changed


@pytest.mark.parametrize(
    "line",
    [
        "logging.disable(30)",
        "logging.getLogger('x').setLevel(40)",
        "warnings.filterwarnings('ignore')",
        "torch.set_num_threads(1)",
        "torch.backends.cudnn.benchmark = True",
        "os.environ['A'] = '1'",
        "os.environ.setdefault('A', '1')",
        "os.environ |= {}",
        "sys.path.insert(0, '.')",
        "del sys.modules['x']",
        "torch.manual_seed(0)",
        "signal.signal(2, print)",
        "AcceleratorState._reset_state()",
        "setattr(comfy.lora, 'load_lora', print)",
    ],
)
def test_changes_of_shared_state_are_found(line: str) -> None:
    """The test above would say nothing of what it does not recognise."""
    names = (
        "import comfy.lora, logging, os, signal, sys, torch, warnings\nfrom accelerate.state import AcceleratorState\n"
    )
    assert changes_of_shared_state(f"{names}def f():\n    {line}\n") == [line]
    assert changes_of_shared_state(f"{names}x = torch.Generator().manual_seed(0)\nos.environ.get('A')\n") == []


def test_packaging_knows_every_folder() -> None:
    """Whoever installs the package with pip would lack a folder that pyproject.toml does not list."""
    listed = set(re.findall(r'^    "cogvideox\.?(.*)",$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M))
    tracked = subprocess.run(["git", "ls-files", "*__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {str(Path(line).parent.as_posix()).replace("/", ".").strip(".") for line in tracked.stdout.split()}
    assert listed == found


def test_ruff() -> None:
    """One style, and none of exec, eval, pickle or two statements in a line."""
    out = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_registry_metadata() -> None:
    """The Comfy Registry refuses a name with ComfyUI in it and a host version that is not of three parts; the version
    that it shows is the one whose changes the changelog lists."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    fields = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    assert "comfyui" not in fields["name"].lower()
    assert fields["requires-comfyui"].count(".") == 2
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")
    version = fields["version"].strip('"')
    # the first heading with a date is the newest version that was released
    released = re.findall(r"^## \[(.+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert version == released[0]


@pytest.mark.parametrize("module", sorted(FILES))
def test_functions_can_be_seen_at_once(module: str) -> None:
    """A function that does not fit on a screen is read in parts, and changed in one of them only."""
    functions = [
        node
        for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= MOST_LINES]
    assert not long
