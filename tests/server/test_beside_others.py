"""The pack as people install it: its package, in a folder of any name that cannot be written to, beside a second copy,
an update that was cut off, another pack with nodes of the same ids, and Python packages that are broken. One server
has all of it at once."""

import json
import os
import urllib.parse
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cogvideox.devtools import client, server
from cogvideox.devtools.client import object_info
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.embedded_checkpoint import write_pipeline
from cogvideox.devtools.paths import ROOT
from cogvideox.devtools.run_workflow import client_format
from cogvideox.host.start_check import ROUTE
from cogvideox.nodes import NODES
from cogvideox.tests.graphs import text_to_video
from cogvideox.tests.host.test_optional_packages import FAILURES, break_package
from cogvideox.tests.pack_copies import (
    install_copy,
    install_other_pack,
    make_read_only,
    make_writable,
    packaged_files,
    python_with,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the interpreter with broken packages is a shell script")
# Both whole: which of them ComfyUI loads first is the file system's choice.
COPIES = ("ComfyUI CogVideoX, größer – 视频 {100%} (1)", "ComfyUI-CogVideoX.copy%20b")
CUT_OFF = "aaa cut off"
TEMPLATE, TRAINING = "01 Text to video", "11 Train a LoRA"
OTHER, ITS_NODE = "an other pack", "CogVideoXDraftDecode"
CUT_OFF_FILES = ("__init__.py", "errors.py", "host/__init__.py", "host/start_check.py")


@dataclass(frozen=True)
class Installed:
    """A server, and the folder of the copy that it uses."""

    server: server.Server
    used: Path
    left_out: Path

    def log(self) -> str:
        return self.server.log.read_text("utf-8", "replace")

    def notices(self) -> list[str]:
        return json.loads(server.request(f"{self.server.url}/api{ROUTE}"))


def start(base: Path, packages: Path) -> AbstractContextManager[server.Server]:
    python = python_with(packages, base / "python")
    host = Path(os.environ["COMFYUI_PATH"])
    return server.running_server(host, base, log=base / "server.log", cpu=True, python=python)


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below `folder`; bytecode is Python's."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    base, packages = tmp_path_factory.mktemp("beside others"), tmp_path_factory.mktemp("packages")
    custom_nodes = base / "custom_nodes"
    prepare_base(base, ROOT, "unused")
    (custom_nodes / "unused").unlink()
    copies = [install_copy(custom_nodes / name) for name in COPIES]
    install_copy(custom_nodes / CUT_OFF, CUT_OFF_FILES)
    install_other_pack(custom_nodes / OTHER, ITS_NODE)
    for name, code in FAILURES.items():
        break_package(packages, name, code, "99.0")
    before = [states(copy) for copy in copies]
    for copy in copies:
        make_read_only(copy)
    try:
        with start(base, packages) as running:
            log = running.log.read_text("utf-8", "replace")
            left_out = [copy for copy in copies if f"leaves out {copy}" in log]
            assert len(left_out) == 1, log[-3000:]
            (used,) = (copy for copy in copies if copy not in left_out)
            yield Installed(running, used, left_out[0])
        assert [states(copy) for copy in copies] == before, "the pack's folder may be read-only"
    finally:
        for copy in copies:
            make_writable(copy)


def test_each_trouble_is_told_once(installed: Installed) -> None:
    """Else ComfyUI says nothing of a second copy and of replaced nodes, and of a copy that was cut off only what Python
    stumbled over."""
    told = [line for line in installed.log().splitlines() if "CogVideoX" in line and not line.endswith(COPIES)]
    told = [line for line in told if "seconds" not in line and "Not needed by" not in line]
    words = (str(installed.left_out), CUT_OFF, ITS_NODE)
    twice, cut_off, replaced = ([line for line in told if word in line] for word in words)
    assert len(twice) == len(cut_off) == len(replaced) == 1 and len(told) == 3, told
    assert "installed twice" in twice[0] and str(installed.used) in twice[0]
    # By what ComfyUI has loaded before it.
    assert "is incomplete" in cut_off[0] or "installed twice" in cut_off[0]
    assert OTHER in replaced[0] and "Remove one of the two packs" in replaced[0]


def test_the_page_is_told_the_same(installed: Installed) -> None:
    """Few who open ComfyUI's page have read its log."""
    told = installed.notices()
    for word in (str(installed.left_out), ITS_NODE):
        assert sum(word in sentence for sentence in told) == 1
    assert len(told) in (2, 3)  # without its file, the copy that was cut off can tell the log alone
    scripts = json.loads(server.request(f"{installed.server.url}/extensions"))
    (script,) = (path for path in scripts if path.endswith("start_notices.js") and installed.used.name in _name(path))
    assert ROUTE in server.request(installed.server.url + script).decode()
    assert not any(installed.left_out.name == _name(path) for path in scripts)


def _name(script: str) -> str:
    return urllib.parse.unquote(script).split("/")[2]


def test_help_and_templates_of_a_folder_with_any_name(installed: Installed) -> None:
    """A name with spaces, brackets or other letters is part of an address."""
    url = f"{installed.server.url}/extensions/{urllib.parse.quote(installed.used.name)}/docs/CogVideoXSample.md"
    assert b"## Inputs" in server.request(url)
    listed = json.loads(server.request(f"{installed.server.url}/workflow_templates"))
    assert TEMPLATE in listed[installed.used.name]
    name = urllib.parse.quote(f"{installed.used.name}/{TEMPLATE}.json")
    url = f"{installed.server.url}/api/workflow_templates/{name}"
    assert json.loads(server.request(url))["nodes"]


def test_the_first_template_runs(installed: Installed) -> None:
    """From the Registry's package, with peft, accelerate and gguf broken, which a video does not need."""
    schemas = object_info(installed.server.url)
    ours = {node.__name__ for node in NODES} - {ITS_NODE}
    assert ours <= schemas.keys()
    template = installed.used / "example_workflows" / f"{TEMPLATE}.json"
    result = client.run_workflow(installed.server.url, client_format(template, installed.server.url), timeout_s=300)
    assert result.error is None, str(result.error)
    assert [file for file in result.files(installed.server.output) if file.suffix == ".mp4"]
    assert installed.log().count("Not needed by CogVideoX") == len(FAILURES)


def test_a_training_names_what_is_broken(installed: Installed) -> None:
    """On the node that needs it, before any work."""
    template = installed.used / "example_workflows" / f"{TRAINING}.json"
    api = client_format(template, installed.server.url)
    (clips,) = (node for node in api.values() if node["class_type"] == "CogVideoXTrainingClips")
    clips["inputs"]["frames"] = 1
    result = client.run_workflow(installed.server.url, api, timeout_s=300)
    assert result.error is not None and result.error.node_type == "CogVideoXTrainLora"
    assert "cannot be imported" in result.error.message and "python -m pip install --upgrade" in result.error.message


# Stands in for a Python in which diffusers is not installed: neither its code nor its entry is found.
WITHOUT_DIFFUSERS = """
import importlib.metadata, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name=name)

true_distribution = importlib.metadata.distribution

def distribution(name):
    if name == "diffusers":
        raise importlib.metadata.PackageNotFoundError(name)
    return true_distribution(name)

sys.meta_path.insert(0, Finder())
importlib.metadata.distribution = distribution  # importlib.metadata.version asks it as well
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    """A link to a package without the toy's weights, in a Python without diffusers; and a checkpoint."""
    base, packages = tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("packages")
    (packages / "sitecustomize.py").write_text(WITHOUT_DIFFUSERS, "utf-8")
    files = [file for file in packaged_files() if not file.startswith("nano/weights/")]
    prepare_base(base, install_copy(base / "kept elsewhere", files), "linked – 1")
    write_pipeline(base / "models" / "diffusers" / "tiny", "5b")
    with start(base, packages) as running:
        yield running


@pytest.mark.long  # its parts, in one process: tests/host
def test_a_new_user_without_the_requirements_learns_it_at_the_start(bare: server.Server) -> None:
    """Before anything is queued: the packages that are missing with the command, and the weights."""
    told = json.loads(server.request(f"{bare.url}/api{ROUTE}"))
    packages, weights = told
    assert "diffusers is not installed (no model loads without it)" in packages and "-m pip install -r" in packages
    assert "requirements.txt" in packages and str(Path("nano") / "weights") in weights
    log = bare.log.read_text("utf-8", "replace")
    assert log.count(packages) == log.count(weights) == 1


@pytest.mark.long  # its parts, in one process: tests/host
def test_the_node_says_that_diffusers_is_missing(bare: server.Server) -> None:
    graph = text_to_video("tiny")
    result = client.run_workflow(bare.url, graph, timeout_s=120)
    assert result.error is not None and result.error.node_type == "CogVideoXLoadPipeline"
    assert "CogVideoX needs the Python package diffusers, which is not installed" in result.error.message


@pytest.mark.long  # its parts, in one process: tests/host
def test_a_template_whose_toy_is_gone_says_so(bare: server.Server) -> None:
    template = client_format(ROOT / "example_workflows" / f"{TEMPLATE}.json", bare.url)
    result = client.run_workflow(bare.url, template, timeout_s=120)
    assert result.error is not None and "CogVideoX-nano 5b is a part of the pack" in str(result.error)
