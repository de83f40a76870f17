"""One page of the frontend for all tests, on which each begins as a new user does.

To open a page takes nine seconds of processor time, since ComfyUI lets no browser keep the frontend's scripts, and to
load it again five. What a test has left on it goes in a moment."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from playwright.sync_api import Browser

from cogvideox.devtools.frontend import Frontend, open_frontend, settings
from cogvideox.devtools.server import Server

# Runs in the page: closes all that is open, gives it these settings, and returns what they were before.
_AS_NEW = """
async wanted => {
  const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s
  const [dialog, sidebar, workflow] = ['dialog', 'sidebarTab', 'workflow'].map(name => stores.get(name))
  // A node from the search dialog follows the pointer until a click places it; until then no selection has buttons.
  app.canvas.finalizeGhostPlacement?.(true)
  for (const {key} of [...dialog.dialogStack]) dialog.closeDialog({key})
  if (sidebar.activeSidebarTabId) sidebar.toggleSidebarTab(sidebar.activeSidebarTabId)
  stores.get('rightSidePanel')?.closePanel()
  const {setting, command, toast} = app.extensionManager
  const before = {}
  for (const [name, value] of Object.entries(wanted)) {
    before[name] = setting.get(name)
    if (before[name] !== value) await setting.set(name, value)
  }
  await command.execute('Comfy.NewBlankWorkflow')
  for (const other of [...workflow.openWorkflows])
    if (other !== workflow.activeWorkflow) await workflow.closeWorkflow(other)
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = [100, 200]  // room for what is drawn around a node at the origin
  toast.removeAll()
  return before
}
"""
# Half of a page keeps what it was loaded with: these settings, with what a new user has.
_FROM_THE_START = {"Comfy.Locale": "en", "Comfy.VueNodes.Enabled": False}
# Fixtures whose tests change the renderer, have the newer one, or another language: all tests of one page in a row.
_ORDER = {"opened": 1, "page_of": 2, "vue_page": 2, "chinese": 3, "french": 4}


def fewest_pages_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """These tests in the order in which the page is loaded most seldom."""
    return sorted(items, key=lambda item: max(_ORDER.get(name, 0) for name in ("", *getattr(item, "fixturenames", ()))))


class SharedPage:
    """A page that is opened when it is first asked for, and stays until `closing` ends."""

    def __init__(self, browser: Browser, server: Server, closing: ExitStack) -> None:
        self._browser, self._server, self._closing = browser, server, closing
        self._frontend: Frontend | None = None
        self._started: dict[str, object] = {}  # what it was loaded with
        self._before: dict[str, object] = {}  # settings that were changed since, as they were

    @contextmanager
    def as_new(self, **more: object) -> Iterator[Frontend]:
        """The page with these settings, dots as double underscores, and otherwise as a new user finds it."""
        wanted = settings(**more)
        started = {name: wanted.get(name, usual) for name, usual in _FROM_THE_START.items()}
        if self._frontend is None or started != self._started:
            stored = self._server.user_directory / "default" / "comfy.settings.json"  # read at each page's start
            stored.write_text(json.dumps(wanted), "utf-8")
            self._load()
            self._started, self._before = started, {}
        assert self._frontend is not None
        self._frontend.page.unroute_all()
        before = self._frontend.page.evaluate(_AS_NEW, self._before | wanted)
        self._before = before | self._before
        self._frontend.settle()
        self._frontend.console.clear()
        yield self._frontend

    def _load(self) -> None:
        if self._frontend is None:
            self._frontend = self._closing.enter_context(open_frontend(self._browser, self._server.url))
        else:
            self._frontend.page.reload(wait_until="domcontentloaded")
            self._frontend.begin()
