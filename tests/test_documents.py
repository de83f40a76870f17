"""README, CONTRIBUTING, the changelog and docs: what they link to exists, and what they say of themselves is true."""

import ast
import importlib.util
import re
import subprocess
from collections import Counter
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import pytest

from cogvideox.nodes import NODES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *(f"docs/{file.name}" for file in ROOT.glob("docs/*.md")),
]
README_WORDS = 1500
# Keep a Changelog 1.1.0; ours needs no Deprecated so far
SECTIONS = ("Added", "Changed", "Fixed", "Removed", "Security")

# first parts of dotted names that belong to others
FOREIGN = {"comfy", "io", "torch", "latent_preview", "BaseModel", "CFGGuider", "KSAMPLER", "pytest", "tiers"}

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
_INLINE = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
_DEFINITION = re.compile(r"^\[([^\]]+)\]: (\S+)$", re.M)
_REFERENCE = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def prose(document: str) -> str:
    """The text without code: a bracket in code is no link, and # in a shell is no heading."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", read(document)))


def link_targets(document: str) -> list[str]:
    """What every link and picture leads to, both written out and by reference."""
    text = prose(document)
    defined = dict(_DEFINITION.findall(text))
    text = _DEFINITION.sub("", text)
    referred = [defined.get(name or shown, f"[{name or shown}]") for shown, name in _REFERENCE.findall(text)]
    return [*_INLINE.findall(text), *referred, *defined.values()]


def anchors(document: str) -> set[str]:
    """The #anchors of a document's headings, as GitHub makes them: lower case, no punctuation, spaces to hyphens."""
    found, counts = set(), Counter()
    for title in re.findall(r"^#+ (.+)$", _FENCE.sub("", read(document)), re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title.strip())
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{anchor}-{counts[anchor]}" if counts[anchor] else anchor)
        counts[anchor] += 1
    return found


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """Every file of the repository and every folder, as paths from its root."""
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = set(out.splitlines())
    return files | {parent.as_posix() for file in files for parent in Path(file).parents}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str, tracked: set[str]) -> None:
    """A reader who follows a link or looks at a picture would find nothing."""
    broken = []
    for target in link_targets(document):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        absolute = (ROOT / document).parent.joinpath(path).resolve() if path else ROOT / document
        file = absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else "outside the repository"
        if file not in tracked or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize(
    ("text", "targets"),
    (
        ("See [a](b.md#c) and ![d](e.png).", ["b.md#c", "e.png"]),
        ("[a][] and [b][c]\n\n[a]: x.md\n[c]: y.md\n", ["x.md", "y.md", "x.md", "y.md"]),
        ("[a][missing]", ["[missing]"]),
        ("`[a](b)`\n\n```\n[c](d)\n```\n", []),
    ),
)
def test_links_are_found(text: str, targets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that the test above overlooks may be broken."""
    monkeypatch.setitem(globals(), "read", lambda document: text)
    assert link_targets("any.md") == targets


def test_anchors_are_github_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """An anchor that only our test knows leads to the top of the page."""
    text = "# Files & precision\n## CogVideoX1.5-5B: bright?\n## Tiles\n```\n# no heading\n```\n## Tiles\n"
    monkeypatch.setitem(globals(), "read", lambda document: text)
    assert anchors("any.md") == {"files--precision", "cogvideox15-5b-bright", "tiles", "tiles-1"}


def test_readme_is_short() -> None:
    """The first page says what the pack is and how to begin; who must scroll past details leaves before that."""
    assert len(read("README.md").split()) <= README_WORDS


def test_readme_leads_to_every_page() -> None:
    """A page that README does not link nobody finds."""
    pages = {document for document in DOCUMENTS if document != "README.md"}
    assert pages <= set(link_targets("README.md"))


def test_every_node_is_listed() -> None:
    """A node missing from the list, or listed under an old name, is not found by those who look for it."""
    listed = re.findall(r"^\| \[(.+?)\]\(\.\./web/docs/(\w+)\.md\) \|", read("docs/nodes.md"), re.M)
    schemas = [node.GET_SCHEMA() for node in NODES]
    assert sorted(listed) == sorted((schema.display_name, schema.node_id) for schema in schemas)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_imports_in_documents_work(document: str) -> None:
    """A user copies these lines; a module that was renamed would fail at once."""
    text = read(document)
    code = [body for language, body in _FENCE.findall(text) if language == "python"]
    code += re.findall(r"`(from cogvideox\b[^`\n]*)`", text)
    for node in (node for source in code for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for module in re.findall(r"-m (cogvideox[\w.]*)", text):
        assert importlib.util.find_spec(module), module


@pytest.fixture(scope="module")
def definitions(tracked: set[str]) -> dict[str, set[str]]:
    """module or class -> the names defined in it, by every ending of its dotted name: "checkpoints",
    "model_loaders.checkpoints"; a class by its own name too."""
    found: dict[str, set[str]] = {}
    for file in sorted(file for file in tracked if file.endswith(".py")):
        parts = Path(file).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), set()).update(_defined(tree))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(_defined(node))
    return found


def _defined(scope: ast.Module | ast.ClassDef) -> set[str]:
    names = set()
    for node in scope.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "tests/README.md"])
def test_named_files_and_functions_exist(document: str, tracked: set[str], definitions: dict[str, set[str]]) -> None:
    """A page that leads through the code and names what is gone sends its reader into the dark."""
    known, missing, text = definitions, [], _FENCE.sub("", read(document))
    names = {Path(file).name for file in tracked}
    for span in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"[\w./]+/|[\w./]+\.(py|md|toml|json|csv)", span):
            beside = (Path(document).parent / span).as_posix().rstrip("/")
            if not {span.rstrip("/"), beside} & tracked and ("/" in span.rstrip("/") or span not in names):
                missing.append(span)
        elif re.fullmatch(r"(\w+\.)+\w+", span) and span.split(".")[0] not in FOREIGN:
            scope, _, name = span.rpartition(".")
            # a function of a module or class, or a module itself
            if name not in known.get(scope, set()) and span not in known:
                missing.append(span)
    # "`a/b.py`, `function`" names a function of that file, "`a/b.py`, `Class.method`" a method
    for path, name in re.findall(r"`([\w/]+)\.py`,\s+`([\w.]+)`", text):
        scope, _, name = name.rpartition(".")
        module = path.replace("/", ".")
        if (scope or name) not in known[module] or (scope and name not in known[scope]):
            missing.append(f"{path}.py, {scope or name}")
    assert not missing


def test_changelog_has_its_form() -> None:
    """Keep a Changelog 1.1.0, which readers and tools expect: the newest version first, each with a date, and known
    sections that are not empty."""
    text = read("CHANGELOG.md")
    first, *released = re.findall(r"^## (.+)$", text, re.M)
    assert first == "[Unreleased]"
    entries = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in released]
    assert all(entries), released
    groups = [entry.groups() for entry in entries if entry]
    versions = [tuple(map(int, group[:3])) for group in groups]
    assert versions == sorted(set(versions), reverse=True)
    dates = [date.fromisoformat(group[3]) for group in groups]
    assert dates == sorted(dates, reverse=True)
    for block in re.split(r"^## ", text, flags=re.M)[1:]:
        names = re.findall(r"^### (.+)$", block, re.M)
        assert names == [name for name in SECTIONS if name in names], block.splitlines()[0]
        assert all(part.lstrip().startswith("- ") for part in re.split(r"^### .+$", block, flags=re.M)[1:])


def authors() -> str:
    """As pyproject.toml names them."""
    (name,) = re.findall(r'^authors = \[\{ name = "(.+)" \}\]$', read("pyproject.toml"), re.M)
    return name


def test_the_licence_names_its_licensor() -> None:
    """A licence whose placeholder was left is granted by nobody."""
    assert not re.search(r"\[yyyy\]|\[name of", read("LICENSE"))
    for document in ("LICENSE", "NOTICE"):
        assert re.search(rf"^ *Copyright 20\d\d {re.escape(authors())}$", read(document), re.M), document


def test_notice_names_every_source(tracked: set[str]) -> None:
    """What is taken from a paper or a repository is to be found, and credited, in one place."""
    notice = read("NOTICE")
    texts = [read(file) for file in sorted(tracked) if file.endswith((".py", ".md"))]
    cited = {found for text in texts for found in re.findall(r"\b[A-Z]\w+ et al\. (?:19|20)\d\d", text)}
    assert len(cited) > 5
    assert not {paper for paper in cited if paper not in notice}
    sources = "".join(re.findall(r"Source[^\n]*\n?[^\n]*", "\n".join(texts)))
    repositories = set(re.findall(r"\b(?:THUDM|TheDenk|aigc-apps|madebyollin|thu-ml|huggingface)/[\w-]+", sources))
    assert len(repositories) > 2
    assert not {name for name in repositories if name not in notice}


def test_licence_and_notice_are_packaged(tracked: set[str]) -> None:
    """Apache-2.0 asks everyone who passes the pack on to pass these on with it."""
    (data,) = re.findall(r"^cogvideox = \[(.+)\]$", read("pyproject.toml"), re.M)
    for name in ("LICENSE", "NOTICE"):
        assert name in tracked and f'"{name}"' in data
