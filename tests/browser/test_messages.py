"""Texts on nodes and notices in the real frontend, which puts them into the page as HTML."""

import json

import pytest
import torch
from playwright.sync_api import Route, expect
from safetensors.torch import save_file

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.server import Server, request
from cogvideox.host.start_check import ROUTE
from cogvideox.host.toy import WEIGHTS
from cogvideox.tests.browser.lora_run import RUN_LORA

_PIPELINE = "CogVideoX-nano 5b"
_MARKUP = "<img src=x onerror=window.hacked=1>"
_SENTENCES = ("CogVideoX lacks Python packages: diffusers.", f"A folder is called {_MARKUP}.")


@pytest.fixture
def lora(comfyui: Server) -> str:
    """The name of a LoRA that fits, but for one key: it is markup that runs as script where it becomes HTML."""
    models = comfyui.output.parent / "models"
    config = json.loads((WEIGHTS / "5b" / "transformer" / "config.json").read_text("utf-8"))
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layer = "transformer.transformer_blocks.0"
    tensors = {f"{layer}.attn1.to_q.lora_A.weight": torch.ones(2, width)}
    tensors |= {f"{layer}.attn1.to_q.lora_B.weight": torch.ones(width, 2)}
    tensors |= {f"{layer}.{_MARKUP}.lora_A.weight": torch.ones(2, width)}
    path = models / "loras" / "markup.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path.name


@pytest.fixture
def unusable_lora(comfyui: Server) -> str:
    """The name of a LoRA that fits nothing: the error says its key, which is markup."""
    path = comfyui.output.parent / "models" / "loras" / "unusable.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({f"{_MARKUP}.lora_A.weight": torch.ones(2, 2), f"{_MARKUP}.lora_B.weight": torch.ones(2, 2)}, path)
    return path.name


def test_notices_are_on_the_page(one_page: Frontend, comfyui: Server) -> None:
    """What the pack has found at ComfyUI's start: the log is in a window that few people look at. A folder's name in a
    notice must not run as script."""
    page = one_page.page

    def answer(route: Route) -> None:
        route.fulfill(content_type="application/json", body=json.dumps(_SENTENCES))

    assert json.loads(request(f"{comfyui.url}/api{ROUTE}")) == []  # nothing is wrong here
    page.route(f"**/api{ROUTE}", answer)
    page.reload(wait_until="domcontentloaded")
    for sentence in _SENTENCES:
        expect(page.get_by_text(sentence)).to_be_visible(timeout=60_000)
    page.wait_for_timeout(4_000)  # they stay until they are closed
    for left in (len(_SENTENCES), 1, 0):
        expect(page.locator(".p-toast-message")).to_have_count(left)
        if left:
            page.locator(".p-toast-close-button").first.click()
    assert page.evaluate("() => window.hacked") is None
    page.unroute(f"**/api{ROUTE}")
    with page.expect_response(f"**/api{ROUTE}"):  # the server's own answer
        page.evaluate("() => app.extensions.find(({name}) => name === 'CogVideoX.StartNotices').setup()")
    page.wait_for_timeout(500)
    expect(page.locator(".p-toast-message")).to_have_count(0)
    assert one_page.console == []


def test_markup_in_a_message_is_text(lora: str, one_page: Frontend) -> None:
    # A workflow and its files come from strangers: what they call a thing must not run as script in the user's page.
    page = one_page.page
    page.evaluate(RUN_LORA, [_PIPELINE, lora])
    page.wait_for_function("() => window.outcome", timeout=60_000)
    assert page.evaluate("() => window.outcome") == "success"
    expect(page.get_by_text(_MARKUP).first).to_be_visible()
    assert page.locator('img[src="x"]').count() == 0
    assert page.evaluate("() => window.hacked") is None


def test_markup_in_an_error_is_text(unusable_lora: str, one_page: Frontend) -> None:
    # The frontend shows an error in a window of its own, since ComfyUI 0.30 at the press of a button.
    page = one_page.page
    page.evaluate(RUN_LORA, [_PIPELINE, unusable_lora])
    page.wait_for_function("() => window.outcome", timeout=60_000)
    assert _MARKUP in page.evaluate("() => window.outcome")
    text, details = page.get_by_text(_MARKUP).first, page.get_by_role("button", name="View details")
    expect(text.or_(details).first).to_be_visible()
    if not text.is_visible():
        details.click()
    expect(text).to_be_visible()
    assert page.locator('img[src="x"]').count() == 0
    assert page.evaluate("() => window.hacked") is None
