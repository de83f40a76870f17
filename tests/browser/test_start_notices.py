"""What the pack has found at ComfyUI's start, as notices on the page."""

import json

from playwright.sync_api import Route, expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.host.start_check import ROUTE

_SENTENCES = ("CogVideoX lacks Python packages: diffusers.", "A folder is called <img src=x onerror=window.hacked=1>.")


def test_notices_are_on_the_page(frontend: Frontend) -> None:
    """The log is in a window that few people look at; a folder's name in a notice must not run as script."""
    page = frontend.page

    def answer(route: Route) -> None:
        route.fulfill(content_type="application/json", body=json.dumps(_SENTENCES))

    expect(page.locator(".p-toast-message")).to_have_count(0)  # nothing is wrong here
    page.route(f"**/api{ROUTE}", answer)
    page.reload(wait_until="domcontentloaded")
    for sentence in _SENTENCES:
        expect(page.get_by_text(sentence)).to_be_visible(timeout=60_000)
    page.wait_for_timeout(4_000)  # they stay until they are closed
    expect(page.locator(".p-toast-message")).to_have_count(len(_SENTENCES))
    assert page.evaluate("() => window.hacked") is None
    page.locator(".p-toast-close-button").first.click()
    expect(page.locator(".p-toast-message")).to_have_count(1)
    assert frontend.console == []
