"""The real frontend on a real server, opened in a headless Chromium. Skipped, with the reason, where none starts."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from cogvideox.devtools import server
from cogvideox.devtools.browser import find_browser
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.frontend import Frontend, launched_browser
from cogvideox.devtools.paths import DEV, PACK_NAME, ROOT
from cogvideox.tests.browser.shared_page import SharedPage, fewest_pages_first

HERE = "tests/browser/"  # how the ids of this folder's tests begin
PLAIN = {"Comfy__Minimap__Visible": False, "Comfy__Graph__CanvasInfo": False}  # no map or statistics in pictures


_OPEN = ExitStack()  # what all tests of this folder share, and no other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.nodeid.startswith(HERE)]
    for item in ours:
        item.add_marker("browser")
    in_order = iter(fewest_pages_first(ours))
    items[:] = [next(in_order) if item.nodeid.startswith(HERE) else item for item in items]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Close the browser after this folder's last test, not after the session's: while playwright runs, the asyncio.run
    of other folders' tests fails in this thread."""
    yield
    if nextitem is None or not nextitem.nodeid.startswith(HERE):
        _OPEN.close()


@pytest.fixture(scope="session")
def chromium() -> str:
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium: none on the PATH that starts, and the environment variable CHROMIUM names none")
    return found


@pytest.fixture(scope="session")
def comfyui(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    base = tmp_path_factory.mktemp("browser")
    prepare_base(base, ROOT, PACK_NAME)
    host, log = Path(os.environ["COMFYUI_PATH"]), base / "server.log"
    shutil.copy(host / "input" / "example.png", base / "input")  # as in every ComfyUI
    with server.running_server(host, base, log=log, cpu=True) as running:
        yield running


@pytest.fixture(scope="session")
def browser(chromium: str) -> Browser:
    return _OPEN.enter_context(launched_browser(chromium))


@pytest.fixture(scope="session")
def open_as(browser: Browser, comfyui: server.Server) -> Callable[..., AbstractContextManager[Frontend]]:
    """open_as(**settings) -> the frontend as a new user with these settings finds it, whatever a test did before."""
    return SharedPage(browser, comfyui, _OPEN).as_new


@pytest.fixture
def frontend(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    """The page with an empty workflow, for one test."""
    with open_as(**PLAIN) as opened:
        yield opened


@pytest.fixture(scope="module")
def one_page(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    """The page for several tests: each workflow opens in a tab of its own."""
    with open_as(**PLAIN) as opened:
        yield opened


@pytest.fixture(scope="module")
def vue_page(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    with open_as(Comfy__VueNodes__Enabled=True, Comfy__Minimap__Visible=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots go: below .dev, and with COGVIDEOX_UPDATE_SCREENSHOTS=1 into the documentation."""
    folder = ROOT / "docs" if os.environ.get("COGVIDEOX_UPDATE_SCREENSHOTS") == "1" else DEV / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
