"""The translated messages: complete, of today's source, with the same placeholders and terms, and found again."""

import json
import re

import pytest

from cogvideox.locales.translations import make_catalogue, placeholders, translate_with
from cogvideox.tests.locales.message_catalogue import (
    CATALOGUES,
    MAY_BE_LEFT_OUT,
    read_catalogue,
    source_templates,
    templates_of,
)
from cogvideox.tests.locales.test_locales import NUMBER, ZH_TERMS

by_language = pytest.mark.parametrize("file", CATALOGUES, ids=lambda file: file.parent.name)


def names(template: str) -> list[str]:
    """Its placeholders, without those for which the other language may have nothing."""
    found = [name for _, name in placeholders(template) if name is not None]
    return sorted(name for name in found if not MAY_BE_LEFT_OUT.fullmatch(name))


def constants(template: str) -> str:
    return "\n".join(constant for constant, _ in placeholders(template))


@by_language
def test_every_message_has_its_translation(file):
    # One that is missing comes in English, in the middle of a page that is not.
    known = read_catalogue(file)
    missing = [(place, template) for template, place in source_templates().items() if template not in known]
    lines = [f"{place.file}:{place.line}\n  {json.dumps(text, ensure_ascii=False)}: " for place, text in missing]
    assert not missing, (
        f"locales/{file.parent.name}/messages.json lacks {len(missing)} texts that users of the nodes may meet. Add "
        "each as a line there, with its translation, or with null where no user meets it or it is a name:\n"
        + "\n".join(lines)
    )


@by_language
def test_no_translation_of_a_message_that_is_gone(file):
    # It would hide that the new wording has none.
    stale = [template for template in read_catalogue(file) if template not in source_templates()]
    assert not stale, f"remove from locales/{file.parent.name}/messages.json, or correct to today's wording: {stale}"


@by_language
def test_translations_have_the_same_placeholders(file):
    # What was found, the number to use, the file: without it the sentence says nothing.
    known = {english: told for english, told in read_catalogue(file).items() if told is not None}
    assert not {english: told for english, told in known.items() if names(english) != names(told)}
    assert not [told for told in known.values() if not told.strip()]


@by_language
def test_translations_have_the_numbers_of_the_original(file):
    # Limits that differ by language: one of the two is wrong.
    different = []
    for english, told in read_catalogue(file).items():
        if told is not None:
            found, wanted = (sorted(NUMBER.findall(constants(text))) for text in (told, english))
            if found != wanted:
                different.append(f"{english!r}: {found}, in English {wanted}")
    assert not different, "\n".join(different)


@by_language
def test_every_message_is_found_again(file):
    # A template that another one takes for its own comes out as another sentence.
    entries = read_catalogue(file)
    catalogue, wrong = make_catalogue(entries), []
    for english, told in entries.items():
        if told is None:
            continue
        # One that follows another directly, as in "{names}{more}", is empty more often than not.
        parts = enumerate(placeholders(english))
        values = {str(name): f"<{number}>" if constant or not number else "" for number, (constant, name) in parts}
        # What Chinese has no place for: the "s" of "{count} clip{plural}".
        values |= dict.fromkeys(values.keys() - {str(name) for _, name in placeholders(told)}, "s")
        shown, wanted = translate_with(catalogue, english.format(**values)), told.format(**values)
        if shown != wanted:
            wrong.append(f"{english!r} comes out as {shown!r}")
    assert not wrong, "\n".join(wrong)


def test_sentences_are_never_left_in_english():
    # null is for what no user meets and for names; a sentence that ends in a full stop is neither.
    for file in CATALOGUES:
        left = [text for text, told in read_catalogue(file).items() if told is None and text.endswith(".")]
        assert not [text for text in left if "recommend" not in text]  # a tooltip, which nodeDefs.json has


def test_chinese_messages_use_the_terms_of_the_nodes():
    # Who reads of a widget looks for it on the node; names in quotation marks are those of nodes, widgets and choices.
    entries = [told for told in read_catalogue(CATALOGUES[0]).values() if told is not None]
    text = "\n".join(entries)
    assert not {wrong: right for wrong, right in ZH_TERMS.items() if wrong in text.replace(right, "")}
    words = json.loads((CATALOGUES[0].parent / "nodeDefs.json").read_text("utf-8"))
    known = {node["display_name"] for node in words.values()} | STOCK_NODES
    known |= {entry["name"] for node in words.values() for entry in node["inputs"].values()}
    templates = json.loads((CATALOGUES[0].parent / "main.json").read_text("utf-8"))["cogvideoxTemplates"]
    known |= set(templates["titles"].values())
    quoted = {name for name in re.findall("“([^”]*)”", text) if not name.startswith("{")}
    assert quoted <= known | {"a small green star moves down on a white background"}, quoted - known


# ComfyUI's own nodes by their names in the frontend's Chinese.
STOCK_NODES = {
    *("条件合并", "条件连接", "条件遮罩", "K采样器", "合成图像（遮罩）", "设置Latent噪波遮罩", "图像转换为遮罩"),
    *("调节设置区域百分比视频", "VOIDInpaintConditioning", "保存 LoRA"),
}


def test_a_new_message_is_noticed():
    # Whoever writes a plain English sentence learns from the first test that it has no translation yet.
    source = '''
def check(frames: int, path: Path, names: list[str]) -> None:
    """Raises UserError."""
    logging.info(f"Looked at {path}")
    found = f"{len(names)} file{'' if len(names) == 1 else 's'}"
    raise UserError(
        f"{quoted(path.name)} has {frames} frames "
        f"{'with' if names else 'without'} sound: {found}.", advice="take the node out"
    )
'''
    assert {text for text, _ in templates_of(source)} == {
        "{names} file{plural}",
        "with",
        "without",
        "{quoted_path_name} has {frames} frames {choice} sound: {found}.",
    }


_HAN = "\u4e00-\u9fff"
# What keeps the signs of a program: a tensor's shape, an example of what is typed, numbers in a row, the end of a name.
_TYPED = re.compile(r"\[[^\]]*\]|\{\{.*?\}\}|\([a-z]+:[\d.]+\)|\w+\.mp4,.*$|\d+(, \d+)+|\.\.\.|\.safetensors")
# A narrow sign beside a Chinese one or after a value, a space after a wide one, a narrow sign at the end.
_NARROW = re.compile(
    rf"[{_HAN}“”]\s*[.,;:!?()]|[.,;:!?()]\s*[{_HAN}“”]|\}}[.,;:!?](?: |$)|[。，；：！？）”、] |[.,;:!?]$"
)


def test_chinese_has_chinese_punctuation() -> None:
    """A full stop of another width in the middle of a line is the sign of a text that nobody has read."""
    told = [text for file in CATALOGUES for text in read_catalogue(file).values() if text is not None]
    assert not [text for text in told if re.search(f"[{_HAN}]", text) and _NARROW.search(_TYPED.sub("", text))]


@pytest.mark.parametrize(
    "text", ["错误. 请重试", "没有 {name}.", "没有 {name}, {other}。", "没有。 请选择", "（无）。 它", "帧(数)"]
)
def test_a_narrow_sign_is_found(text: str) -> None:
    assert _NARROW.search(_TYPED.sub("", text))
