"""What the page is told of a workflow of ComfyUI-CogVideoXWrapper, and what it gets for one."""

import asyncio
import json
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
from cogvideox.tests.migration.wrapper_flows import TWELVE
from cogvideox.tests.support import ticks_during


class _Posted:
    """aiohttp's request with a body."""

    def __init__(self, body: bytes, **query: str) -> None:
        self.body, self.query, self.content = body, query, self
        self.headers = {"Accept-Language": "en"}

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), size):
            yield self.body[start : start + size]


def ask(workflow: Any, **query: str) -> dict[str, Any]:
    body = workflow if isinstance(workflow, bytes) else json.dumps(workflow).encode()
    return json.loads(asyncio.run(answer_workflow(_Posted(body, **query))))


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


@pytest.mark.parametrize(
    "body, said",
    [
        (b"{", "The file is no JSON"),
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
