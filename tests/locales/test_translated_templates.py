"""The templates' texts in other languages: complete, of today's templates, with the numbers, links and names of the
English ones, and each telling which English text it stands for."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cogvideox.devtools.paths import ROOT, TEMPLATES
from cogvideox.tests.locales.test_locales import NUMBER, SCHEMAS, ZH_TERMS
from cogvideox.tests.web.test_translated_docs import unclosed_emphasis

FILES = sorted((ROOT / "locales").glob("*/main.json"))
SAVED = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(TEMPLATES.glob("*.json"))}
KINDS = ("titles", "groups", "nodes", "inputs", "notes")
# ComfyUI's own words in its Chinese, where notes name them.
_STOCK = {
    **{"Load Image": "加载图像", "Load Video": "加载视频", "Load Image (as Mask)": "加载图像（作为遮罩）"},
    **{"Get Video Components": "获取视频元素", "Conditioning (Combine)": "条件合并", "Canny": "Canny边缘检测"},
    **{"Upscale Image By": "缩放图像（比例）", "Run": "运行", "View details": "查看详情", "auto": "自动"},
    **{"Show advanced inputs": "显示高级输入", "MultiGPU CFG Split": "多GPU CFG 拆分"},
    **{"Select CLIP Device": "选择 CLIP 设备", "Select VAE Device": "选择VAE设备"},
    "Settings → Comfy → Execution → Live preview method": "设置 → Comfy → 执行 → 实时预览",
}
by_language = pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)


def told(file: Path) -> dict[str, dict[str, str]]:
    return json.loads(file.read_text("utf-8"))["cogvideoxTemplates"]


def in_templates() -> dict[str, set[str]]:
    """{kind: the English texts of all templates}. A note is translated by paragraphs, a group without its number."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS} | {"titles": set(SAVED)}
    for saved in SAVED.values():
        found["groups"] |= {re.sub(r"^\d+ {2}", "", group["title"]) for group in saved["groups"]}
        for node in saved["nodes"]:
            found["nodes"] |= {node["title"]} if "title" in node else set()
            found["inputs"] |= {entry["label"] for entry in node.get("inputs", []) if "label" in entry}
            if node["type"] == "MarkdownNote":
                found["notes"] |= set(node["widgets_values"][0].split("\n\n"))
    return found


def test_some_language_has_the_texts() -> None:
    assert [file.parent.name for file in FILES] == ["zh"]


@by_language
def test_every_text_of_a_template_is_translated_and_no_other(file: Path) -> None:
    """A missing paragraph leaves its whole note in English; a text that is gone is never shown again."""
    translated, english = told(file), in_templates()
    assert translated.keys() == set(KINDS)
    for kind in KINDS:
        missing, gone = english[kind] - translated[kind].keys(), translated[kind].keys() - english[kind]
        assert not missing, f"add to {kind} of {file.relative_to(ROOT)}: {missing}"
        assert not gone, f"remove from {kind} of {file.relative_to(ROOT)}: {gone}"
        assert all(text.strip() for text in translated[kind].values())


def test_every_group_has_the_number_by_which_the_page_knows_it() -> None:
    """web/js/translated_templates.js leaves a group without a number to its author."""
    assert all(re.match(r"\d+ {2}\S", group["title"]) for saved in SAVED.values() for group in saved["groups"])


@by_language
def test_no_two_texts_have_the_same_translation(file: Path) -> None:
    """What is shown is saved as the English that it stands for."""
    for kind, words in told(file).items():
        twice = [text for text, count in Counter(words.values()).items() if count > 1]
        assert not twice, f"{kind}: {twice}"


@by_language
def test_titles_can_be_files_and_addresses(file: Path) -> None:
    """ComfyUI asks for a template by its title, and saves a workflow under it; it sorts by the number."""
    for english, title in told(file)["titles"].items():
        assert title[:3] == english[:3] and len(title) <= 60
        assert not re.search(r'[/\\:*?"<>|#%{}.](?!5-5B)', title.replace("CogVideoX1.5", "")), title


def pairs(file: Path) -> Iterator[tuple[str, str]]:
    for words in told(file).values():
        yield from words.items()


@by_language
def test_numbers_and_links_are_those_of_the_english(file: Path) -> None:
    """A size or a number of frames that differs by language: one of the two is wrong."""
    for english, text in pairs(file):
        for sign in (NUMBER, r"\d+", r"\]\([^)]*\)|https?://[\w./-]+", r"(?m)^#+ ", r"\n", r"(?m)^\||\|"):
            # Chinese puts a number in another place of the sentence, and says "the last 20" once more.
            assert Counter(re.findall(sign, text)) == Counter(re.findall(sign, english)), text


def emphasised(text: str) -> Counter[str]:
    """What stands between stars, but for the bold words with which a paragraph begins."""
    return Counter(re.findall(r"\*+([^*]+)\*+", re.sub(r"^\*\*[^*]+\*\*", "", text)))


@by_language
def test_notes_name_what_the_page_shows(file: Path) -> None:
    """Who reads of an input looks for it on the node, where it has its translated name; files and values have one."""
    names = json.loads((file.parent / "nodeDefs.json").read_text("utf-8"))
    words = {**_STOCK, **told(file)["titles"], **told(file)["nodes"]}
    for node_id, node in names.items():
        schema = SCHEMAS[node_id]
        for name in (schema.display_name, schema.display_name.removeprefix("CogVideoX ")):
            words.setdefault(name, node["display_name"])
        words |= {key: entry["name"] for key, entry in node["inputs"].items()}
        for output, entry in zip(schema.outputs, node.get("outputs", {}).values()):
            words |= {output.display_name: entry["name"]} if "name" in entry else {}
    for english, text in told(file)["notes"].items():
        assert emphasised(text) == Counter(
            {words.get(name, name): count for name, count in emphasised(english).items()}
        ), text


@by_language
def test_emphasis_is_closed_and_terms_are_the_same(file: Path) -> None:
    for _, text in pairs(file):
        assert not unclosed_emphasis(text), text
        assert not [wrong for wrong, right in ZH_TERMS.items() if wrong in text.replace(right, "")], text
