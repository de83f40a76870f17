"""ComfyUI in Chinese: a node's names, its help page, and an error on it."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from playwright.sync_api import expect
from safetensors.torch import save_file

from cogvideox.devtools.frontend import Frontend
from cogvideox.devtools.paths import ROOT
from cogvideox.devtools.server import Server
from cogvideox.tests.browser.lora_run import RUN_LORA

_ADD = "type => { const node = LiteGraph.createNode(type); app.graph.add(node); app.canvas.selectItems([node]) }"
# Title, sockets and widgets as drawn on a new node.
_LABELS = """
type => {
  const node = LiteGraph.createNode(type)
  const label = slot => slot.label ?? slot.localized_name ?? slot.name
  return [node.title, ...[...node.inputs, ...(node.widgets ?? []), ...node.outputs].map(label)]
}
"""
_ZH = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
_SENTENCE = "请选择为 CogVideoX 训练的 LoRA。"


@pytest.fixture(scope="module")
def chinese(open_as: Callable[..., AbstractContextManager[Frontend]]) -> Iterator[Frontend]:
    """One page for all tests of this file."""
    with open_as(Comfy__Locale="zh") as opened:
        yield opened


def test_nodes_speak_chinese(chinese: Frontend) -> None:
    # A wrong key in the file is silently ignored: the node stays English.
    for node_id, words in _ZH.items():
        shown = chinese.page.evaluate(_LABELS, node_id)
        slots = [*words["inputs"].values(), *words.get("outputs", {}).values()]
        assert {words["display_name"], *(slot["name"] for slot in slots if "name" in slot)} <= set(shown), node_id


def test_the_node_library_has_chinese_folders(chinese: Frontend) -> None:
    # Those that the frontend has words for, and those that only the pack has.
    categories = chinese.page.evaluate(
        "types => types.map(type => LiteGraph.registered_node_types[type].nodeData.category)",
        ["CogVideoXSample", "CogVideoXEmptyLatent", "CogVideoXLoadPipeline", "CogVideoXEncodeText"],
    )
    assert categories == ["CogVideoX/采样", "CogVideoX/Latent", "CogVideoX/加载", "CogVideoX/文本"]


def test_help_is_chinese(chinese: Frontend) -> None:
    page = chinese.page
    page.evaluate(_ADD, "CogVideoXDecode")
    page.get_by_test_id("info-button").click()
    shown = page.locator(".node-help-content")
    first = (ROOT / "web" / "docs" / "CogVideoXDecode" / "zh.md").read_text("utf-8").split("：")[0]
    expect(shown).to_contain_text(first)
    expect(shown.get_by_role("heading", name="示例")).to_be_visible()


def test_error_is_chinese(comfyui: Server, chinese: Frontend) -> None:
    # Names of nodes in Chinese beside errors in English: the half that matters most is the one that cannot be read.
    path = comfyui.output.parent / "models" / "loras" / "of_another_model.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({"no.layer.lora_A.weight": torch.ones(2, 2), "no.layer.lora_B.weight": torch.ones(2, 2)}, path)
    page = chinese.page
    page.evaluate(RUN_LORA, ["CogVideoX-nano 5b", path.name])
    page.wait_for_function("() => window.outcome", timeout=60_000)
    assert _SENTENCE in page.evaluate("() => window.outcome")
    # The frontend shows an error in a window of its own, since ComfyUI 0.30 at the press of a button.
    text, details = page.get_by_text(_SENTENCE).first, page.get_by_test_id("error-overlay-see-errors")
    expect(text.or_(details).first).to_be_visible()
    if not text.is_visible():
        details.click()
    expect(text).to_be_visible()
    assert _SENTENCE not in comfyui.log.read_text("utf-8")  # which stays English
