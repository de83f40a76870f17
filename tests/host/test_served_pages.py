"""Pages of a pack whose folder has a name that an address spells otherwise."""

import asyncio
import http.client
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from cogvideox.host.served_pages import serve_pages


async def statuses(folder: Path, paths: list[str]) -> list[int]:
    """What a server answers that has the routes which ComfyUI makes and ours."""
    server, app = SimpleNamespace(routes=web.RouteTableDef()), web.Application()
    serve_pages(server, folder)
    app.add_routes(server.routes)
    app.add_routes([web.static(f"/extensions/{folder.name}", folder / "web")])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]

    def get(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    found = [await asyncio.to_thread(get, path) for path in paths]
    await runner.cleanup()
    return found


NAMES = (
    *("plain-name_1.0", "plain+name", "a b", "größer", "视频", "a (1)", "a, b", "a–b", "a[b]", "a#b", "a?b", "a\\b"),
    *("a%b", "100%", "a%20b", "CogVideoX 100% (1)", "a{b}", "{a", "a}", "{file:.+}"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_found_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    """Help was empty and no template opened in a folder that Windows had called "ComfyUI-CogVideoX - Copy (2)"."""
    folder = tmp_path / name
    for inner in ("web/docs/x.md", "example_workflows/x.json", "secret.txt"):
        (folder / inner).parent.mkdir(parents=True, exist_ok=True)
        (folder / inner).touch()
    quoted = urllib.parse.quote(name)
    pages = [f"/extensions/{quoted}/docs/x.md", f"/extensions/{quoted}/docs/y.md"]
    missing = [f"/extensions/{quoted}/{file}" for file in ("x" * 3000, "x%00", "docs", "y/" * 1500)]
    outside = [f"/extensions/{quoted}/{up}secret.txt" for up in ("../", "%2e%2e/", "..%2f", "docs/../../")]
    assert asyncio.run(statuses(folder, pages)) == [200, 404]
    assert not {200, 500} & set(asyncio.run(statuses(folder, outside)))
    if not name.startswith("plain"):  # else ComfyUI's own routes answer
        assert asyncio.run(statuses(folder, missing)) == [404] * len(missing)
    if name.startswith("plain"):  # ComfyUI's own routes serve them
        return
    template = f"/workflow_templates/{quoted}/x.json"
    assert asyncio.run(statuses(folder, [template, f"/workflow_templates/{quoted}", "/workflow_templates"])) == [
        *(200, 404, 404)
    ]
