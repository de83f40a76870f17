"""The templates' files by their translated titles."""

import asyncio
import json
import logging
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cogvideox.devtools.paths import ROOT
from cogvideox.host import translated_templates
from cogvideox.host.translated_templates import SERVED_AS, find_template, serve_translated_templates

TITLES = json.loads((ROOT / "locales" / "zh" / "main.json").read_text("utf-8"))["cogvideoxTemplates"]["titles"]


def test_each_title_has_its_template_and_its_picture() -> None:
    """A title without a file is a card that opens nothing."""
    for english, title in TITLES.items():
        for ending in (".json", ".jpg"):
            assert find_template(ROOT, "zh", title + ending) == ROOT / "example_workflows" / f"{english}{ending}"


@pytest.mark.parametrize("name", ("", ".json", "01 Text to video.json", "x.json", f"{TITLES['01 Text to video']}.png"))
def test_nothing_else_is_found(name: str) -> None:
    assert find_template(ROOT, "zh", name) is None


def test_it_is_served_where_the_page_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = web.RouteTableDef()
    monkeypatch.setattr(translated_templates, "new_routes", lambda name: routes)
    serve_translated_templates(ROOT)

    async def asked() -> tuple[int, int, bytes]:
        app = web.Application()
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            (place,) = SERVED_AS
            lost = await client.get(f"/workflow_templates/{place}/..%2F..%2Fpyproject.toml")
            found = await client.get(f"/workflow_templates/{place}/{TITLES['01 Text to video']}.json")
            return lost.status, found.status, await found.read()

    file = ROOT / "example_workflows" / "01 Text to video.json"
    assert asyncio.run(asked()) == (404, 200, file.read_bytes())


def test_the_page_asks_for_it_under_the_same_name() -> None:
    script = (ROOT / "web" / "js" / "translated_templates.js").read_text("utf-8")
    ((place, language),) = SERVED_AS.items()
    assert f'[LANGUAGE, SERVED_AS] = ["{language}", "{place}"]' in script


@pytest.mark.parametrize("written", (None, "{", "[]", "{}", '{"cogvideoxTemplates": {"titles": 1}}'))
def test_an_unreadable_file_is_reported(written: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The nodes work without it."""
    if written is not None:
        (tmp_path / "locales" / "zh").mkdir(parents=True)
        (tmp_path / "locales" / "zh" / "main.json").write_text(written, "utf-8")
    with caplog.at_level(logging.WARNING):
        assert find_template(tmp_path, "zh", f"{TITLES['01 Text to video']}.json") is None
    assert "have English titles" in caplog.text
