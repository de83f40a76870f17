"""dev.py models check: the whole table against hubs on this machine that hold it, or not quite."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from cogvideox.devtools import check_models, cli
from cogvideox.devtools.paths import ROOT
from cogvideox.model_loaders.downloads import hub as hub_module
from cogvideox.model_loaders.downloads import repositories
from cogvideox.tests.file_server import Fault, FileServer, running_hub

ENTRIES, FILES = repositories.REPOSITORIES, repositories.FILES
COUNT = 2 * len(ENTRIES) + len(FILES)
STOCK_FOLDERS = ("upscale_models", "frame_interpolation")  # of ComfyUI's own nodes
PARTS = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/spiece.model", "vae/a.safetensors")
T2V = next(file for file in FILES if file.name == "CogVideoX_1_5_5b_T2V_bf16.safetensors")
T5 = next(file for file in FILES if file.name == "t5xxl_fp16.safetensors")
VOID = next(file for file in FILES if file.name == "void_pass1.safetensors")


def file(path: str, size: int, sha256: str) -> dict[str, Any]:
    """An entry of Hugging Face's list of files."""
    return {"type": "file", "path": path, "oid": "0" * 40, "size": 134, "lfs": {"oid": sha256, "size": size}}


def pipeline(gigabytes: float) -> dict[str, int]:
    """The sizes of the files of a checkpoint."""
    small = dict.fromkeys((*PARTS, "text_encoder/a.safetensors"), 1000)
    return {**small, "transformer/a.safetensors": round(gigabytes * 1e9)}


def listed(path: str, size: int) -> dict[str, Any]:
    """An entry of ModelScope's list of files."""
    return {"Type": "blob", "Path": path, "Size": size, "Sha256": "0" * 64, "Revision": "0" * 40}


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FileServer, FileServer]]:
    """Hugging Face and ModelScope with all that the table names, as it names it."""
    monkeypatch.setattr(check_models, "_PAUSE_S", 0.0)
    with running_hub(monkeypatch) as hub:
        other = FileServer({})
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", other.url)
        for entry in ENTRIES:
            sizes = pipeline(entry.gigabytes)
            hub.lists[entry.repository] = [file(path, size, "0" * 64) for path, size in sizes.items()]
            other.lists[entry.modelscope] = [listed(path, size) for path, size in sizes.items()]
        for single in FILES:
            size = single.size or round(single.gigabytes * 1e9)
            hub.lists.setdefault(single.repository, []).append(file(single.path, size, single.sha256 or "1" * 64))
        yield hub, other
        other.close()


@pytest.fixture
def asked(hubs: tuple[FileServer, FileServer], capsys: pytest.CaptureFixture) -> Callable[[], tuple[int, list[str]]]:
    """Runs the command: its exit status, and the lines about entries that are not as in the table."""

    def ask() -> tuple[int, list[str]]:
        status = cli.main(["models", "check"])
        lines = capsys.readouterr().out.splitlines()
        about = [line for line in lines if any(f" {source} " in line for source in repositories.SOURCES)]
        assert len(about) == COUNT
        return status, [line for line in about if "as in the table" not in line]

    return ask


def test_all_is_as_in_the_table(asked: Callable, hubs: tuple[FileServer, FileServer]) -> None:
    assert asked() == (0, [])
    assert not [one.path for hub in hubs for one in hub.asked if "/resolve/" in one.path], "no file is downloaded"


def test_it_says_what_has_moved(asked: Callable, hubs: tuple[FileServer, FileServer]) -> None:
    """An address that leads nowhere shows as a broken button to whoever opens a template."""
    hub, other = hubs
    hub.renamed["zai-org/CogVideoX-2b"] = "z-ai/CogVideoX-2b"
    del hub.lists["zai-org/CogVideoX-5b"], other.lists["PAI/CogVideoX-Fun-2b-InP"]
    hub.lists["zai-org/CogVideoX1.5-5B"] = hub.lists["zai-org/CogVideoX-2b"]
    hub.lists[T2V.repository] = [entry for entry in hub.lists[T2V.repository] if entry["path"] != T2V.path]
    entries = {entry["path"]: entry for path in (T5, VOID) for entry in hub.lists[path.repository]}
    entries[T5.path]["lfs"] = {"oid": "a" * 64, "size": 17}
    entries[VOID.path]["path"] = "old/void_pass1.safetensors"
    status, lines = asked()
    assert status == 1 and len(lines) == 7
    told = {line.split()[0] + line[51:64].strip(): line for line in lines}
    expected = {
        "CogVideoX-2bHugging Face": "zai-org/CogVideoX-2b is called z-ai/CogVideoX-2b now.",
        "CogVideoX-5bHugging Face": "It is gone: ",
        "CogVideoX-Fun-2b-InPModelScope": "It is gone: ",
        "CogVideoX1.5-5BHugging Face": "Its size is 13.8 GB, not 31.1 GB.",
        f"{T2V.name}Hugging Face": f"{T2V.path} is not in {T2V.repository}. It is gone.",
        f"{T5.name}Hugging Face": f"Its size is 17 bytes, not {T5.size}. Its hash is sha256:{'a' * 64}, not",
        f"{VOID.name}Hugging Face": "It is at old/void_pass1.safetensors now.",
    }
    assert told.keys() == expected.keys()
    assert not [name for name, words in expected.items() if words not in told[name]]


def test_what_the_table_does_not_know_is_told(
    hubs: tuple[FileServer, FileServer], capsys: pytest.CaptureFixture
) -> None:
    """A person who runs it can fill in the hash; nobody should have to make one up."""
    assert cli.main(["models", "check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for single in FILES:
        (line,) = (line for line in lines if line.startswith(f"{single.name} "))
        assert (f"sha256:{'1' * 64}" in line) == (single.sha256 is None)
        assert (" bytes" in line) == (single.size is None)


def test_a_hub_that_stumbles_is_asked_again(asked: Callable, hubs: tuple[FileServer, FileServer]) -> None:
    hubs[0].fail("", Fault(503), Fault(503))
    assert asked() == (0, [])
    hubs[0].fail("", Fault(503), Fault(503), Fault(503))
    status, (line,) = asked()
    assert status == 1 and "could not be asked" in line and "Ask again later." in line


def test_without_a_network_nobody_waits_for_each_entry(
    hubs: tuple[FileServer, FileServer], capsys: pytest.CaptureFixture
) -> None:
    """It took three and a half minutes to say the same of 47 entries."""
    for hub in hubs:
        hub.fail("", *[Fault(503)] * COUNT * 3)
    assert cli.main(["models", "check"]) == 1
    assert capsys.readouterr().out.count("Ask again later.") == COUNT
    assert len(hubs[1].asked) == len(ENTRIES) + 2, "only the first is asked three times"


def test_one_repository_of_single_files_that_is_gone_is_told_for_each(
    asked: Callable, hubs: tuple[FileServer, FileServer]
) -> None:
    del hubs[0].lists["comfyanonymous/flux_text_encoders"]
    status, lines = asked()
    assert status == 1 and len(lines) == 3 and all("t5xxl" in line and "It is gone: " in line for line in lines)


def test_an_answer_from_elsewhere_is_none(asked: Callable, hubs: tuple[FileServer, FileServer]) -> None:
    """A hub that has been taken over must not say, through another one, that all is as it was."""
    hub, other = hubs
    hub.fail("", Fault(redirect=other.url))
    status, (line,) = asked()
    assert status == 1 and "which is another host than the hub" in line


def test_a_hub_commands_no_terminal(hubs: tuple[FileServer, FileServer], capsys: pytest.CaptureFixture) -> None:
    hubs[0].renamed["zai-org/CogVideoX-2b"] = "x\x1b]0;title\x07"
    assert cli.main(["models", "check"]) == 1
    out = capsys.readouterr().out
    assert "is called x\ufffd]0;title\ufffd now" in out and "\x1b" not in out


def test_what_a_hub_calls_itself_is_one_line_and_of_one_direction(
    hubs: tuple[FileServer, FileServer], capsys: pytest.CaptureFixture
) -> None:
    """A name that turns the line around, or begins new ones, reads as an answer of the command's own."""
    hubs[0].renamed["zai-org/CogVideoX-2b"] = "x\u202egpj\u2066\nAll 40 are so.\u2028" + "y" * 10_000
    assert cli.main(["models", "check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == COUNT + 1
    (line,) = (line for line in lines if "is called x" in line)
    assert "x\ufffdgpj\ufffd All 40" in line and len(line) < 4100


@pytest.mark.parametrize("size", [10**400, 1 << 60, -1, 1.5, True, None, "1", [1]])
def test_sizes_that_no_file_has_are_told(asked: Callable, hubs: tuple[FileServer, FileServer], size: Any) -> None:
    """A number of 400 digits ended the command in an OverflowError, and so would the node have."""
    hub, other = hubs
    entry = next(entry for entry in ENTRIES if entry.name == "CogVideoX-5b")
    hub.lists[entry.repository][-1]["lfs"]["size"] = size
    other.lists[entry.modelscope][-1]["Size"] = size
    status, lines = asked()
    assert status == 1 and len(lines) == 2 and all("CogVideoX-5b " in line for line in lines)
    assert all("names no size and hash of" in line for line in lines)


@pytest.mark.parametrize("body", [b'{"a":' * 50_000, b"[" * 50_000, b"\xff", b'{"sha": ' + b"9" * 5000 + b"}"])
def test_an_answer_that_nests_without_end_is_none(
    asked: Callable, hubs: tuple[FileServer, FileServer], body: bytes
) -> None:
    for hub in hubs:
        hub.fail("", Fault(body=body))
    status, lines = asked()
    assert status == 1 and len(lines) == 2 and all("does not answer as a model hub" in line for line in lines)


def test_an_answer_without_end_is_none(
    asked: Callable, hubs: tuple[FileServer, FileServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill the memory."""
    assert hub_module._MAX_ANSWER_BYTES == 1 << 26
    monkeypatch.setattr(hub_module, "_MAX_ANSWER_BYTES", 200_000)
    hubs[0].fail("", Fault(body=b"[" + b" " * 300_000 + b"]"))
    status, (line,) = asked()
    assert status == 1 and "does not answer as a model hub" in line


@pytest.mark.parametrize("wait", ["nan", "-nan", "inf", "-1", "1e999", "soon", "9" * 5000])
def test_a_pause_of_no_length_is_not_waited(
    asked: Callable, hubs: tuple[FileServer, FileServer], monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    """time.sleep takes no NaN."""
    monkeypatch.setattr(hub_module, "_MAX_WAIT_S", 0.01)
    hubs[0].fail("", Fault(429, {"Retry-After": wait}))
    assert asked() == (0, [])


def test_it_takes_no_name(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["models", "check", "CogVideoX-2b"]) == 1
    assert "`models check` takes no name" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "MODELSCOPE_ENDPOINT"])
@pytest.mark.parametrize("address", ["modelscope.cn", "http://[::1", "http://[x]", "http://hub:99999", "http://hub:x"])
def test_an_address_of_no_hub_is_one_sentence(
    hubs: tuple[FileServer, FileServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    variable: str,
    address: str,
) -> None:
    monkeypatch.setenv(variable, address)
    assert cli.main(["models", "check"]) == 1
    assert f"error: {variable} is not the address of a model hub" in capsys.readouterr().err


def test_the_table_of_single_files_is_sound() -> None:
    """What ComfyUI's dialog of missing models refuses has no button: other hosts, and other kinds of files."""
    from cogvideox.host.folders import CATEGORIES
    from cogvideox.sockets.families import FAMILIES

    names = {family.name for family in FAMILIES}
    assert len({single.name for single in FILES}) == len({single.url for single in FILES}) == len(FILES)
    for single in FILES:
        parts = urlsplit(single.url)
        assert parts.scheme == "https" and parts.netloc == "huggingface.co" and parts.path.endswith(f"/{single.name}")
        assert single.name.endswith(".safetensors") and single.directory in (*CATEGORIES, *STOCK_FOLDERS)
        assert single.licence_url.startswith("https://") and set(single.families) <= names
        assert (single.holds == "transformer") == bool(single.families)
        assert single.sha256 is None or len(bytes.fromhex(single.sha256)) == 32
        assert single.size is None or abs(single.size / 1e9 - single.gigabytes) <= 0.06
        shown = single.as_property()
        assert shown["name"] == single.name and ("hash" in shown) == (single.sha256 is not None)


def test_the_documentation_has_every_address() -> None:
    """docs/models.md is where people look for a file; an old address there would outlive the table's."""
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    listed = {line.split(": ")[1] for line in page.splitlines() if line.endswith(".safetensors") and line[0] == "["}
    assert listed == {single.url for single in FILES}


def test_workflows_name_what_the_table_names() -> None:
    """An address in a template that is not the table's would stay when the table is corrected."""
    known = [single.as_property() for single in FILES]
    named = [
        entry
        for file in (*ROOT.glob("example_workflows/*.json"), *ROOT.glob("subgraphs/*.json"))
        for node in _nodes_in(json.loads(file.read_text("utf-8")))
        for entry in node["properties"]["models"]
    ]
    assert named and not [entry for entry in named if entry not in known]


def _nodes_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every node, in subgraphs too, that names models."""
    if isinstance(value, dict):
        if isinstance(value.get("properties"), dict) and value["properties"].get("models"):
            yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _nodes_in(inner)
