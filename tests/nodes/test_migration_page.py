"""What the page is told of a workflow of ComfyUI-CogVideoXWrapper, and what it gets for one."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.host import page_routes
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options
from cogvideox.nodes import migration_page
from cogvideox.nodes.migration_page import MAX_BYTES, answer_workflow, notice, serve_migration
from cogvideox.tests.migration.test_refusals import LEFT_OUT as LACKING
from cogvideox.tests.migration.test_refusals import REFUSED
from cogvideox.tests.migration.wrapper_flows import TWELVE, Flow
from cogvideox.tests.support import ticks_during

# Words that every English sentence has some of, and no name of a node, an input or a file.
_ENGLISH = re.compile(r"\b(the|is|are|has|its?|of|which|and|from|comes|no|not|to|what|for)\b")
_CHINESE = re.compile(r"  - \S+（节点 \S+）：.*[\u4e00-\u9fff].*")


class _Posted:
    """aiohttp's request with a body."""

    def __init__(self, body: bytes, language: str = "en", **query: str) -> None:
        self.body, self.query, self.content = body, query, self
        self.headers = {"Accept-Language": language}

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), size):
            yield self.body[start : start + size]


def ask(workflow: Any, language: str = "en", **query: str) -> dict[str, Any]:
    body = workflow if isinstance(workflow, bytes) else json.dumps(workflow).encode()
    return json.loads(asyncio.run(answer_workflow(_Posted(body, language, **query))))


def lacking() -> dict[str, Any]:
    """A workflow with something that has no counterpart, and is written without it."""
    documents = [build().document() for build in TWELVE.values()]
    return next(document for document in documents if migrate_workflow(document, Options())[0] is None)


def test_a_workflow_comes_back_in_our_nodes() -> None:
    """Whoever opens one had six errors and no word of the way on."""
    found = ask(TWELVE["control_net"]().document())
    types = {node["type"] for node in found["workflow"]["nodes"]}
    assert "CogVideoXSample" in types and not types & set(notice(str)["types"])
    assert found["report"][0] == "What differs from the wrapper:" and not found["may_leave_out"]


def test_what_cannot_be_migrated_is_said_and_may_be_left_out() -> None:
    """Never a guess without a word, and never a dead end."""
    found = ask(lacking())
    assert found["workflow"] is None and "What cannot be migrated:" in found["report"] and found["may_leave_out"]
    left = ask(lacking(), leave_out="1")
    assert not left["may_leave_out"] and "What is left out:" in left["report"]


def of_another_version() -> Flow:
    """A sampler that is cut short and a muted one: the first lacks values, the second does not run."""
    flow = TWELVE["v2v_5b"]()
    sampler = next(node for node in flow.nodes if node["type"] == "CogVideoSampler")
    sampler["widgets_values"] = sampler["widgets_values"][:1]
    flow.add("CogVideoSampler")
    flow.nodes[-1]["mode"] = 2
    return flow


@pytest.mark.parametrize("leave_out", ["0", "1"])
def test_a_chinese_page_has_a_chinese_report(leave_out: str) -> None:
    """Its title and buttons were Chinese, and what differs, the only thing to read with care, was English."""
    flows = [build for build, _, _ in (LACKING | REFUSED).values()] + [*TWELVE.values(), of_another_version]
    titles, left = set(), []
    for build in flows:
        report = ask(build().document(), "zh-CN,zh;q=0.9,en;q=0.8", leave_out=leave_out)["report"]
        assert report
        titles |= {line for line in report if not line.startswith("  - ")}
        lines = [line for line in report if line.startswith("  - ")]
        left += [line for line in lines if _ENGLISH.search(line) or not _CHINESE.fullmatch(line)]
    assert not left, "\n".join(left)
    assert titles == {"与 CogVideoXWrapper 的不同之处：", "略去的内容：", "无法迁移的内容："}


@pytest.mark.parametrize(
    "body, said",
    [
        (b"{", "The file is not JSON"),
        (b"\xff", "is not text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),  # deeper than any limit of recursion that a library may have set
        (b'{"nodes": [], "links": []}', "nothing to migrate"),
        (b" " * (MAX_BYTES + 1), "more than 4 MiB. Save it as a file and run `python3 dev.py migrate`"),
        (b"[" + b"{}," * 1_000_001, "more than 1000000 values"),
    ],
)
def test_refusals_are_sentences(body: bytes, said: str) -> None:
    """Anybody who may open the page may send anything."""
    found = ask(body)
    assert said in found["title"] and (found["workflow"], found["report"]) == (None, [])


def test_nan_is_refused() -> None:
    """Python reads and writes NaN; the page would fail on it without a word."""
    document = TWELVE["control_net"]().document()
    document["extra"] = {"a": float("nan")}
    assert "contains NaN or infinity" in ask(document)["title"]


def test_the_servers_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """All browsers wait while it stands still, and so does what a run shows."""
    monkeypatch.setattr(migration_page, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(migration_page, "rewrite", lambda *_: time.sleep(1.0))
    answer, ticks = asyncio.run(ticks_during(answer_workflow(_Posted(b"{}"))))
    assert "takes more than" in json.loads(answer)["title"]
    assert ticks >= 10


def test_the_notice_names_the_command() -> None:
    """And the folder to run it in: a newcomer has never been there."""
    told = notice(str.upper)
    folder, command = told["command"].splitlines()
    assert command == 'python3 dev.py migrate "workflow.json"' and folder.startswith('cd "')
    assert (migration_page._FOLDER / "dev.py").is_file() and told["what"].isupper()
    assert "CogVideoSampler" in told["types"] and "CogVideoXSample" not in told["types"]


def test_routes_are_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second route of the same name keeps ComfyUI from starting."""
    made: list[str] = []

    def keep(kind: str) -> Any:
        return lambda path: lambda handler: made.append(f"{kind} {path}")

    server = SimpleNamespace(routes=SimpleNamespace(get=keep("GET"), post=keep("POST")))
    monkeypatch.setattr(page_routes, "prompt_server", lambda: server)
    serve_migration()
    serve_migration()
    assert made == ["GET /cogvideox/migration", "POST /cogvideox/migration"]
    monkeypatch.setattr(page_routes, "prompt_server", lambda: None)
    serve_migration()
