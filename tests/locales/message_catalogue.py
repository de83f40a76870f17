"""Every sentence, and part of a sentence, that users of the nodes may meet, read from the source for its translation.

The catalogue locales/zh/messages.json has an entry for each: {"the English template": "its translation"}. Messages are
written in the source as plain English f-strings; `source_templates` turns each into a template with named placeholders,
and tests/locales/test_message_catalogue.py compares the two. locales/translations.py matches what is shown with them.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from os.path import commonprefix
from pathlib import Path

from cogvideox.devtools.paths import ROOT

CATALOGUES = sorted((ROOT / "locales").glob("*/messages.json"))
ROOMS = "nodes training parallel model_loaders sockets media transformer samplers vae host system migration".split()
# Texts of programs in a terminal, of tooltips, which are translated in nodeDefs.json, and what people search for.
_OTHER_FILES = {
    *("training/example.py", "training/headless.py", "training/launch.py", "training/recipe.py"),
    *("nodes/inputs.py", "nodes/search_words.py", "host/standalone.py"),
}
_UNSEEN_KEYWORDS = {"tooltip", "advice"}  # texts of nodeDefs.json; keys of nodes/advice.py
_UNSEEN_CALLS = ("io.", "logging.", "re.", "setting")  # setting: the help of a training's recipe
_PROGRAMMERS_ERRORS = {"AssertionError", "AttributeError", "IndexError", "NotImplementedError", "TypeError"}
_WORDS = re.compile(r"[A-Za-z][a-z]+[^\w]* [^ ]|[^ ] [^\w]*[A-Za-z][a-z]")
# Functions whose result is their argument, as far as a translator is concerned.
_TRANSPARENT = {
    *(
        "str",
        "int",
        "float",
        "len",
        "list",
        "tuple",
        "sorted",
        "map",
        "min",
        "max",
        "sum",
        "type",
        "round",
        "set",
        "repr",
    ),
    *("join", "removeprefix", "removesuffix", "strip", "name_some", "printable", "shortened", "range", "format_range"),
}
# Texts of one word, which are told from keys and names by nothing.
_WORDS_ALONE = {"denoiser", "difference"}
PLURAL, CHOICE = "plural", "choice"  # placeholders for an ending, such as the s of frames, and for one of some words
MAY_BE_LEFT_OUT = re.compile(r"(plural|ending|verb)(_\d)?")  # what Chinese has not


@dataclass(frozen=True)
class Place:
    """Where a template stands in the source."""

    file: str
    line: int


@cache
def source_templates() -> dict[str, Place]:
    """{template: the first place where it stands} of every text in the rooms that the nodes' users may meet."""
    found: dict[str, Place] = {}
    files = [ROOT / name for name in ("video_limits.py",)]
    for path in [*files, *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]:
        file = path.relative_to(ROOT).as_posix()
        if file not in _OTHER_FILES:
            for template, line in templates_of(path.read_text("utf-8")):
                found.setdefault(template, Place(file, line))
    return found


def templates_of(source: str) -> list[tuple[str, int]]:
    """(template, line) of each prose text in a module, in the order of the lines."""
    tree = ast.parse(source)
    found = set()
    for node in _shown(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        words = [word for part in parts if isinstance(part, ast.FormattedValue) for word in _choices(part.value)]
        texts = [*words, *filter(_is_prose, [_template(node)])]
        found |= {(text, node.lineno) for text in texts}
    return sorted(found, key=lambda entry: entry[1])


def read_catalogue(path: Path) -> dict[str, str | None]:
    """A translation's entries. None: this text stays English, because no user meets it or because it is a name."""
    return json.loads(path.read_text("utf-8"))


def _shown(tree: ast.AST) -> Iterator[ast.JoinedStr | ast.Constant]:
    """The string expressions of a tree, without those that never reach a message."""
    for node in ast.iter_child_nodes(tree):
        if _is_unseen(tree, node):
            continue
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node
        if isinstance(node, ast.JoinedStr):
            for part in node.values:  # the constants between the placeholders are the template's
                if isinstance(part, ast.FormattedValue):
                    yield from _shown(part)
        else:
            yield from _shown(node)


def _is_unseen(parent: ast.AST, node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        return True
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name == "define_schema"
    if isinstance(node, ast.Raise):
        return isinstance(node.exc, ast.Call) and _called(node.exc) in _PROGRAMMERS_ERRORS
    if isinstance(node, ast.Call):
        return _called(node).startswith(_UNSEEN_CALLS)
    if isinstance(node, ast.keyword):
        return node.arg in _UNSEEN_KEYWORDS
    if isinstance(parent, ast.Call) and _called(parent).endswith("UserError"):
        return node in parent.args[1:]  # a key of nodes/advice.py
    if isinstance(parent, (ast.AnnAssign, ast.arg)) and node is parent.annotation:
        return True
    # A key that stands for a sentence, as in nodes/advice.py.
    if isinstance(parent, ast.Dict) and isinstance(node, ast.expr) and node in parent.keys:
        return isinstance(parent.values[parent.keys.index(node)], ast.Constant)
    return isinstance(node, ast.Assert)


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _is_prose(template: str) -> bool:
    text = re.sub(r"\{\w+\}", "{}", template)
    return text in _WORDS_ALONE or len(text.split()) > 1 and bool(_WORDS.search(text)) and not text.startswith("/")


def _template(node: ast.JoinedStr | ast.Constant) -> str:
    if isinstance(node, ast.Constant):
        return _escaped(node.value)
    written, names = "", []
    for part in node.values:
        if isinstance(part, ast.Constant):
            written += _escaped(part.value)
        elif isinstance(part, ast.FormattedValue):
            name = _placeholder(part.value)
            names.append(name)
            written += f"{{{name}}}" if names.count(name) == 1 else f"{{{name}_{names.count(name)}}}"
    return written


def _escaped(text: object) -> str:
    return str(text).replace("{", "{{").replace("}", "}}")


def _placeholder(expression: ast.expr) -> str:
    """A name for what an f-string inserts: `quoted(self.path.name)` -> quoted_path_name.

    What is quoted is a user's own text; locales/translations.py never looks into it.
    """
    if _is_ending(expression):
        return PLURAL
    if _choices(expression):
        return CHOICE
    if isinstance(expression, ast.Call) and _called(expression) == "quoted":
        return f"quoted_{_placeholder(expression.args[0])}".removesuffix("_")
    return _dotted(expression) or "value"


def _choices(expression: ast.expr) -> list[str]:
    """The words of `'with' if ofs else 'without'`, which are translated each for itself."""
    if not isinstance(expression, ast.IfExp) or _is_ending(expression):
        return []
    sides = (expression.body, expression.orelse)
    words = [side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)]
    return words if len(words) == len(sides) and all(words) else []


def _is_ending(expression: ast.expr) -> bool:
    """Whether it is `'' if count == 1 else 's'`, `'patches' if count > 1 else 'patch'` or `'es' * (count > 1)`."""
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Mult):
        return isinstance(expression.left, ast.Constant) and isinstance(expression.left.value, str)
    if not isinstance(expression, ast.IfExp):
        return False
    sides = (expression.body, expression.orelse)
    texts = [side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)]
    if len(texts) < len(sides) or any(" " in text for text in texts):
        return False
    return all(len(text.removeprefix(commonprefix(texts))) < 3 for text in texts)


def _dotted(node: ast.AST) -> str:
    """The first name in an expression, with its attributes: `len(images.shape[0])` -> images_shape."""
    if isinstance(node, ast.Name):
        return "" if node.id in _TRANSPARENT else node.id.strip("_")
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        is_plain = not node.attr.startswith("__") and node.attr not in _TRANSPARENT and before != "self"
        return f"{before}_{node.attr}".strip("_") if is_plain else node.attr.strip("_") if before == "self" else before
    if isinstance(node, ast.Call) and node.args:
        name = ast.unparse(node.func).split(".")[-1].strip("_")
        if name not in _TRANSPARENT and name.isidentifier():
            return name
        return next(filter(None, map(_dotted, node.args)), "")
    return next(filter(None, map(_dotted, ast.iter_child_nodes(node))), "")
