"""ComfyUI's own frontend in a headless Chromium: to build workflows with, and to test. Runs inside the venv."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

VIEWPORT = (1600, 900)
_LAUNCH = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
_START_TIMEOUT_MS = 120_000
# Without a graphics card, Chromium paints each step of a movement on the processor: all is at once where it would end.
_STILL = """
  const still = new CSSStyleSheet()
  still.replaceSync(`*, *::before, *::after {
    animation-duration: 0s !important; animation-delay: 0s !important; animation-iteration-count: 1 !important;
    transition: none !important
  }`)
  document.adoptedStyleSheets.push(still)
"""

# Per-user files that a fresh installation asks the server for although nobody has written them yet.
_ABSENT_AT_FIRST = (
    "/user.css",
    "/api/userdata/user.css",
    "/api/userdata/comfy.templates.json",
    "/api/userdata?dir=workflows&",
    "/api/userdata?dir=subgraphs&",
)
# The frontend's own complaints, while it starts with its built-in workflow.
_FRONTEND_NOISE = (
    "ComfyApp graph accessed before initialization",
    "[ComfyUI] The legacy queue/history menu is deprecated",
    "[MaskEditor] ComfyApp.open_maskeditor is deprecated",
    "/Comfy-Org/z_image_turbo/",  # the built-in workflow's models, which it wants to know the size of
    "https://huggingface.co/",  # models that a workflow offers to download, which it wants to know the size of
)


@dataclass
class Frontend:
    """An open page. console: its errors and warnings so far, except those that every fresh installation has."""

    page: Page
    console: list[str] = field(default_factory=list)

    def note(self, message: ConsoleMessage) -> None:
        url = message.location.get("url", "")
        if message.type not in ("error", "warning") or any(noise in message.text for noise in _FRONTEND_NOISE):
            return
        if "404" in message.text and any(path in url for path in _ABSENT_AT_FIRST):
            return
        self.console.append(f"{message.type}: {message.text} ({url})")

    def begin(self) -> None:
        """Wait until a page that is being loaded has started, with an empty workflow."""
        self.page.wait_for_function("() => window.app?.vueAppReady", timeout=_START_TIMEOUT_MS)
        self.page.locator(".p-blockui-mask").wait_for(state="hidden", timeout=_START_TIMEOUT_MS)
        # The built-in workflow, which is not ours, goes.
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.ClearWorkflow')")
        self.settle()

    def load(self, workflow: dict, name: str) -> None:
        """Open a workflow as File > Open does, checked against the frontend's schema."""
        self.page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name)", [workflow, name])
        self.settle()

    def settle(self) -> None:
        """Wait until the frontend has drawn the last change."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def settings(**more: object) -> dict:
    """A user's comfy.settings.json without tutorial and release notes; `more` with dots as double underscores."""
    settled = {
        "Comfy.TutorialCompleted": True,
        "Comfy.ConfirmClear": False,
        "Comfy.InstalledVersion": metadata.version("comfyui-frontend-package"),
        "Comfy.Validation.Workflows": True,
    }
    return settled | {name.replace("__", "."): value for name, value in more.items()}


@contextlib.contextmanager
def launched_browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium. Until it is closed, asyncio.run fails in this thread: playwright's own loop runs there."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_LAUNCH)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_frontend(browser: Browser, url: str) -> Iterator[Frontend]:
    """The frontend of the server at `url` with an empty workflow, as a new user finds it. Nothing slides or blinks."""
    width, height = VIEWPORT
    with contextlib.closing(browser.new_context(viewport={"width": width, "height": height})) as context:
        context.add_init_script(_STILL)
        page = context.new_page()
        frontend = Frontend(page)
        page.on("console", frontend.note)
        page.on("pageerror", lambda error: frontend.console.append(f"exception: {error}"))
        page.goto(url, wait_until="domcontentloaded", timeout=_START_TIMEOUT_MS)
        frontend.begin()
        yield frontend
