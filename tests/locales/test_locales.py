"""The translated names and tooltips: complete, of one vocabulary, and with the numbers of the English ones."""

import json
import re

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.nodes import NODES

SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}
FILES = sorted((ROOT / "locales").glob("*/nodeDefs.json"))
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?(?![\d_]|\.\d|[A-Za-jl-z])", re.ASCII)
# One term for one thing, as in ComfyUI's own translation: what is not to be used -> what is.
ZH_TERMS = {
    "噪声": "噪波",
    "批次大小": "批量大小",
    "流水线": "模型（全部）",
    "蒙版": "遮罩",
    "提示语": "提示词",
    "潜空间": "Latent",
}
ZH_FOREIGN = {
    "保存视频",
    "保存 WEBM",
    "条件合并",
    "训练 LoRA",
    "as loaded",
    "加载图像",
    "加载视频",
}  # ComfyUI's, a value


def names_in(file):
    """{node id: its translated words}, of every node and of no other."""
    translated = json.loads(file.read_text("utf-8"))
    path = f"locales/{file.parent.name}/nodeDefs.json"
    assert not SCHEMAS.keys() - translated, f"add {SCHEMAS.keys() - translated} to {path}"
    assert not translated.keys() - SCHEMAS, f"remove {translated.keys() - SCHEMAS} from {path}"
    return translated


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_translation_names_every_node_and_input(file):
    # A missing one stays English amid the rest; one for a name that is gone is silently ignored.
    translated = names_in(file)
    for node_id, schema in SCHEMAS.items():
        words = translated[node_id]
        inputs = {entry.id for entry in schema.inputs}
        if any(getattr(entry, "control_after_generate", None) for entry in schema.inputs):
            inputs.add("control_after_generate")  # the frontend's own widget after a seed
        assert words["inputs"].keys() == inputs, node_id
        assert all(entry["name"] for entry in words["inputs"].values()), node_id
        assert words["display_name"] and words["description"], node_id


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_translation_names_every_output(file):
    # A name for one that is called like its type would be ignored: the frontend has its own word for the type.
    translated = names_in(file)
    for node_id, schema in SCHEMAS.items():
        words = translated[node_id]
        outputs = words.get("outputs", {})
        assert outputs.keys() == {str(index) for index in range(len(schema.outputs))}, node_id
        for index, output in enumerate(schema.outputs):
            is_own = (output.display_name or output.io_type) != output.io_type
            assert bool(outputs[str(index)].get("name")) == is_own, f"{node_id} -> {index}"
            known = words["inputs"].get(output.display_name, {}).get("name")
            assert known in (None, outputs[str(index)].get("name")), f"{node_id} -> {index}: its input has a name"


MAIN = sorted((ROOT / "locales").glob("*/main.json"))
STOCK_CATEGORIES = {"CogVideoX", "latent", "text"}  # a name; the frontend has words of its own for these


@pytest.mark.parametrize("file", MAIN, ids=lambda file: file.parent.name)
def test_translation_names_every_category(file):
    # The node library would have English folders. The frontend takes a word for a folder, whatever it is in.
    parts = {part for schema in SCHEMAS.values() for part in schema.category.split("/")}
    words = json.loads(file.read_text("utf-8"))["nodeCategories"]
    assert words.keys() == parts - STOCK_CATEGORIES and all(words.values())


def texts(file):
    """(where, the English text or None, its translation or None) of every description and tooltip."""
    translated = names_in(file)
    for node_id, schema in SCHEMAS.items():
        words = translated[node_id]
        yield node_id, schema.description, words["description"]
        for entry in schema.inputs:
            yield f"{node_id}.{entry.id}", entry.tooltip, words["inputs"][entry.id].get("tooltip")
        for index, output in enumerate(schema.outputs):
            told = words.get("outputs", {}).get(str(index), {}).get("tooltip")
            yield f"{node_id} -> {index}", output.tooltip, told


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_every_tooltip_is_translated(file):
    # A missing one shows in English, between two that are not.
    assert not [where for where, english, translation in texts(file) if bool(english) != bool(translation)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_translations_have_the_numbers_of_the_original(file):
    # Limits and recommendations that differ by language: one of the two is wrong.
    different = []
    for where, english, translation in texts(file):
        found, wanted = (sorted(NUMBER.findall(text or "")) for text in (translation, english))
        if found != wanted:
            different.append(f"{where}: {found}, in English {wanted}")
    assert not different, "\n".join(different)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_translations_name_the_same_choices(file):
    # Choices are not translated: a tooltip that leaves one out, or names one that is gone, explains another list.
    translated = names_in(file)
    missing = []
    for node_id, schema in SCHEMAS.items():
        for entry in schema.inputs:
            english, told = entry.tooltip or "", translated[node_id]["inputs"][entry.id].get("tooltip", "")
            for choice in filter(str.isidentifier, entry.as_dict().get("options") or []):
                if re.search(rf"(?<![\w.]){choice}(?!\w)", english) and choice not in told:
                    missing.append(f"{node_id}.{entry.id}: {choice}")
    assert not missing


def test_chinese_has_one_term_for_one_thing():
    # Who searches for a word that is used in half of the places finds half.
    text = (ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8")
    assert not {wrong: right for wrong, right in ZH_TERMS.items() if wrong in text.replace(right, "")}
    words = json.loads(text)
    names = {node["display_name"] for node in words.values()}
    names |= {entry["name"] for node in words.values() for entry in node["inputs"].values()}
    names |= {entry.get("name") for node in words.values() for entry in node.get("outputs", {}).values()}
    assert set(re.findall("“([^”]*)”", text)) <= names | ZH_FOREIGN
    terms = {}  # the same input or output of two nodes has the same name
    for node_id, node in words.items():
        for key, entry in node["inputs"].items():
            terms.setdefault(key, set()).add(entry["name"])
        for index, entry in node.get("outputs", {}).items():
            if "name" in entry:
                terms.setdefault(SCHEMAS[node_id].outputs[int(index)].display_name, set()).add(entry["name"])
    wavering = {key: found for key, found in terms.items() if len(found) > 1}
    assert not wavering, wavering


# Ids of inputs that are names of other things too: of files, packages, and inputs of ComfyUI's and the wrapper's nodes.
ZH_WORDS = {
    *("clip", "compile", "fps", "latents", "memory", "model", "positive", "samples", "steps", "strength"),
    *("text", "vae"),
}


def test_a_chinese_message_names_an_input_as_the_page_does():
    """ "Set cards to fewer" is of no use where the page has no input of that name."""
    words = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    inputs = {key: entry["name"] for node in words.values() for key, entry in node["inputs"].items()}
    messages = json.loads((ROOT / "locales" / "zh" / "messages.json").read_text("utf-8"))
    unnamed = []
    for translation in filter(None, messages.values()):
        for found in re.findall(r"(?<![\w.{])[a-z]\w*(?![\w}])", translation, re.ASCII):
            if found not in ZH_WORDS and inputs.get(found, "") not in translation:
                unnamed.append(f"{found} ({inputs[found]}): {translation}")
    assert not unnamed, "\n".join(unnamed)
