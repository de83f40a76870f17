"""The nodes' help pages in other languages: complete, with the inputs, links, numbers and names of the English ones.

ComfyUI's frontend asks for <node>/<language>.md in the folder of a pack's help pages, and takes <node>.md where there
is none.
"""

import json
import re

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.tests.locales.test_locales import NUMBER, ZH_TERMS
from cogvideox.tests.web.input_heads import CHINESE, head
from cogvideox.tests.web.test_docs import DOCS, SCHEMAS, read_page

WORDS = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
# Stock nodes by their names in the frontend's Chinese, and what else stands in quotation marks.
STOCK_NODES = {
    *(
        "K采样器",
        "K采样器（高级）",
        "自定义采样器（高级）",
        "CFG引导器",
        "分离Sigma",
        "随机噪波",
        "缩放CFG",
        "条件合并",
    ),
    *(
        "VAE解码",
        "VAE解码（分块）",
        "VAE编码",
        "CLIP文本编码",
        "应用ControlNet",
        "设置Latent噪波遮罩",
        "VOIDInpaintConditioning",
    ),
    *(
        "加载图像",
        "加载图像（作为遮罩）",
        "加载视频",
        "获取视频元素",
        "创建视频",
        "保存视频",
        "保存Latent",
        "保存Checkpoint",
    ),
    *("Canny边缘检测", "训练 LoRA", "保存 LoRA", "加载 LoRA 模型", "绘制损失图"),
}


def page(node_id: str) -> str:
    return read_page(DOCS / node_id / "zh.md")


def english(node_id: str) -> str:
    return read_page(DOCS / f"{node_id}.md")


def test_every_node_has_a_page() -> None:
    # The frontend shows the English one instead, without a word.
    assert {file.parent.name for file in DOCS.glob("*/zh.md")} == set(SCHEMAS)
    assert {file.name for file in DOCS.glob("*/*")} == {"zh.md"}


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_page_tells_of_every_socket_and_widget(node_id: str) -> None:
    # A page that names another default, or misses an input, is worse than the English one.
    inputs, outputs = page(node_id).split("## 输出\n")
    inputs, schema = inputs.split("## 输入\n")[1], SCHEMAS[node_id]
    told = [line.split("：")[0] for line in inputs.splitlines() if line.startswith("- **`")]
    assert told == [head(entry, CHINESE) for entry in schema.inputs]
    told = [line.split("：")[0] for line in outputs.split("## 示例\n")[0].splitlines() if line.startswith("- **`")]
    assert told == [f"- **`{out.display_name or out.io_type}`**（{out.io_type}）" for out in schema.outputs]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_page_has_the_structure_of_the_english_one(node_id: str) -> None:
    # A paragraph, an item of a list or a link that one of the two does not have.
    for sign in (r"^#+ ", r"^- ", r"\n\n"):
        assert len(re.findall(sign, page(node_id), re.M)) == len(re.findall(sign, english(node_id), re.M)), sign
    links = r"\]\([^)]*\)|https?://[\w./-]+"
    assert re.findall(links, page(node_id)) == re.findall(links, english(node_id))


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_page_names_the_same_things(node_id: str) -> None:
    # Inputs, choices, files and commands are not translated.
    spans = [set(re.findall("`([^`]+)`", text)) for text in (page(node_id), english(node_id))]
    assert spans[0] == spans[1], spans[0] ^ spans[1]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_page_has_the_numbers_of_the_english_one(node_id: str) -> None:
    # Memory, limits and recommended settings that differ by language: one of the two is wrong.
    numbers = [
        set(NUMBER.findall(re.sub("(?<=[0-9]),(?=[0-9]{3})", "", text))) for text in (page(node_id), english(node_id))
    ]
    assert numbers[0] == numbers[1], numbers[0] ^ numbers[1]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_page_uses_the_nodes_names(node_id: str) -> None:
    # Who reads of a node looks for it in the menu, where it has its translated name.
    text = page(node_id)
    known = {node["display_name"] for node in WORDS.values()} | STOCK_NODES
    named = set(re.findall("“([^”]*)”", text))
    assert named <= known, named - known
    assert not {
        wrong: right for wrong, right in ZH_TERMS.items() if wrong in text.replace(right, "") and wrong != "流水线"
    }


def unclosed_emphasis(text: str) -> list[str]:
    """Where it shows its stars: Markdown ends none between a punctuation mark and a letter, as in **参数。**然后."""
    text = re.sub("`[^`]*`", "x", text)
    stars = list(re.finditer(r"\*+", text))
    closing = [text[mark.start() - 1 : mark.end() + 1] for mark in stars[1::2]]
    return [around for around in closing if re.fullmatch(r"[^\w\s]\*+\w", around)]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_emphasis_is_closed(node_id: str) -> None:
    assert not unclosed_emphasis(page(node_id))


def test_emphasis_that_is_not_closed_is_found() -> None:
    assert unclosed_emphasis("**参数。**然后") and not unclosed_emphasis("**参数**。然后 *x（y）* 中")


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_page_names_templates_as_the_page_does(node_id: str) -> None:
    """A title that ComfyUI's list has in another language is not found there."""
    titles = json.loads((ROOT / "locales" / "zh" / "main.json").read_text("utf-8"))["cogvideoxTemplates"]["titles"]
    of_english = {number: titles[title] for title in titles for number in [title[:3]] if title in english(node_id)}
    named = {found[:3]: found for found in re.findall(r"[*→] ?(\d\d [^*]+)\*", page(node_id))}
    assert named == of_english
