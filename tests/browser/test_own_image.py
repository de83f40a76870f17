"""The list of pictures that CogVideoX Own Image offers, as tiles: in app mode, as its template opens."""

import json

from playwright.sync_api import expect

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import TEMPLATES

_SHOWN = """
image => {
  const label = image.parentElement.nextElementSibling.querySelector('span')
  return [label.textContent, getComputedStyle(label, '::after').content, getComputedStyle(image).visibility]
}
"""


def test_the_empty_choice_has_a_name(frontend: Frontend) -> None:
    """It was a tile with the sign of a broken picture, and nothing said that it means the connected one."""
    page, (file,) = frontend.page, TEMPLATES.glob("42 *.json")
    frontend.load(json.loads(file.read_text("utf-8")), file.stem)
    page.get_by_test_id("app-mode-widget-item").first.get_by_test_id("node-widget").get_by_role("button").first.click()
    tiles = page.locator('img[src*="/view?filename="]')
    expect(tiles.nth(1)).to_be_visible()
    assert tiles.nth(0).evaluate(_SHOWN) == ["", '"The connected image"', "hidden"]
    # Other tests leave pictures in the same folder.
    example = page.locator('img[src*="/view?filename=example.png"]')
    assert example.evaluate(_SHOWN) == ["example.png", "none", "visible"]
    frontend.console.clear()  # the frontend has asked for the picture of a file without a name
